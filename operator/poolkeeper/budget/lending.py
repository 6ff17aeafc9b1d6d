"""Lending of connections between the entries on one server, by what the poolers' consoles show.

While an entry's clients wait, every entry without waiting clients is held to what it used lately and some more.
The division (division.py) then gives the rest to the waiting entries, by weight. A waiting entry is never held
to anything, so it has at least the share of its weight. If all wait, shares are by weight alone.

Pure: only ceilings of consumers change, never floors, weights or limits, nor the order in which connections
change hands (protocol.py). Times are seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

from poolkeeper.budget.division import Consumer, Limit
from poolkeeper.budget.lenders import lenders
from poolkeeper.budget.shares import Pooled

LEND_AFTER_SECONDS = 2.0
"""How long an entry's clients wait until other entries lend to it, while it uses at least half of its caps."""
RETURN_AFTER_SECONDS = 1.0
"""How long a lending entry's clients wait until it gets its own connections back. If they wait while all that
it has left is in use, it gets them back at once."""
LEND_EVERY_SECONDS = 10.0
"""How long after the last change no entry begins to lend, or lends more."""
RETURN_EVERY_SECONDS = 3.0
"""How long after the last change nothing goes back: so there are 20 changes a minute at most."""
CALM_SECONDS = 60.0
"""How long no entry has waited, or used all of its own, until everything goes back."""
HOLD_SECONDS = 60.0
"""How long an entry that got its own back lends nothing of it, and one that got more room keeps that. The time
doubles each time, up to HOLD_MOST_SECONDS, and is reset once it was over for LASTING_SECONDS."""
HOLD_MOST_SECONDS = 960.0
LASTING_SECONDS = 600.0
GAP_SECONDS = 15.0
"""How long a gap between samples is until those before it no longer count."""

_STEP_SECONDS = 5.0
_STEPS = 4
"""How many steps the recent peak covers, the last one under way: 15 to 20 seconds."""
_SELDOM = itemgetter("cl_waiting", "sv_tested", "sv_login", "sv_active_cancel", "sv_being_canceled")
_NONE = ("0",) * 5
_UNUSED = (0,) * _STEPS

Slot = tuple[str, str]
"""A PooledDatabase's name and the name of a consumer's main entry."""


@dataclass(frozen=True, slots=True)
class Use:
    """What one entry does on all pods of a PooledDatabase together: server connections in use, clients that
    wait for one, and how many seconds the longest of them has waited."""

    active: int = 0
    waiting: int = 0
    seconds: float = 0.0


_IDLE = Use()


@dataclass(frozen=True)
class Sample:
    """What the consoles showed at one moment, by PooledDatabase and entry."""

    at: float
    uses: Mapping[str, Mapping[str, Use]]
    partial: frozenset[str] = frozenset()
    """PooledDatabases of which not every pod answered: what looks like little use may be half of it."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is remembered of one entry."""

    peaks: tuple[int, ...]
    """Maximum in use by step, the last step first."""
    since: float
    """Since when its use is known without a gap."""
    waits: float | None
    """Since when clients wait, in every sample."""
    wanting: bool
    """Clients have waited for LEND_AFTER_SECONDS, and more connections would help them."""
    own: int
    """Its caps when no entry lent anything."""
    ceiling: int | None = None
    held: float = 0.0
    """Until when it lends no more than it does."""
    hold: float = 0.0

    @property
    def peak(self) -> int:
        return max(self.peaks)


@dataclass(frozen=True)
class Need:
    """What is remembered of one server. An empty Need changes nothing: a new operator starts with the shares
    by weight, and so may one that loses track."""

    demands: Mapping[Slot, Demand] = field(default_factory=dict)
    at: float = 0.0
    step: float = 0.0
    """When the step under way began."""
    changed: float = 0.0
    """When a ceiling was changed last."""
    busy: float = 0.0
    """When an entry last waited, or used all of its own."""

    @property
    def lending(self) -> bool:
        return any(item.ceiling is not None for item in self.demands.values())

    def adjusted(self, databases: Iterable[Pooled]) -> tuple[Pooled, ...]:
        """The PooledDatabases of the server with the current ceilings, for targets.targets()."""
        return tuple(
            replace(item, consumers=tuple(self._held(item.name, consumer) for consumer in item.consumers))
            for item in databases
        )

    def _held(self, database: str, consumer: Consumer) -> Consumer:
        demand = self.demands.get((database, consumer.entry))
        if demand is None or demand.ceiling is None:
            return consumer
        return replace(consumer, ceiling=demand.ceiling)


def uses(entries: Iterable[str], pods: Iterable[Iterable[Mapping[str, str]]]) -> dict[str, Use]:
    """What each entry does, from SHOW POOLS of every pod of one PooledDatabase.

    An entry without a row, since no client has asked for it yet, does nothing.
    """
    active = dict.fromkeys(entries, 0)
    waiting: dict[str, int] = {}
    longest: dict[str, float] = {}
    for rows in pods:
        for row in rows:
            name = row["database"]
            if name not in active:
                continue
            active[name] += int(row["sv_active"])
            seldom = _SELDOM(row)
            if seldom != _NONE:  # parsing numbers is most of the work here
                clients, *others = map(int, seldom)
                active[name] += sum(others)
                waiting[name] = waiting.get(name, 0) + clients
                seconds = int(row["maxwait"]) + int(row["maxwait_us"]) / 1e6
                longest[name] = max(longest.get(name, 0.0), seconds)
    return {name: Use(number, waiting.get(name, 0), longest.get(name, 0.0)) for name, number in active.items()}


def advance(
    need: Need,
    sample: Sample,
    databases: Sequence[Pooled],
    caps: Mapping[str, Mapping[str, int]],
    limits: Sequence[Limit] = (),
) -> Need:
    """Take in a sample, about once a second. `databases` are those on the server as configured, not adjusted;
    `caps` what the entries of each have on all its pods together at the moment; `limits` those that several
    of them share."""
    at = sample.at
    if not need.demands or at - need.at > GAP_SECONDS:
        need = Need(at=at, step=at, changed=at, busy=at)
    shift = int((at - need.step) // _STEP_SECONDS)
    settled = not need.lending and at - need.changed >= LEND_EVERY_SECONDS
    demands: dict[Slot, Demand] = {}
    for pooled in databases:
        shown, held = sample.uses.get(pooled.name, {}), caps.get(pooled.name, {})
        gap = at if pooled.name in sample.partial or pooled.name not in sample.uses else None
        for consumer in pooled.consumers:
            slot = (pooled.name, consumer.entry)
            use, cap = shown.get(consumer.entry, _IDLE), held.get(consumer.entry, 0)
            demands[slot] = _seen(need.demands.get(slot), use, at, gap, shift, cap, settled)
    busy = any(_waited(item, at) or item.peaks[0] >= max(1, item.own) for item in demands.values())
    step = need.step + shift * _STEP_SECONDS
    seen = Need(demands, at, step, need.changed, at if busy else need.busy)
    changes = _changes(seen, databases, caps, limits)
    return replace(seen, demands={**demands, **changes}, changed=at) if changes else seen


def _seen(
    before: Demand | None, use: Use, at: float, gap: float | None, shift: int, cap: int, settled: bool
) -> Demand:
    """One entry's demand after a sample. `gap`: now, if the sample may not show all of its use."""
    if before is None:
        before = Demand(_UNUSED, at, None, False, cap)
    peaks = before.peaks if shift == 0 else ((0,) * min(shift, _STEPS) + before.peaks)[:_STEPS]
    if use.active > peaks[0]:
        peaks = (use.active, *peaks[1:])
    since = before.since if gap is None else gap
    rest = (cap if settled else before.own, before.ceiling, before.held, before.hold)
    if not use.waiting:
        return Demand(peaks, since, None, False, *rest)
    waits = min(at if before.waits is None else before.waits, at - use.seconds)
    # If clients wait although little is in use, the server is down or the database is paused.
    wanting = at - waits >= LEND_AFTER_SECONDS and 2 * use.active >= max(1, cap)
    return Demand(peaks, since, waits, wanting, *rest)


def _waited(demand: Demand, at: float) -> bool:
    return demand.waits is not None and at - demand.waits >= RETURN_AFTER_SECONDS


def _changes(
    need: Need,
    databases: Sequence[Pooled],
    caps: Mapping[str, Mapping[str, int]],
    limits: Sequence[Limit],
) -> dict[Slot, Demand]:
    """The entries whose ceilings change now."""
    since = need.at - need.changed
    if since < RETURN_EVERY_SECONDS:
        return {}
    lending = {slot: item for slot, item in need.demands.items() if item.ceiling is not None}
    pods = {item.name: max(1, item.pods) for item in databases}
    back = {
        slot: _eased(item, need.at, pods[slot[0]])
        for slot, item in lending.items()
        if _waited(item, need.at) or item.peaks[0] >= (item.ceiling or 0)
    }
    if back or since < LEND_EVERY_SECONDS:
        return back
    if need.at - need.busy >= CALM_SECONDS:
        return {slot: replace(item, ceiling=None) for slot, item in lending.items()}
    entries = list(_entries(need, databases, caps))
    wanting = {item.slot[0] for item in entries if item.wants}
    helpful = frozenset[str]().union(
        *(lenders(item, databases, caps, limits) for item in databases if item.name in wanting)
    )
    return _lent(need, [item for item in entries if item.slot[0] in helpful])


def _eased(demand: Demand, at: float, pods: int) -> Demand:
    """Give an entry all of its own if its clients wait, and some more room if all is in use and none waits."""
    calm = not demand.hold or at - demand.held >= LASTING_SECONDS
    hold = HOLD_SECONDS if calm else min(2 * demand.hold, HOLD_MOST_SECONDS)
    ceiling = _room(demand.peaks[0], pods) if demand.waits is None else None
    return replace(demand, ceiling=ceiling, held=at + hold, hold=hold)


def _room(used: int, pods: int) -> int:
    """Half as much again as is used, and at least one more on each pod: load is never spread evenly."""
    return used + max(pods, -(-used // 2))


@dataclass(frozen=True, slots=True)
class _Entry:
    slot: Slot
    demand: Demand
    cap: int
    pods: int
    most: int | None
    """What limits.maxConnections leaves to it: lending it more would not help."""

    @property
    def wants(self) -> bool:
        return self.demand.wanting and (self.most is None or self.cap < self.most)


def _entries(
    need: Need, databases: Sequence[Pooled], caps: Mapping[str, Mapping[str, int]]
) -> Iterator[_Entry]:
    for pooled in databases:
        pods = max(1, pooled.pods)
        for consumer in pooled.consumers:
            slot = (pooled.name, consumer.entry)
            limit = None if consumer.limit is None else max(pods, consumer.limit - pods * consumer.sessions)
            yield _Entry(
                slot, need.demands[slot], caps.get(pooled.name, {}).get(consumer.entry, 0), pods, limit
            )


def _lent(need: Need, entries: Sequence[_Entry]) -> dict[Slot, Demand]:
    """New or lower ceilings of the entries that can lend to one that wants more, if that frees connections."""
    changes: dict[Slot, Demand] = {}
    gained = 0
    for item in entries:
        ceiling = _ceiling(item, need.at)
        if ceiling is not None:
            gained += max(0, item.cap - ceiling)
            changes[item.slot] = replace(item.demand, ceiling=ceiling)
    return changes if gained else {}


def _ceiling(entry: _Entry, at: float) -> int | None:
    """The ceiling to hold the entry to, None if it stays as it is. An entry that used more than half of its
    connections keeps all of them."""
    demand = entry.demand
    if demand.waits is not None or at - demand.since < GAP_SECONDS:
        return None
    ceiling = _room(demand.peak, entry.pods)
    if 2 * demand.peak > entry.cap:
        ceiling = max(ceiling, entry.cap)
    if demand.ceiling is None:
        return max(ceiling, demand.own) if at < demand.held else ceiling
    return ceiling if ceiling < demand.ceiling and at >= demand.held else None
