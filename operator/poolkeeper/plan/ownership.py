"""Which fields of a live object are ours, and whether they still hold what we applied.

The API server records per field manager which fields it set (`metadata.managedFields`, structured-merge-diff
notation). Cutting a live object down to our fields makes it comparable with what we would apply: equal
digests mean that no write is needed, whatever fields other managers set. A field that another manager changed
is no longer ours, so its change shows as well. The store keeps 16 bytes for each object instead of the object.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from poolkeeper.observed.origin import applied

Object = Mapping[str, Any]

_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1), "k": Decimal(10**3),
    "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
    "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip


def desired_digest(desired: Object) -> bytes:
    """Digest of an object as we apply it."""
    return _digest(_without_identity(desired))


def live_digest(live: Object, manager: str) -> bytes:
    """Digest of the fields of a live object that `manager` applied, comparable with `desired_digest`."""
    return _digest(_without_identity(_owned(live, applied(live, manager) or {})))


def _without_identity(obj: Object) -> dict[str, Any]:
    """The object without its name and identity, which managedFields never list."""
    metadata = {
        key: value
        for key, value in obj.get("metadata", {}).items()
        if key not in ("name", "namespace", "uid", "resourceVersion")
    }
    rest = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata")}
    return {**rest, "metadata": metadata}


def _owned(value: Any, fields: Mapping[str, Any]) -> Any:
    """`value` cut down to a field set. A leaf (an empty set) is owned whole."""
    members = {path: below for path, below in fields.items() if path != "."}
    if not members:
        return value
    if isinstance(value, Mapping):
        return {
            path[2:]: _owned(value[path[2:]], below)
            for path, below in members.items()
            if path.startswith("f:") and path[2:] in value
        }
    if isinstance(value, list):
        keys = [(json.loads(path[2:]), below) for path, below in members.items() if path.startswith("k:")]
        items = [json.loads(path[2:]) for path in members if path.startswith("v:")]
        owned = [item for item in value if not isinstance(item, Mapping) and item in items]
        for item in value:
            for key, below in keys:
                if isinstance(item, Mapping) and all(item.get(name) == part for name, part in key.items()):
                    owned.append(_owned(item, below))
        return owned
    return value


def _digest(value: Any) -> bytes:
    text = _text(value)
    if '"limits"' in text or '"requests"' in text:
        text = _text(_canonical(value, quantities=False))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _canonical(value: Any, *, quantities: bool) -> Any:
    """The same text for the same meaning: the API server rewrites quantities (`1000m` becomes `1`)."""
    if isinstance(value, Mapping):
        return {
            key: _canonical(item, quantities=quantities or key in ("limits", "requests"))
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_canonical(item, quantities=quantities) for item in value]
    if quantities and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return _quantity(str(value))
    return value


def _quantity(text: str) -> str:
    number = text.rstrip("numkKMGTPEi")
    suffix = text[len(number) :]
    try:
        return str((Decimal(number) * _SUFFIXES[suffix]).normalize())
    except (InvalidOperation, KeyError):
        return text
