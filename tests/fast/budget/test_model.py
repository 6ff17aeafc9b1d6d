"""The budget's protocol against everything that can happen: never too many, always settled, nobody forgotten,
and a rollout ends wherever it begins.

Small worlds are searched to their last state, larger ones walked at random. And since a search that finds
nothing proves little by itself, the protocol's rules are broken one at a time, and each time it has to find it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from poolkeeper.budget import protocol, targets
from poolkeeper.budget.division import SERVER, Caps, Division
from poolkeeper.budget.protocol import Allotment, Pooler, Reading, Record, Steps, View
from poolkeeper.budget.shares import Pooled
from poolkeeper.desired.deployment import scale
from tests.fast.budget.model import World, pooled, start
from tests.fast.budget.states import State


def _pair(most_of_a: int, most_of_b: int) -> tuple[Any, Any]:
    return pooled("a", 1, 100, most=most_of_a), pooled("b", 1, 100, most=most_of_b)


REPLACED = World(server=4, specs=((pooled("a", 2, 100),),), pods=3)
"""One of two pods is deleted; its replacement comes at once."""
TAKEN_OVER = World(server=3, specs=((pooled("a", 1, 100),),), pods=2, epochs=2)
"""A pod comes, another goes, and the operator is replaced in between; the former one still writes."""
TWO_CONSUMERS = World(server=4, specs=((pooled("a", 1, 100, 100),),), pods=2)
SESSIONS = World(server=6, specs=((pooled("a", 1, 100, sessions=1),),), pods=2)
SHARED = World(server=3, specs=(_pair(2, 1), _pair(1, 2), _pair(2, 1)), pods=2, epochs=2)
"""Two PooledDatabases on one server: what one gives up the other gets, and back, with two operators."""
WEIGHTS = World(server=6, specs=((pooled("a", 2, 100, 100),), (pooled("a", 2, 300, 100),)), pods=2, epochs=2)
"""Two consumers on two pods change places, with two operators."""
FOREIGN = World(server=4, specs=((pooled("a", 1, 100),),), pods=2, foreign=(0, 1, 0))
"""Others connect to the server and leave it again, while a pod is replaced."""
REPLACEABLE = World(server=4, specs=((replace(pooled("a", 1, 100), replaceable=True),),), pods=2)
"""The only pod is deleted: there is room for its replacement at once."""
ROOM_FOR_TWO = World(server=2, specs=((replace(pooled("a", 1, 100), replaceable=True),),), pods=2)
"""The room for the only pod's replacement is all that is left for it: no third pod would fit."""
ROOM_FOR_TWO_AND_SOME = World(
    server=5, specs=((replace(pooled("a", 1, 100, sessions=1), replaceable=True),),), pods=2
)
SCALED = World(
    server=2,
    specs=tuple((replace(pooled("a", pods, 100), replaceable=pods == 1),) for pods in (1, 2, 1)),
    pods=2,
)
"""The only pod gets a second one for a while."""
LEAVES = World(
    server=3,
    specs=((pooled("a", 1, 100, 100),), (pooled("a", 1, 100),), (pooled("a", 1, 100, 100),)),
    pods=1,
    epochs=2,
)
"""A consumer leaves and comes back, with two operators."""

WORLDS = {
    "a replaced pod": (REPLACED, 17_489),
    "a replaced pod and operator": (TAKEN_OVER, 31_992),
    "two consumers": (TWO_CONSUMERS, 602),
    "sessions": (SESSIONS, 275),
    "a shared server": (SHARED, 20_877),
    "weights": (WEIGHTS, 6_709),
    "connections of others": (FOREIGN, 10_398),
    "the only pod is replaced": (REPLACEABLE, 826),
    "a consumer leaves": (LEAVES, 24_461),
    "f2 the only pod is replaced, with room for two": (ROOM_FOR_TWO, 333),
    "f2 the only pod is replaced, with room for two and some": (ROOM_FOR_TWO_AND_SOME, 359),
    "f2 scaled up and down": (SCALED, 3_164),
}
"""Each with the number of its states: a model that shrinks unnoticed would prove less."""


class Broken(Exception):
    """Something that must not be, after this event."""


def explore(world: World, check: Callable[[World, State, str], str | None]) -> int:
    """Visit every state that can be reached. Raises Broken at the first one that fails; else their number."""
    first = start(world)
    seen, waiting = {first}, deque([first])
    while waiting:
        state = waiting.popleft()
        for name, happen in world.events(state):
            after = happen(state)
            if after in seen:
                continue
            if problem := check(world, after, name):
                raise Broken(f"{name}: {problem}: {after}")
            seen.add(after)
            waiting.append(after)
    return len(seen)


def too_many(world: World, state: State, event: str) -> str | None:
    """More than the server has for us. (While others connect that is nobody's fault: see overdrawn.)"""
    if len(world.foreign) == 1 and world.held(state) > world.server:
        return f"{world.held(state)} connections of {world.server}"
    return None


def lost_entries(world: World, state: State, event: str) -> str | None:
    dead = [number for number, pod in enumerate(state.pods) if pod.crashed]
    return f"pods {dead} lost an entry while clients logged in to it" if dead else None


def everything(world: World, state: State, event: str) -> str | None:
    if problem := too_many(world, state, event):
        return problem
    if problem := lost_entries(world, state, event):
        return problem
    if world.overdrawn:
        return "the operator would raise the bounds above what it measured"
    if uncovered := world.uncovered(state):
        return f"pods {uncovered} may hold more than is stored of them"
    return unsettled(world, state, event)


def unsettled(world: World, state: State, event: str) -> str | None:
    if event.startswith(("hear", "read", "measure")):
        return None  # where it comes to does not depend on what was known before
    try:
        outcome = world.settled(state)
        return "; ".join(world.unsatisfied(outcome)) or world.hanging(outcome) or None
    except AssertionError as error:
        return str(error)


@pytest.mark.parametrize("name", WORLDS)
def test_in_small_worlds_no_state_has_too_many_and_all_settle(name: str) -> None:
    world, states = WORLDS[name]
    assert explore(world, everything) == states


# The protocol with one of its rules broken

HELD_AT_MOST = protocol.held_at_most
SPEND = protocol.spend
STEP = protocol.step


def _believes_what_it_wrote(allotment: Allotment, reading: Reading | None) -> Caps | None:
    return allotment.caps


def _forgets_what_is_held(allotment: Allotment, reading: Reading | None) -> Caps | None:
    return None if HELD_AT_MOST(allotment, reading) is None else allotment.caps


def _compares_numbers(allotment: Allotment, reading: Reading | None) -> Caps | None:
    if reading is None or dict(reading.caps) != dict(allotment.caps):
        return None
    return HELD_AT_MOST(replace(allotment, revision=reading.revision), reading)


def _never_believes(allotment: Allotment, reading: Reading | None) -> Caps | None:
    return None


def _forgets_the_dying(view: View) -> Steps:
    dying = {pooler.uid for pooler in view.poolers if pooler.terminating}
    living = tuple(pooler for pooler in view.poolers if not pooler.terminating)
    return STEP(replace(view, poolers=living, ended=view.ended | dying))


def _believes_the_console_alone(allotment: Allotment, proved: Caps, counted: bool) -> int:
    return sum(proved.values())


def _forgets_the_dead(uid: str, view: View) -> bool:
    return True


def _never_forgets(uid: str, view: View) -> bool:
    return False


def _grows_in_place(caps: Caps, wanted: Caps | None, gone: frozenset[str]) -> Caps:
    return caps if wanted is None else wanted


def _spends_without_end(
    room: int,
    wanted: Mapping[str, Caps],
    caps: Mapping[str, Caps],
    may: Mapping[str, Caps],
    order: Iterable[str],
) -> dict[str, Caps]:
    return SPEND(2**31, wanted, caps, may, order)


def _replacement_inherits(
    room: int,
    wanted: Mapping[str, Caps],
    caps: Mapping[str, Caps],
    may: Mapping[str, Caps],
    order: Iterable[str],
) -> dict[str, Caps]:
    grown = SPEND(room, wanted, caps, may, order)
    return {uid: table if caps[uid] else wanted[uid] for uid, table in grown.items()}


def _spends_nothing(
    room: int,
    wanted: Mapping[str, Caps],
    caps: Mapping[str, Caps],
    may: Mapping[str, Caps],
    order: Iterable[str],
) -> dict[str, Caps]:
    return {uid: caps[uid] for uid in wanted}


def _takes_any(allotment: Allotment, reading: Reading | None) -> frozenset[str]:
    return frozenset(allotment.caps)


def _takes_none(allotment: Allotment, reading: Reading | None) -> frozenset[str]:
    return frozenset()


def _no_fence(records: Mapping[str, Record], epoch: int) -> dict[str, Record]:
    return {}


def _goes_on(view: View) -> bool:
    return False


MUTANTS: dict[str, tuple[str, Callable[..., Any], World]] = {
    "grows before the shrink is seen": ("held_at_most", _believes_what_it_wrote, REPLACED),
    "forgets what is held above a lowered cap": ("held_at_most", _forgets_what_is_held, REPLACED),
    "takes the same numbers for the same table": ("held_at_most", _compares_numbers, TAKEN_OVER),
    "forgets dying pods": ("step", _forgets_the_dying, REPLACED),
    "takes a closed connection for an ended backend": ("lowered", _believes_the_console_alone, SHARED),
    "forgets a pod before its leftovers are measured": ("forgotten", _forgets_the_dead, REPLACED),
    "writes larger caps before they are paid for": ("shrunk", _grows_in_place, WEIGHTS),
    "gives what it doesn't have": ("spend", _spends_without_end, REPLACED),
    "gives a replacement the old pod's caps at once": ("spend", _replacement_inherits, REPLACED),
    "lets the former operator write to the other database": ("unfenced", _no_fence, SHARED),
    "goes on although another operator has taken over": ("deposed", _goes_on, SHARED),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_protocol_that_breaks_a_rule_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, broken, world = MUTANTS[name]
    monkeypatch.setattr(protocol, function, broken)
    with pytest.raises(Broken, match=r"\d connections of \d"):
        explore(replace(world), too_many)


LAZY = {
    "waits for ever for a proof": ("held_at_most", _never_believes, TAKEN_OVER),
    "reckons with dead pods for ever": ("forgotten", _never_forgets, TAKEN_OVER),
    "never spends anything": ("spend", _spends_nothing, TAKEN_OVER),
    "never takes an entry away": ("removable", _takes_none, LEAVES),
}


@pytest.mark.parametrize("name", LAZY)
def test_a_protocol_that_gets_nowhere_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, broken, world = LAZY[name]
    first = start(world)
    monkeypatch.setattr(protocol, function, broken)
    monkeypatch.setattr("tests.fast.budget.test_model.start", lambda _: first)
    with pytest.raises(Broken, match=r"wait|uses|has"):
        explore(replace(world), unsettled)


TARGET = targets.target


def _keeps_the_successors_room_from_the_successor(
    pooled: Pooled, share: int, poolers: Iterable[Pooler], record: Record, bottleneck: str = SERVER
) -> Division:
    """As it was at first: the room for the only pod's successor is kept although the successor is there."""
    present = [item for item in poolers if item.database == pooled.name]
    least = sum(item.floor for item in pooled.consumers)
    leaving = any(item.terminating for item in present)
    free = least if pooled.replaceable and not leaving and share >= 2 * least else 0
    kept = TARGET(replace(pooled, replaceable=False), share - free, present, record, bottleneck)
    return replace(kept, pods=max(1, share // least))


def _always_adds_a_pod_first(replicas: int, most_pods: int | None) -> tuple[int, int]:
    return replicas if most_pods is None else min(replicas, most_pods), 1


def _runs_all_that_are_wanted(replicas: int, most_pods: int | None) -> tuple[int, int]:
    return replicas, scale(replicas, most_pods)[1]


HANGING: dict[str, tuple[tuple[str, ...], Callable[..., Any], World]] = {
    "keeps the successor's room from the successor": (
        ("poolkeeper.budget.targets.target", "tests.fast.budget.model.target"),
        _keeps_the_successors_room_from_the_successor,
        ROOM_FOR_TWO_AND_SOME,
    ),
    "adds a pod first where there is no room": (
        ("tests.fast.budget.model.scale",),
        _always_adds_a_pod_first,
        replace(REPLACED, server=2),
    ),
    "runs more pods than there is room for": (
        ("tests.fast.budget.model.scale",),
        _runs_all_that_are_wanted,
        replace(REPLACED, server=1),
    ),
}


@pytest.mark.parametrize("name", HANGING)
def test_f2_a_rollout_that_never_ends_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    places, broken, world = HANGING[name]
    first = start(replace(world))
    for place in places:
        monkeypatch.setattr(place, broken)
    assert "hangs" in replace(world).hanging(first)
    monkeypatch.setattr("tests.fast.budget.test_model.start", lambda _: first)
    with pytest.raises(Broken, match=r"wait|hangs"):
        explore(replace(world), unsettled)


def test_a_protocol_that_takes_an_entry_away_while_clients_log_in_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "removable", _takes_any)
    with pytest.raises(Broken, match="lost an entry"):
        explore(replace(LEAVES), lost_entries)


ASSUMPTIONS = {
    "writes take effect whatever was written since": replace(TAKEN_OVER, preconditions=False),
    "a pod serves before it has an allotment": replace(REPLACED, careful_pods=False),
}


@pytest.mark.parametrize("name", ASSUMPTIONS)
def test_what_the_protocol_relies_on_is_needed(name: str) -> None:
    with pytest.raises(Broken, match=r"\d connections of \d"):
        explore(ASSUMPTIONS[name], too_many)


# Larger worlds, at random


def _large(second: int | None) -> World:
    first = (pooled("a", 3, 100, 200, 50, sessions=1), pooled("b", 2, 100, 100))
    then = (pooled("a", 2, 100, 200, sessions=1), pooled("b", 4, 100, 100, 400, most=second))
    return World(server=40, specs=(first, then, first), pods=14, epochs=4)


@pytest.mark.parametrize("second", [None, 8, 12])
def test_f2_in_a_larger_world_rollouts_and_scaling_end(second: int | None) -> None:
    world = _large(second)
    state = start(world)
    for spec in range(len(world.specs)):
        state, held_up = world.deployed(world.settled(state._replace(spec=spec)))
        assert not held_up
        assert not world.hanging(state)


class Cluster(RuleBasedStateMachine):
    """A random walk; now and then somebody does all that there is to do, so that it gets far."""

    @initialize(second=st.sampled_from([None, 8, 12]), foreign=st.sampled_from([(0,), (0, 15, 3, 30)]))
    def begin(self, second: int | None, foreign: tuple[int, ...]) -> None:
        self.world = replace(_large(second), foreign=foreign)
        self.state = start(self.world)

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        events = list(self.world.events(self.state))
        self.state = events[data.draw(st.integers(0, len(events) - 1))][1](self.state) if events else self.state

    @rule()
    def the_operator_looks_at_everything(self) -> None:
        self._all("hear", "read", "measure")

    @rule()
    def the_operator_writes(self) -> None:
        self._all("write", "admit")

    @rule()
    def kubelets_bring_files(self) -> None:
        self._all("files", "reads", "gives back")

    def _all(self, *words: str) -> None:
        """Everything of these kinds that there is to be done now, side by side."""
        for word in words:
            for name, happen in list(self.world.events(self.state)):
                if word in name:
                    self.state = happen(self.state)

    @invariant()
    def nothing_is_too_much(self) -> None:
        if hasattr(self, "world"):
            assert too_many(self.world, self.state, "") is None
            assert lost_entries(self.world, self.state, "") is None
            assert not self.world.overdrawn
            assert not self.world.uncovered(self.state)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            assert not self.world.unsatisfied(self.world.settled(self.state))


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    phases=[Phase.generate],  # a failing walk is a short read; making it shorter takes minutes
    suppress_health_check=[HealthCheck.too_slow],
)
