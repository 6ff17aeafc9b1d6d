"""What the budget of each PooledDatabase came to when its server was last measured."""

from __future__ import annotations

from poolkeeper.budget.seen import BudgetSeen
from poolkeeper.observed.refs import Key


class BudgetsSeen:
    """The outcome of each budget, until its PooledDatabase is gone."""

    def __init__(self) -> None:
        self._seen: dict[Key, BudgetSeen] = {}
        self._fits: dict[Key, float] = {}

    def put(self, key: Key, seen: BudgetSeen) -> frozenset[Key]:
        """Take in the outcome of a budget. Returns the key if it has changed."""
        if self._seen.get(key) == seen:
            return frozenset()
        self._seen[key] = seen
        return frozenset({key})

    def get(self, key: Key) -> BudgetSeen | None:
        """The last outcome of a budget."""
        return self._seen.get(key)

    def fit(self, key: Key, at: float) -> None:
        """Note that what the poolers may hold fits the server, by a measurement begun at this loop time."""
        self._fits[key] = at

    def fits_at(self, key: Key) -> float:
        """The loop time at which the last measurement began that what the poolers may hold fits; 0 for none."""
        return self._fits.get(key, 0.0)

    def drop(self, key: Key) -> None:
        """Forget the budget of a PooledDatabase that is gone."""
        self._seen.pop(key, None)
        self._fits.pop(key, None)
