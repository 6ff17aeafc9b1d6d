"""Index of the objects that carry the operator's labels and were not made by it, by the owner they name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from poolkeeper.observed.refs import Key, Ref


class Copies:
    """Names and UIDs of copies. Their contents are of no interest, and are not kept."""

    def __init__(self) -> None:
        self._of: dict[Key, dict[Ref, str]] = defaultdict(dict)
        self._owners: dict[Ref, Key] = {}

    def put(self, key: Key, ref: Ref, uid: str) -> frozenset[Key]:
        """Take in a copy that names `key` as its owner. Returns the keys that it concerns, if that is news."""
        if self._owners.get(ref) == key and self._of[key][ref] == uid:
            return frozenset()
        concerned = self.drop(ref)
        self._of[key][ref] = uid
        self._owners[ref] = key
        return concerned | {key}

    def drop(self, ref: Ref) -> frozenset[Key]:
        """Forget a copy that is gone, or is none any more. Returns the key that it concerned."""
        key = self._owners.pop(ref, None)
        if key is None:
            return frozenset()
        del self._of[key][ref]
        if not self._of[key]:
            del self._of[key]
        return frozenset({key})

    def of(self, key: Key) -> Mapping[Ref, str]:
        """UIDs of the copies that name `key`."""
        return dict(self._of.get(key, {}))
