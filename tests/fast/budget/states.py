"""What the model of the budget is made of: one value for everything at one moment, and what pods go through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from poolkeeper.budget.protocol import Allotment, Record

Table = tuple[tuple[str, int], ...]
"""Caps in a form that can be part of a key."""
LIVE, DYING, ENDED = 1, 2, 3
"""What a pod is, and the last that the operator heard of it; 0: it has not heard of it."""


class Stored(NamedTuple):
    bound: int
    revision: int
    caps: Table


class Shown(NamedTuple):
    revision: int
    caps: Table
    held: Table
    rules: tuple[str, ...]
    entering: bool


Files = tuple[int, Table, tuple[str, ...]]
"""Revision and caps of the table, and the entries that take logins."""


class Pod(NamedTuple):
    database: str
    phase: int = LIVE
    admitted: bool = False
    mounted: Files = (0, (), ())
    in_force: Files = (0, (), ())
    surplus: Table = ()
    """What it holds above its caps."""
    lingering: int = 0
    """Backends of connections that it has closed; `top` is what it held before."""
    top: int = 0
    entering: bool = False
    """Clients are in the middle of logins to entries that take none any more."""
    crashed: bool = False
    """An entry was taken from the process while clients logged in to it."""
    heard: int = 0
    reading: Shown | None = None


class Written(NamedTuple):
    epoch: int
    allotments: tuple[tuple[int, Stored], ...]


class Measured(NamedTuple):
    """What the operator found on the server: what it may give out now, and when all leftovers are gone; the
    pods known to have ended before, and those that were read before."""

    usable: int
    lasting: int
    ended: frozenset[int]
    read: frozenset[int]


class State(NamedTuple):
    """`records` by database; pods by number; how far `spec` and `foreign` of the world have gone. `orphans` are
    backends of pods that ended. `former` is all that the operator before this one knew, and `writes` how often
    it may still write something."""

    records: tuple[tuple[str, Written], ...]
    pods: tuple[Pod, ...]
    spec: int = 0
    orphans: int = 0
    foreign: int = 0
    epoch: int = 0
    measured: Measured | None = None
    former: State | None = None
    writes: int = 0
    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """The entries that take logins, by database, as stored beside the record."""


def bounds(records: Mapping[str, Record]) -> int:
    return sum(item.bound for one in records.values() for item in one.allotments.values())


def shown(pod: Pod) -> Shown:
    """What its console shows now."""
    revision, caps, rules = pod.in_force
    return Shown(revision, caps, table(holding(pod)), rules, pod.entering)


def holding(pod: Pod) -> dict[str, int]:
    caps, surplus = dict(pod.in_force[1]), dict(pod.surplus)
    return {entry: caps.get(entry, 0) + surplus.get(entry, 0) for entry in caps.keys() | surplus.keys()}


def reloaded(state: State, number: int) -> State:
    """RELOAD, or a restart that finds the newer files. An entry that is gone closes its connections at once."""
    pod = state.pods[number]
    caps, before = dict(pod.mounted[1]), holding(pod)
    surplus = {entry: held - caps[entry] for entry, held in before.items() if held > caps.get(entry, held)}
    closed = sum(held for entry, held in before.items() if entry not in caps)
    removed, refused = dict(pod.in_force[1]).keys() - caps.keys(), caps.keys() - set(pod.mounted[2])
    after = changed(
        state,
        number,
        in_force=pod.mounted,
        surplus=table(surplus),
        entering=bool(refused) and (pod.entering or bool(refused & set(pod.in_force[2]))),
        crashed=pod.crashed or (bool(removed) and (pod.entering or bool(removed & set(pod.in_force[2])))),
    )
    return lingering(after, number, closed)


def given_back(state: State, number: int, entry: str) -> State:
    """What the entry held above its cap. The server still has the backends for a moment."""
    surplus = dict(state.pods[number].surplus)
    closed = surplus.pop(entry)
    return lingering(changed(state, number, surplus=table(surplus)), number, closed)


def lingering(state: State, number: int, closed: int) -> State:
    if not closed:
        return state
    pod = state.pods[number]
    left = pod.lingering + closed
    return changed(state, number, lingering=left, top=max(pod.top, sum(holding(pod).values()) + closed))


def counted(pod: Pod) -> int:
    """Its connections and what lingers of those that it closed. What it opened in their place itself, as every
    pooler does all the time, does not count twice."""
    now = sum(holding(pod).values())
    return max(now, min(now + pod.lingering, pod.top))


def ended(state: State, number: int) -> State:
    pod = state.pods[number]
    rest = Pod(pod.database, ENDED, pod.admitted, heard=pod.heard)
    return changed(state, number, **rest._asdict())._replace(orphans=state.orphans + counted(pod))


def stored(state: State, name: str, item: Record) -> State:
    """A write whose precondition holds: it was planned with what is stored now."""
    return with_record(state, name, frozen(item))


def with_record(state: State, name: str, written: Written) -> State:
    return state._replace(records=tuple((key, written if key == name else old) for key, old in state.records))


def record(written: Written) -> Record:
    made = {str(uid): Allotment(item.bound, item.revision, dict(item.caps)) for uid, item in written.allotments}
    return Record(written.epoch, made)


def frozen(item: Record) -> Written:
    made = {int(uid): Stored(one.bound, one.revision, table(one.caps)) for uid, one in item.allotments.items()}
    return Written(item.epoch, tuple(sorted(made.items())))


def table(caps: Mapping[str, int]) -> Table:
    return tuple(sorted((entry, amount) for entry, amount in caps.items() if amount))


def admitted(state: State, uids: tuple[str, ...]) -> State:
    for uid in uids:
        state = changed(state, int(uid), admitted=True)
    return state


def changed(state: State, number: int, **changes: Any) -> State:
    pods = list(state.pods)
    pods[number] = pods[number]._replace(**changes)
    return state._replace(pods=tuple(pods))
