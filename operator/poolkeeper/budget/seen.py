"""The outcome of a budget, as status and rollouts need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from poolkeeper.budget.division import SERVER
from poolkeeper.budget.problems import Problem
from poolkeeper.observed.data_path import AtLimit, Wedge


@dataclass(frozen=True)
class BudgetSeen:
    """The outcome of a PooledDatabase's budget when it was last worked out, in server connections."""

    server: str = ""
    """Eight hexadecimal digits that name the server; empty while it is unknown."""
    problem: str = ""
    """Why the server could not be measured, and what to do; empty if it was."""
    arithmetic: str = ""
    """The calculation of `usable`."""
    max_connections: int = 0
    others: int = 0
    reserve: int = 0
    usable: int = 0
    """For all poolers on the server."""
    share: int = 0
    """Of this PooledDatabase."""
    shared_with: int = 0
    """How many other PooledDatabases are on the server."""
    held: int = 0
    """What its pods together may hold now."""
    pods: Mapping[str, int] = field(default_factory=dict)
    """What each pod may hold now, by name."""
    waiting: tuple[str, ...] = ()
    """Names of pods that are not admitted yet."""
    most_pods: int | None = None
    """Maximum number of pods worth having: on more, not every entry would fit on each. None: not known yet."""
    problems: tuple[Problem, ...] = ()
    """What does not fit."""
    bottleneck: str = SERVER
    """What would have to be larger for a larger share."""
    left_out: frozenset[str] = frozenset()
    """Unserved entries: no connection is left for them."""
    excess: int = 0
    """By how much the connections held exceed `usable`, which has fallen."""
    admissible: frozenset[str] = frozenset()
    """UIDs of pods that may be admitted, as far as the budget goes."""
    at_limit: tuple[AtLimit, ...] = ()
    """Consumers that were at their bound of clients lately, by name."""
    wedges: tuple[Wedge, ...] = ()
    """What was wrong with the data path lately, the gravest first."""
    unwatched: str = ""
    """What of the data path can't be watched, and why; empty if all can."""
    silent: str = ""
    """UID of a pod to retire, since it alone answers no probe; empty for none."""
