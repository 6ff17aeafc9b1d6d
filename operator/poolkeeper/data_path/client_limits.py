"""Consumers that have as many clients as a pooler admits of them, by what the consoles show. Pure.

The numbers are those of the moment at which a consumer reached its bound: the report changes when that ends,
not with every reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from poolkeeper.budget.request import ClientBound
from poolkeeper.observed.data_path import AtLimit

CALM_SECONDS = 60.0
"""How long a consumer is still reported once it is below its bound again on all pods."""


@dataclass(frozen=True)
class Crowd:
    """A consumer as it reached its bound, and when it was last there, in seconds of a monotonic clock."""

    seen: AtLimit
    at: float


Crowds = Mapping[str, Crowd]
"""By consumer."""


def advance(
    before: Crowds, bounds: Iterable[ClientBound], shown: Mapping[str, Mapping[str, int]], now: float
) -> dict[str, Crowd]:
    """The state after one more reading: `shown` has the clients by pod and entry, of the pods that answered."""
    rows = tuple(bounds)
    known = {row.consumer for row in rows}
    after = {name: crowd for name, crowd in before.items() if name in known and now - crowd.at < CALM_SECONDS}
    for item in _full(rows, shown):
        crowd = after.get(item.consumer)
        same = crowd is not None and (crowd.seen.bound, crowd.seen.limited) == (item.bound, item.limited)
        after[item.consumer] = Crowd(crowd.seen if crowd is not None and same else item, now)
    return after


def at_limit(crowds: Crowds) -> tuple[AtLimit, ...]:
    """The reported consumers, by name."""
    return tuple(crowds[name].seen for name in sorted(crowds))


def _full(bounds: Iterable[ClientBound], shown: Mapping[str, Mapping[str, int]]) -> Iterable[AtLimit]:
    """One for each consumer that is at a bound. If at several: at its own limit, and on the first pod."""
    found: dict[str, AtLimit] = {}
    pods = sorted(shown.items())
    for row in bounds:
        for pod, clients in pods:
            number = sum(clients.get(entry, 0) for entry in row.entries)
            if number < row.bound:
                continue
            known = found.get(row.consumer)
            if known is None or (row.limited and not known.limited):
                found[row.consumer] = AtLimit(row.consumer, pod, number, row.bound, row.limited)
    return found.values()
