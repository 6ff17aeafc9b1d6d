"""Divides a pooler's client slots (`max_client_conn`) among its consumers. Pure, and without state.

A bound is how many clients PgBouncer admits of one consumer in one process, over both of its endpoints. The sum
of the bounds doesn't exceed the slots, so no consumer, and no group of them, can take another consumer's slot.
PgBouncer enforces the bounds by itself, whether or not an operator runs. Unused slots are not lent, since a
lent slot would come back only when its client leaves. What a limit keeps a consumer from using is divided among
the consumers below their own limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_WEIGHTS = 1000
"""The largest weight. Levels are in units of one slot for that weight."""
_FREE = 10
_FREE_PART = 20


@dataclass(frozen=True)
class Party:
    """A consumer. `ceiling` is the most that its limits let it use; None: they set no limit."""

    name: str
    weight: int = 100
    ceiling: int | None = None


def divisible(max_clients: int) -> int:
    """How many of the `max_clients` of one process are for consumers. The rest stays free for connections that
    belong to no consumer (yet): health checks, consoles, and clients that are about to be refused."""
    return max_clients - min(max_clients // 2, _FREE + max_clients // _FREE_PART)


def divide(max_clients: int, parties: Iterable[Party]) -> dict[str, int]:
    """The bound of each consumer by name, at least 1: PgBouncer takes 0 for unlimited.

    Slots are divided by weight. Each consumer gets at least half of an equal share, but never more than its
    ceiling; what a ceiling leaves goes to the other consumers. If there are more consumers than slots, each
    bound is 1, and the sum is too large (exhausted()).
    """
    rows = tuple(parties)
    slots = divisible(max_clients)
    least = max(1, slots // (2 * max(1, len(rows))))
    groups = Counter((row.weight, row.ceiling) for row in rows)

    def total(level: int) -> int:
        return sum(count * _bound(level, least, *group) for group, count in groups.items())

    low, high = 0, slots * _WEIGHTS
    while low < high:  # the highest level at which all bounds fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if total(middle) <= slots else (low, middle - 1)
    return {row.name: min(slots, _bound(low, least, row.weight, row.ceiling)) for row in rows}


def exhausted(max_clients: int, bounds: Mapping[str, int]) -> bool:
    """Whether there are more consumers than slots, so that the bounds guarantee nothing."""
    return len(bounds) > divisible(max_clients)


def needed(consumers: int) -> int:
    """The smallest max_client_conn with a slot for each of this number of consumers."""
    low, high = consumers, 2 * consumers + 2 * _FREE
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if divisible(middle) >= consumers else (middle + 1, high)
    return low


def _bound(level: int, least: int, weight: int, ceiling: int | None) -> int:
    bound = max(least, level * weight // _WEIGHTS)
    return bound if ceiling is None else max(1, min(bound, ceiling))
