"""The budget's arithmetic: what a server has for poolers, and how it is divided down to one entry of one pod.

Pure and stateless: the same input gives the same caps. It knows neither the order in which caps may change
hands (protocol.py), nor what was measured when. All amounts are server connections.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from poolkeeper.budget import problems
from poolkeeper.budget.problems import Problem

Caps = Mapping[str, int]
"""`max_db_connections` by entry; never 0, which PgBouncer takes for unlimited. An absent entry has no line
in the pod's [databases], hence neither clients nor connections."""
SERVER = "max_connections of the server"


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server as measured. `others`: the most foreign connections lately (servers.py)."""

    max_connections: int
    superuser_reserved: int
    reserved: int
    """`reserved_connections`, which PostgreSQL has since 16."""
    others: int

    def usable(self, reserve: int) -> int:
        """What the poolers on it may hold together if `reserve` more are to stay free; at least 0."""
        taken = self.superuser_reserved + self.reserved + reserve + self.others
        return max(0, self.max_connections - taken)

    def arithmetic(self, reserve: int) -> str:
        """The calculation of usable(), as text."""
        parts = (
            (self.superuser_reserved, "superuser_reserved_connections"),
            (self.reserved, "reserved_connections"),
            (reserve, "spec.budget.reserve"),
            (self.others, "held by others"),
        )
        less = "".join(f" - {amount} ({name})" for amount, name in parts if amount)
        return f"{self.max_connections} (max_connections){less} = {self.usable(reserve)}"


@dataclass(frozen=True)
class Party:
    """A party to a division of connections: it gets at least `floor`, at most `ceiling`, and by weight."""

    name: str
    weight: int = 100
    floor: int = 0
    ceiling: int | None = None

    def may_grow(self, given: int) -> bool:
        """Whether it may have more than it has been given."""
        return self.ceiling is None or given < self.ceiling


@dataclass(frozen=True)
class Limit:
    """What several parties may have together, such as those of one role with a CONNECTION LIMIT."""

    members: frozenset[str]
    connections: int


@dataclass(frozen=True)
class Consumer:
    """A consumer of one PooledDatabase, as the division needs it.

    `limit` (spec.consumers[].limits.maxConnections) is its maximum over all pods and both entries. `sessions`
    is the cap of its session entry on each pod; 0: it has none. A session can't be moved or ended without its
    client noticing, so this number does not vary with what other consumers need.
    """

    entry: str
    session_entry: str
    weight: int = 100
    limit: int | None = None
    sessions: int = 1
    ceiling: int | None = None
    """Maximum of its main entry over all pods, for now: what it doesn't use is lent (lending.py)."""

    @property
    def floor(self) -> int:
        """The connections that it needs on each pod."""
        return 1 + self.sessions

    @property
    def entries(self) -> tuple[str, ...]:
        return (self.entry, self.session_entry) if self.sessions else (self.entry,)


@dataclass(frozen=True)
class Division:
    """Caps by pod and entry, unserved entries, how many pods can be served, and what doesn't fit."""

    caps: Mapping[str, Caps] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    """Unserved entries: there is no room for them."""
    pods: int = 0
    """Maximum number of pods with room for every entry, at least 1, once none is leaving: more are no use."""
    problems: tuple[Problem, ...] = ()
    bottleneck: str = SERVER
    """What would have to be larger for a larger share."""


def apportion(total: int, parties: Sequence[Party]) -> dict[str, int]:
    """Divide `total` among the parties, one connection at a time, to the party furthest below its share (the
    divisor method of Sainte-Laguë). So one connection more or less moves one connection, and a party that comes
    or goes moves none between the others.

    Floors come first, in the order of `parties`: a party whose floor no longer fits gets 0. Connections that no
    party may have are left.
    """
    given = dict.fromkeys((one.name for one in parties), 0)
    due = []
    for one in parties:
        if one.floor <= total:
            total -= one.floor
            given[one.name] = one.floor
            if one.may_grow(one.floor):
                due.append((claim(one.floor, one.weight), one.name, one))
    heapq.heapify(due)
    while due and total:
        _, name, one = heapq.heappop(due)
        total -= 1
        given[name] += 1
        if one.may_grow(given[name]):
            heapq.heappush(due, (claim(given[name], one.weight), name, one))
    return given


def claim(given: int, weight: int) -> Fraction:
    """The place in line of who has been `given` so many connections: the smallest is next."""
    return Fraction(2 * given + 1, weight)


def party(name: str, weight: int, most: int | None, pods: int, consumers: Sequence[Consumer]) -> Party:
    """A PooledDatabase as one party on a server: it needs its entries' floors on one pod. `most` is
    spec.budget.maxConnections; nor does it take more than its consumers may have together."""
    if pods == 0 or not consumers:
        return Party(name, weight, 0, 0)
    limits = [_ceiling(item, pods) for item in consumers]
    known = [limit + pods * item.sessions for limit, item in zip(limits, consumers, strict=True) if limit]
    ceilings = [sum(known)] if len(known) == len(limits) else []
    ceilings += [] if most is None else [most]
    floor = sum(item.floor for item in consumers)
    return Party(name, weight, floor, min(ceilings) if ceilings else None)


def divide(
    share: int,
    admitted: Sequence[str],
    waiting: Sequence[str],
    consumers: Sequence[Consumer],
    in_force: frozenset[str] = frozenset(),
    leaving: int = 0,
    bottleneck: str = SERVER,
    replicas: int = 1,
) -> Division:
    """Divide a PooledDatabase's share, less what its `leaving` pods still hold, among its pods and entries.

    `admitted` pods serve already. The entries that are `in_force` on them keep their floors on each pod even if
    the share has fallen below that: otherwise clients would be thrown out. `waiting` pods are admitted in their
    order, while every floor fits. New entries are added likewise: in the order of `consumers`, session entries
    last. The remedies say to raise the `bottleneck`, and to lower the spec's `replicas` if there are more than
    can be served.
    """
    most = max(1, share // max(1, sum(item.floor for item in consumers)))
    share -= leaving
    kept = _that_fit(share, max(1, len(admitted)), consumers, in_force)
    per_pod = sum(item.floor for item in kept)
    room = max(0, share // per_pod - len(admitted)) if per_pod else len(waiting) if not consumers else 0
    pods = [*admitted, *waiting[:room]]
    spare = max(0, share - per_pod * len(pods))
    parties = [
        Party(item.entry, item.weight, len(pods), _ceiling(item, len(pods)))
        for item in sorted(kept, key=lambda item: item.entry)
    ]
    totals = apportion(len(pods) * len(kept) + spare, parties)
    caps: dict[str, dict[str, int]] = {pod: {} for pod in pods}
    for item in kept:
        for pod, cap in _spread(item.entry, totals[item.entry], pods).items():
            caps[pod][item.entry] = cap
            if item.sessions:
                caps[pod][item.session_entry] = item.sessions
    present = {name for item in kept for name in item.entries}
    left_out = tuple(name for item in consumers for name in item.entries if name not in present)
    limits = [(item.entry, item.limit, len(pods) * item.floor) for item in kept if item.limit is not None]
    return Division(
        caps,
        left_out,
        most,
        (
            *problems.of_pods(share, per_pod, len(pods), len(admitted) + len(waiting), bottleneck, replicas),
            *problems.of_entries(left_out, bottleneck),
            *problems.of_limits(limits, len(pods)),
        ),
        bottleneck,
    )


def _ceiling(consumer: Consumer, pods: int) -> int | None:
    """The ceiling of a consumer's main entry, at least 1 on each pod."""
    known = [] if consumer.ceiling is None else [consumer.ceiling]
    known += [] if consumer.limit is None else [consumer.limit - consumer.sessions * pods]
    return max(pods, min(known)) if known else None


def _that_fit(share: int, pods: int, consumers: Sequence[Consumer], in_force: frozenset[str]) -> list[Consumer]:
    """The consumers whose floors fit on this many pods, without sessions if those don't fit."""
    floors = {item.entry: 1 for item in consumers} | {
        item.session_entry: item.sessions for item in consumers if item.sessions
    }
    chosen = in_force & floors.keys()
    left = share - pods * sum(floors[name] for name in chosen)
    for name, floor in floors.items():  # the main entries first
        if name not in chosen and pods * floor <= left:
            chosen |= {name}
            left -= pods * floor
    return [
        replace(item, sessions=item.sessions if item.session_entry in chosen else 0)
        for item in consumers
        if item.entry in chosen
    ]


def _spread(entry: str, total: int, pods: Sequence[str]) -> dict[str, int]:
    """Spread an entry's connections evenly over the pods. Which pods get the remainder follows from a digest of
    both names, so that one connection more or less changes one pod's cap, and not always the same pods have
    more."""
    base, remainder = divmod(total, len(pods)) if pods else (0, 0)
    ranked = sorted(pods, key=lambda pod: hashlib.sha256(f"{entry}\n{pod}".encode()).digest())
    return {pod: base + (rank < remainder) for rank, pod in enumerate(ranked)}
