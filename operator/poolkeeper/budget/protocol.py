"""The order in which connections change hands between pooler pods, so that together they never hold too many.

Pure: step() returns what may be written now; the shell writes, polls again and asks again. It divides nothing
(division.py), and relies on no clock.

What is stored. A PooledDatabase's Record is stored in the same object as its configuration. For each pod it has
an Allotment: the pod's table of caps with a revision, and a bound. The bound is what the pod may hold whatever
happens: it rises with the table at the latest, and falls only after the pod's console has shown a smaller table
and no more connections than that. So the sum of all stored bounds is what the poolers of a server may hold at
any moment, whether or not an operator runs. An operator that starts needs to remember nothing.

What has to hold outside of this module:
- A Record is written with the version that was read as precondition. So if a replaced operator still has a
  write under way, and its successor wrote that Record since, the write fails.
- Each operator process has a higher epoch than those before it, and takes a new one when a write got no answer,
  since that write may still take effect.
- A pod reads no older table after a newer one, and none at all before it has an Allotment: its configuration
  then has no entry, and it can hold no connection. The ReplicaSet may create any number of pods.
- A Reading is of one moment: the revision that the console shows, and the connections that it counts then.
  PgBouncer enforces max_db_connections strictly, but closes nothing when it falls: connections above it stay
  until they are given back.
- Connections that no console shows any more count as foreign when the server is measured, for as long as their
  backends last: those of pods that ended, and those that a pod has just given back.

An entry that is to go leaves a pod's table only once its login is refused there and no client is in the middle
of one: when a RELOAD removes the entry, PgBouncer 1.26 forgets about such clients and crashes a moment later.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from poolkeeper.budget.division import Caps

_NOTHING = -(2**31)
"""Less than any server gives: no growth at all."""


@dataclass(frozen=True)
class Allotment:
    """What is stored for one pod. `revision` rises with every change of `caps`, and no two tables of a pod have
    the same one: a console that shows the same numbers proves nothing about a table that came between."""

    bound: int
    revision: int
    caps: Caps


@dataclass(frozen=True)
class Record:
    """What is stored for one PooledDatabase, by pod UID. `epoch` is that of the operator that wrote it."""

    epoch: int
    allotments: Mapping[str, Allotment] = field(default_factory=dict)

    @property
    def bound(self) -> int:
        """What its pods may hold together."""
        return sum(item.bound for item in self.allotments.values())


@dataclass(frozen=True)
class Reading:
    """What a pod's console showed: the table in force, and the server connections of each entry."""

    revision: int
    caps: Caps
    held: Caps
    closed: frozenset[str] = frozenset()
    """Entries that no client can log in to any more, or is in the middle of logging in to, for as long as the
    object that holds the Record stays as it was read."""


@dataclass(frozen=True)
class Pooler:
    """A pooler pod as last seen. `admitted`: its readiness gate is open, so the Service may lead clients to it.
    `running`: its PgBouncer runs or is about to, so that connections given to it aren't wasted."""

    uid: str
    database: str
    running: bool = True
    admitted: bool = False
    terminating: bool = False
    reading: Reading | None = None


@dataclass(frozen=True)
class View:
    """All that is known of one server and of the poolers that share it."""

    epoch: int
    """Of this operator process."""
    usable: int | None
    """As last measured; None while it is not known."""
    ended: frozenset[str]
    """Pods known to have ended before that measurement began: it includes what they left."""
    counted: frozenset[str]
    """Pods read before that measurement began: it includes what they had given back by then."""
    records: Mapping[str, Record]
    """By PooledDatabase, as stored; an empty one if nothing is stored yet."""
    poolers: tuple[Pooler, ...]
    wanted: Mapping[str, Caps]
    """By pod UID, its caps in the end. A pod without a place, or that terminates, is absent."""


@dataclass(frozen=True)
class Steps:
    """What may be done now, in parallel. If nothing, the wanted state is reached or has to be waited for."""

    records: Mapping[str, Record] = field(default_factory=dict)
    """Records to store, and to deliver to the pods as tables."""
    admit: tuple[str, ...] = ()
    """Pods whose readiness gate may be opened."""
    drain: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Entries with more connections than their cap, by pod: the surplus is to be given back, each when its
    transaction ends."""
    excess: int = 0
    """By how much the bounds exceed `usable`, which has fallen."""


def step(view: View) -> Steps:
    """What may be written now. Every answer keeps the sum of bounds within `usable`, or does not raise it."""
    bounds = sum(record.bound for record in view.records.values())
    if deposed(view):
        return Steps()
    free = _NOTHING if view.usable is None or _unknown(view) else view.usable - bounds
    written: dict[str, Record] = {}
    for name, record in sorted(view.records.items()):
        poolers = [pooler for pooler in view.poolers if pooler.database == name]
        grown = rewrite(record, poolers, view, free)
        if grown is None:
            continue
        others = {other: item for other, item in view.records.items() if other != name}
        if grown.bound > record.bound and (stale := unfenced(others, view.epoch)):
            # Another operator may have a write under way that was right when it was planned. After this write
            # it fails, and that operator, when it reads the Record again, knows that it is deposed.
            written.update({other: replace(item, epoch=view.epoch) for other, item in stale.items()})
            grown = rewrite(record, poolers, view, min(0, free))
        if grown is not None and name not in written:
            written[name] = grown
            free -= max(0, grown.bound - record.bound)
    return Steps(
        records=written,
        admit=tuple(sorted(pooler.uid for pooler in view.poolers if admissible(pooler, view))),
        drain={pooler.uid: found for pooler in view.poolers if (found := _surplus(pooler, view.records))},
        excess=max(0, bounds - view.usable) if view.usable is not None else 0,
    )


def held_at_most(allotment: Allotment, reading: Reading | None) -> Caps | None:
    """What a pod may hold from now on by entry, with its table as it is: its caps, or what it holds above. None
    while its console has not shown that table: the pod may then hold anything within the bound."""
    if reading is None or reading.revision != allotment.revision:
        return None
    return _larger(allotment.caps, reading.held)


def deposed(view: View) -> bool:
    """Whether another operator has taken over: what this one knows of other Records may be outdated."""
    return any(record.epoch > view.epoch for record in view.records.values())


def unfenced(records: Mapping[str, Record], epoch: int) -> dict[str, Record]:
    """Records that another operator process wrote last."""
    return {name: record for name, record in records.items() if record.epoch != epoch}


def admissible(pooler: Pooler, view: View) -> bool:
    """Whether a pod may be admitted: it shows its table, with every wanted entry in it. (If no entry is wanted,
    since there is no consumer yet, it needs no table.)"""
    wanted = view.wanted.get(pooler.uid)
    if wanted is None or pooler.admitted or pooler.terminating or not pooler.running:
        return False
    allotment = view.records[pooler.database].allotments.get(pooler.uid)
    if allotment is None:
        return not wanted
    return held_at_most(allotment, pooler.reading) is not None and wanted.keys() <= allotment.caps.keys()


def rewrite(record: Record, poolers: Iterable[Pooler], view: View, free: int) -> Record | None:
    """The Record to store next, None if the stored one is right. It may grow by `free`, which no bound covers
    yet, and by what it gives back in the same write; `free` is negative if the bounds are too high already."""
    present = {pooler.uid: pooler for pooler in poolers}
    kept: dict[str, Allotment] = {
        uid: item for uid, item in record.allotments.items() if uid in present or not forgotten(uid, view)
    }
    may: dict[str, Caps] = {}
    caps: dict[str, Caps] = {}
    for uid, pooler in present.items():
        allotment = kept.get(uid) or _adopted(pooler)
        if allotment is None:
            if pooler.reading is not None and pooler.running and not pooler.terminating:
                may[uid], caps[uid] = {}, {}
            continue
        gone = removable(allotment, pooler.reading)
        kept[uid], caps[uid] = allotment, shrunk(allotment.caps, view.wanted.get(uid), gone)
        proved = held_at_most(allotment, pooler.reading)
        if proved is not None:
            may[uid] = proved
            kept[uid] = replace(allotment, bound=lowered(allotment, proved, uid in view.counted))
    room = free + record.bound - sum(item.bound for item in kept.values())
    growing = {uid: view.wanted[uid] for uid in may if uid in view.wanted and not present[uid].terminating}
    caps |= spend(room, growing, caps, may, order=sorted(growing, key=lambda uid: (present[uid].admitted, uid)))
    for uid, table in caps.items():
        old = kept.get(uid)
        if old is None and not table:
            continue
        covered = 0 if old is None else old.bound
        bound = max(covered, sum(_larger(table, may[uid]).values())) if uid in may else covered
        revision = 1 if old is None else old.revision + (dict(table) != dict(old.caps))
        kept[uid] = Allotment(bound, revision, table)
    return None if kept == record.allotments else Record(view.epoch, kept)


def lowered(allotment: Allotment, proved: Caps, counted: bool) -> int:
    """The bound after a proof. It falls once the server was measured after it: backends outlive connections."""
    return sum(proved.values()) if counted else allotment.bound


def forgotten(uid: str, view: View) -> bool:
    """Whether a pod that is gone no longer counts."""
    return uid in view.ended


def removable(allotment: Allotment, reading: Reading | None) -> frozenset[str]:
    """Entries of the pod's table that may leave it."""
    if reading is None:
        return frozenset()
    absent = allotment.caps.keys() - reading.caps.keys() if reading.revision == allotment.revision else ()
    return reading.closed.union(absent)


def shrunk(caps: Caps, wanted: Caps | None, gone: frozenset[str]) -> Caps:
    """A table in which no entry grows: it may be stored at any time, whatever the pod shows. An entry that is
    neither wanted nor `gone` keeps the least that an entry can have."""
    if wanted is None:
        return caps
    return {
        entry: min(cap, wanted.get(entry, 1))
        for entry, cap in caps.items()
        if entry in wanted or entry not in gone
    }


def spend(
    room: int,
    wanted: Mapping[str, Caps],
    caps: Mapping[str, Caps],
    may: Mapping[str, Caps],
    order: Iterable[str],
) -> dict[str, Caps]:
    """Tables grown towards `wanted` by at most `room` connections in all. What a pod holds above a cap is paid
    for already. A pod without a table gets one for all its entries or none, so that two such pods can't
    each keep what the other lacks."""
    grown = {uid: dict(caps[uid]) for uid in wanted}
    for uid in order:
        if not grown[uid] and len(wanted[uid]) <= room:
            grown[uid] = dict.fromkeys(wanted[uid], 1)
            room -= len(wanted[uid])
    lacking = [
        (table.get(entry, 0) / most, uid, entry)
        for uid, table in grown.items()
        if table or caps[uid]
        for entry, most in wanted[uid].items()
        if table.get(entry, 0) < most
    ]
    heapq.heapify(lacking)
    while lacking:
        _, uid, entry = heapq.heappop(lacking)
        table, cap = grown[uid], grown[uid].get(entry, 0)
        cost = 1 if cap >= may[uid].get(entry, 0) else 0
        if cost > room:
            continue
        room -= cost
        table[entry] = cap + 1
        if cap + 1 < wanted[uid][entry]:
            heapq.heappush(lacking, ((cap + 1) / wanted[uid][entry], uid, entry))
    return dict(grown)


def _adopted(pooler: Pooler) -> Allotment | None:
    """The Allotment of a pod that has a table although none is stored: the object was deleted."""
    if pooler.reading is None or not pooler.reading.caps:
        return None
    reading = pooler.reading
    return Allotment(sum(_larger(reading.caps, reading.held).values()), reading.revision, reading.caps)


def _unknown(view: View) -> bool:
    """Whether a pod may hold an unknown number of connections."""
    return any(
        pooler.admitted
        and pooler.uid not in view.records[pooler.database].allotments
        and pooler.reading is None
        for pooler in view.poolers
    )


def _surplus(pooler: Pooler, records: Mapping[str, Record]) -> tuple[str, ...]:
    allotment = records[pooler.database].allotments.get(pooler.uid)
    reading = pooler.reading
    if allotment is None or reading is None or reading.revision != allotment.revision:
        return ()
    return tuple(sorted(entry for entry, held in reading.held.items() if held > allotment.caps.get(entry, 0)))


def _larger(one: Caps, other: Caps) -> dict[str, int]:
    """The larger amount of each entry, without entries of 0."""
    both = {entry: max(one.get(entry, 0), other.get(entry, 0)) for entry in one.keys() | other.keys()}
    return {entry: amount for entry, amount in sorted(both.items()) if amount}
