"""Whatever the share, rollouts and scaling end, or a problem says why not, and its remedy ends them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolkeeper.budget.division import Consumer, Division
from poolkeeper.budget.overhang import explained
from poolkeeper.budget.problems import ENTRIES_LEFT_OUT, PODS_WAIT, of_pods
from poolkeeper.budget.protocol import Allotment, Pooler, Record
from poolkeeper.budget.shares import Pooled, shares
from poolkeeper.budget.targets import target
from poolkeeper.desired.deployment import scale
from tests.fast.budget.model import World, pooled, start
from tests.fast.budget.rollouts import Turn, turn
from tests.fast.budget.states import State

MOST_REPLICAS = 5
WEB = Consumer("web", "web.session", sessions=2)
LEAST = WEB.floor


def spec(replicas: int, consumers: int, sessions: int) -> Pooled:
    made = pooled("a", replicas, *([100] * consumers), sessions=sessions)
    return replace(made, replaceable=replicas == 1)


def of_one(share: int, *specs: Pooled) -> World:
    """One PooledDatabase that has a share, and changes from each spec to the next."""
    return World(server=share, specs=tuple((item,) for item in specs), pods=0)


def after_a_rollout(world: World, state: State) -> State:
    after, held_up = world.deployed(state, frozenset(range(len(state.pods))))
    assert not held_up
    return after


def check_all_ends(share: int, before: Pooled, then: Pooled) -> None:
    """A rollout; a change of the spec alone; and both at once."""
    world = of_one(share, before, then)
    first = start(world)
    assert world.deployed(first) == (first, "")
    after_a_rollout(world, first)
    changed = world.settled(first._replace(spec=1))
    scaled, held_up = world.deployed(changed)
    assert not held_up
    after = after_a_rollout(world, changed)
    if share >= sum(item.floor for item in then.consumers):
        assert not world.unsatisfied(scaled)
        assert not world.unsatisfied(after)


@pytest.mark.parametrize("sessions", [0, 2])
@pytest.mark.parametrize("replicas", range(MOST_REPLICAS + 1))
def test_f2_rollouts_and_scaling_end_with_every_share(replicas: int, sessions: int) -> None:
    now = spec(replicas, 1, sessions)
    least = now.consumers[0].floor
    for share in range(1, least * (replicas + 3)):
        check_all_ends(share, now, spec((replicas + share) % (MOST_REPLICAS + 1), 1, sessions))


@given(
    st.integers(1, 50), st.integers(1, 50), st.integers(0, 2), st.integers(0, 3), st.integers(0, 3), st.data()
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_f2_rollouts_end_however_many_consumers_there_are(
    before: int, then: int, sessions: int, replicas: int, scaled: int, data: st.DataObject
) -> None:
    """The interesting shares are those around a multiple of the least."""
    fits = data.draw(st.integers(0, replicas + 2), "pods")
    share = max(1, fits * before * (1 + sessions) + data.draw(st.integers(-1, before), "some"))
    check_all_ends(share, spec(replicas, before, sessions), spec(scaled, then, sessions))


@pytest.mark.parametrize("share", range(2 * LEAST, 3 * LEAST))
def test_f2_the_only_pods_successor_gets_the_room_that_is_kept_for_it(share: int) -> None:
    only = Pooled("a", 100, share, 1, (WEB,), replaceable=True)
    old = Pooler("old", "a", admitted=True)
    alone = target(only, share, [old], Record(0))
    assert sum(alone.caps["old"].values()) == share - LEAST
    record = Record(0, {"old": Allotment(share - LEAST, 1, alone.caps["old"])})
    both = target(only, share, [old, Pooler("new", "a")], record)
    assert both.caps.keys() == {"old", "new"}
    assert sum(sum(caps.values()) for caps in both.caps.values()) == share
    assert both.problems == ()
    assert scale(1, both.pods) == (1, 1), "the service goes on meanwhile"


def test_f2_a_pod_that_waits_for_one_that_leaves_is_no_problem_and_no_entry_is_left_out() -> None:
    only = Pooled("a", 100, 5, 1, (WEB,), replaceable=True)
    record = Record(0, {"old": Allotment(5, 1, {"web": 3, "web.session": 2})})
    poolers = [Pooler("old", "a", admitted=True, terminating=True), Pooler("new", "a")]
    waiting = target(only, 5, poolers, record)
    assert (dict(waiting.caps), waiting.left_out, waiting.problems) == ({}, (), ())
    gone = target(only, 5, poolers[1:], Record(0))
    assert gone.caps == {"new": {"web": 3, "web.session": 2}}


# Remedies, executed as printed


@pytest.mark.parametrize("replicas", range(1, MOST_REPLICAS + 1))
@pytest.mark.parametrize("share", range(1, 2 * LEAST))
def test_f2_what_a_share_of_less_than_the_least_leaves_out_has_a_remedy(share: int, replicas: int) -> None:
    few = Pooled("a", 100, share, replicas, (WEB,), replaceable=replicas == 1)
    said = target(few, share, [Pooler("only", "a")], Record(0), f"spec.budget.maxConnections (now {share})")
    if share >= LEAST:
        assert said.problems == ()
        return
    [problem] = said.problems
    assert problem.reason == ENTRIES_LEFT_OUT
    assert "set limits.sessionConnections to 0" in problem.message
    assert problem.message.endswith(f"or raise spec.budget.maxConnections (now {share})")
    assert "replicas" not in problem.message, "each pod needs the least, and one has not got it"
    for remedied, enough in ((replace(few, consumers=(replace(WEB, sessions=0),)), share), (few, LEAST)):
        world = of_one(enough, remedied)
        assert not world.unsatisfied(start(world))
        assert not world.hanging(start(world))


@pytest.mark.parametrize(
    ("served", "replicas", "remedy"),
    [
        (1, 3, ", lower spec.pooler.replicas to 1, or raise X"),
        (2, 3, ", lower spec.pooler.replicas to 2, or raise X"),
        (1, 1, "no session, or raise X"),
        (3, 3, "no session, or raise X"),
        (0, 3, "no session, or raise X"),
    ],
)
def test_f2_fewer_replicas_are_named_only_where_they_help(served: int, replicas: int, remedy: str) -> None:
    [problem] = of_pods(12, 4, served, 4, "X", replicas)
    assert problem.reason == PODS_WAIT
    assert problem.message.endswith(remedy)
    named = re.search(r"spec.pooler.replicas to (\d)", problem.message)
    assert named is None or int(named[1]) == served < replicas


# Several PooledDatabases on a server


def of_two(server: int, replicas: int, consumers: int, others: int) -> World:
    """One PooledDatabase serves, and another one in another namespace begins."""
    one, none, other = (
        replace(pooled(name, pods, *([100] * count)), replaceable=pods == 1)
        for name, pods, count in (("x/a", replicas, consumers), ("y/b", 0, others), ("y/b", 1, others))
    )
    return World(server=server, specs=((one, none), (one, other)), pods=0)


def divisions(world: World, state: State) -> dict[str, Division]:
    view, databases = world.view(state), world.specs[state.spec]
    given = shares(world.server, databases)
    found = {
        item.name: target(item, given[item.name], view.poolers, view.records[item.name]) for item in databases
    }
    assert view.usable is not None
    return explained(found, given, view.records, view.usable)


@pytest.mark.parametrize("server", range(1, 9))
@pytest.mark.parametrize(("consumers", "others"), [(1, 1), (2, 1), (3, 1), (3, 2), (2, 3)])
@pytest.mark.parametrize("replicas", [1, 2])
def test_f2_one_that_begins_is_served_or_says_why_not(
    server: int, consumers: int, others: int, replicas: int
) -> None:
    world = of_two(server, replicas, consumers, others)
    state, held_up = world.deployed(world.settled(start(world)._replace(spec=1)))
    said = divisions(world, state)["y/b"].problems
    if server >= consumers + others:
        assert (held_up, said) == ("", ())
        assert not world.hanging(state)
    if not held_up:
        return
    if said[0].reason == ENTRIES_LEFT_OUT:
        assert shares(server, world.specs[1])["y/b"] < others
        return
    assert [problem.reason for problem in said] == [PODS_WAIT]
    named = re.search(r"raise max_connections of the server by (\d+)$", said[0].message)
    assert named is not None
    larger = of_two(server + int(named[1]), replicas, consumers, others)
    begun, held_up = larger.deployed(larger.settled(state))
    assert not held_up
    assert divisions(larger, begun)["y/b"].problems == ()
    after_a_rollout(larger, begun)


# The controller that the model has


def test_with_room_for_one_pod_more_it_comes_first_and_the_old_ones_go_one_by_one() -> None:
    assert turn({0: True, 1: True}, {0, 1}, 2, 1) == Turn(made=1)
    assert turn({0: True, 1: True, 2: False}, {0, 1}, 2, 1) == Turn()
    assert turn({0: True, 1: True, 2: True}, {0, 1}, 2, 1) == Turn(deleted=(0,))
    assert turn({1: True, 2: True}, {0, 1}, 2, 1) == Turn(made=1)
    assert turn({2: True, 3: True}, {0, 1}, 2, 1) == Turn()


def test_without_room_an_old_one_goes_first() -> None:
    assert turn({0: True, 1: True}, {0, 1}, 2, 0) == Turn(deleted=(0,))
    assert turn({1: True}, {0, 1}, 2, 0) == Turn(made=1)
    assert turn({1: True, 2: False}, {0, 1}, 2, 0) == Turn()
    assert turn({1: True, 2: True}, {0, 1}, 2, 0) == Turn(deleted=(1,))


def test_old_pods_that_do_not_serve_go_first_and_surplus_ones_go_whatever_their_template() -> None:
    assert turn({0: True, 1: False, 2: False}, {0, 1}, 2, 1) == Turn()
    assert turn({0: True, 1: False}, {0, 1}, 1, 1) == Turn(deleted=(1,))
    assert turn({0: True, 1: True, 2: False}, frozenset(), 1, 1) == Turn(deleted=(2, 1))
    assert turn({0: True}, {0}, 0, 1) == Turn(deleted=(0,))
