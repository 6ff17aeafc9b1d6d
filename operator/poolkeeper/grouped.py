"""A dict whose keys are also found by a property of their values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, MutableMapping
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


class Grouped(MutableMapping[KeyT, ValueT], Generic[KeyT, ValueT]):
    """Every key is in the `group` of its value."""

    def __init__(self, group: Callable[[ValueT], Hashable]) -> None:
        self._group = group
        self._values: dict[KeyT, ValueT] = {}
        self._keys: defaultdict[Hashable, set[KeyT]] = defaultdict(set)

    def within(self, group: Hashable) -> frozenset[KeyT]:
        """The keys whose values are in this group now."""
        return frozenset(self._keys.get(group, ()))

    def __getitem__(self, key: KeyT) -> ValueT:
        return self._values[key]

    def __setitem__(self, key: KeyT, value: ValueT) -> None:
        if key in self._values:
            del self[key]
        self._values[key] = value
        self._keys[self._group(value)].add(key)

    def __delitem__(self, key: KeyT) -> None:
        group = self._group(self._values.pop(key))
        self._keys[group].remove(key)
        if not self._keys[group]:
            del self._keys[group]

    def __iter__(self) -> Iterator[KeyT]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
