"""Values of objects, by the object and by the PooledDatabase that it names as its owner."""

from __future__ import annotations

from collections import defaultdict
from typing import Generic, TypeVar

from poolkeeper.observed.refs import Key, Ref

ValueT = TypeVar("ValueT")


class Owned(Generic[ValueT]):
    """One value for each object, which has one owner at a time."""

    def __init__(self) -> None:
        self._of: dict[Key, dict[Ref, ValueT]] = defaultdict(dict)
        self._owners: dict[Ref, Key] = {}

    def put(self, key: Key, ref: Ref, value: ValueT) -> frozenset[Key]:
        """Take in an object that names `key` as its owner. Returns the keys that it concerns if it is news."""
        if self._owners.get(ref) == key and self._of[key][ref] == value:
            return frozenset()
        concerned = frozenset() if self._owners.get(ref) == key else self.drop(ref)
        self._of[key][ref] = value
        self._owners[ref] = key
        return concerned | {key}

    def drop(self, ref: Ref) -> frozenset[Key]:
        """Forget an object. Returns the key that it concerned."""
        key = self._owners.pop(ref, None)
        if key is None:
            return frozenset()
        del self._of[key][ref]
        if not self._of[key]:
            del self._of[key]
        return frozenset({key})

    def get(self, ref: Ref) -> ValueT | None:
        """The value of an object."""
        return self._of[self._owners[ref]][ref] if ref in self._owners else None

    def owner(self, ref: Ref) -> Key | None:
        """The owner of an object, as far as it is known here."""
        return self._owners.get(ref)

    def owners(self) -> frozenset[Key]:
        """Every owner of an object."""
        return frozenset(self._of)

    def of(self, key: Key) -> dict[Ref, ValueT]:
        """The values of what `key` owns."""
        return dict(self._of.get(key, {}))
