"""What a budget came to, as status and rollouts need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from poolkeeper.budget.division import SERVER
from poolkeeper.observed.data_path import AtLimit, Wedge


@dataclass(frozen=True)
class BudgetSeen:
    """What the budget of a PooledDatabase came to when it was worked out last, in server connections."""

    server: str = ""
    """Eight hexadecimal digits that name the server; empty while nobody knows which one it is."""
    problem: str = ""
    """Why the server could not be measured, and what to do; empty if it was."""
    arithmetic: str = ""
    """How `usable` comes about."""
    max_connections: int = 0
    others: int = 0
    reserve: int = 0
    usable: int = 0
    """For all poolers on the server."""
    share: int = 0
    """Of this PooledDatabase."""
    shared_with: int = 0
    """So many other PooledDatabases are on the server."""
    held: int = 0
    """What its pods may hold now, together."""
    pods: Mapping[str, int] = field(default_factory=dict)
    """The same of each pod, by name."""
    waiting: tuple[str, ...] = ()
    """Names of pods that are not admitted yet."""
    most_pods: int | None = None
    """More pods than that are not worth having: not every entry would fit on each. None: not known yet."""
    problems: tuple[str, ...] = ()
    """What does not fit, in words."""
    bottleneck: str = SERVER
    """What would have to be larger for a larger share."""
    left_out: frozenset[str] = frozenset()
    """Entries that no connection is left for."""
    excess: int = 0
    """By how much more is held than is usable, which has fallen."""
    admissible: frozenset[str] = frozenset()
    """UIDs of pods that clients may come to, as far as the budget goes."""
    at_limit: tuple[AtLimit, ...] = ()
    """Consumers that were at the bound of their clients lately, by name."""
    wedges: tuple[Wedge, ...] = ()
    """What was wrong with the data path lately, the gravest first."""
    silent: str = ""
    """UID of a pod that is to be retired, since it alone answers no probe; empty for none."""
