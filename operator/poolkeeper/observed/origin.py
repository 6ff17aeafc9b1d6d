"""Whether the operator made a live object, or something else did and its labels say otherwise.

Labels and annotations prove nothing: whatever copies an object (a backup, a reflector, `kubectl get -o yaml`)
copies them. What proves that the operator made an object is that the API server recorded its apply there, and
that the place which it wrote into the annotation `poolkeeper.io/origin` is the object's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poolkeeper.names import (
    CONSUMER_ROLES,
    MANAGER,
    ORIGIN_ANNOTATION,
    OWNER_UID_LABEL,
    ROLE_LABEL,
    own_secrets,
    owner_key,
)
from poolkeeper.observed.refs import Ref

Object = Mapping[str, Any]


def made_here(live: Object) -> bool:
    """Whether the operator itself made a live object that carries its labels, as against a copy of one.

    The place counts while it is as the operator applied it. An operator before this annotation wrote none, and
    another client may have edited it: then the recorded apply is enough.
    """
    fields = applied(live, MANAGER)
    if fields is None:
        # Without any record (they can be reset), the place alone has to do.
        return not live["metadata"].get("managedFields") and _origin(live) in (None, _place(live))
    annotations = fields.get("f:metadata", {}).get("f:annotations", {})
    return f"f:{ORIGIN_ANNOTATION}" not in annotations or put_back(live)


def put_back(live: Object) -> bool:
    """Whether a live object says that the operator made it where it is. After a restored backup it is not the
    one that the operator made; it is repaired where it is wanted, and left alone where it is not."""
    return _origin(live) == _place(live)


def applied(live: Object, manager: str) -> Mapping[str, Any] | None:
    """The fields of a live object that `manager` applied (`fieldsV1`); None if it applied none."""
    fields: Mapping[str, Any] | None = None
    for entry in live.get("metadata", {}).get("managedFields", ()):
        if (
            entry.get("manager") == manager
            and entry.get("operation") == "Apply"
            and not entry.get("subresource")
        ):
            fields = entry.get("fieldsV1", {})
    return fields


def conflict(ref: Ref, live: Object, database: str) -> str:
    """What to tell the owner of the PooledDatabase `database`: a live object has the name that it needs."""
    labels = live["metadata"].get("labels") or {}
    owner = owner_key(live["metadata"].get("annotations") or {}) if OWNER_UID_LABEL in labels else None
    here = ref.kind == "Secret" and ref.name not in own_secrets(database)
    whose, remedy = (
        "is not Poolkeeper's",
        "rename or delete it" + (", or choose another secretName" if here else ""),
    )
    if OWNER_UID_LABEL in labels and not made_here(live):
        whose = "is a copy of an object of Poolkeeper's"
    elif owner is not None:
        whose = f"belongs to PooledDatabase {owner[0]}/{owner[1]}"
        there = labels.get(ROLE_LABEL) in CONSUMER_ROLES
        places = " or ".join([*(["here"] if here else []), *(["there"] if there else [])])
        remedy = f"choose another secretName {places}" if places else "give one of the two another name"
    return f"{ref} exists and {whose}, so it stays untouched; {remedy}"


def _origin(live: Object) -> str | None:
    origin: str | None = (live["metadata"].get("annotations") or {}).get(ORIGIN_ANNOTATION)
    return origin


def _place(live: Object) -> str:
    return f"{live['metadata'].get('namespace', '')}/{live['metadata']['name']}"
