"""WithinBudget and status.budget: each reason, in the words of the arithmetic itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poolkeeper.budget.division import Consumer, Limit, Server, divide
from poolkeeper.budget.protocol import Pooler, Record
from poolkeeper.budget.seen import BudgetSeen
from poolkeeper.budget.shares import Pooled, bottleneck, shares
from poolkeeper.budget.targets import target
from poolkeeper.consumers.entries import entry_name, session_entry_name
from poolkeeper.plan.status import status
from poolkeeper.plan.wanted import want
from poolkeeper.spec.parse import PooledDatabase
from tests.fast.worlds import NOW, SETTINGS, Simulation, ready_pod

SERVER = Server(max_connections=100, superuser_reserved=3, reserved=0, others=7)
SEEN = BudgetSeen(
    server="0123abcd",
    arithmetic=SERVER.arithmetic(5),
    max_connections=100,
    others=7,
    reserve=5,
    usable=85,
    share=40,
    shared_with=1,
    held=38,
    pods={"shop-pooler-2": 19, "shop-pooler-1": 19},
    most_pods=13,
)
WEB, API = Consumer("web", "web.session", sessions=2), Consumer("api", "api.session", sessions=2)


@pytest.fixture
def cluster() -> Simulation:
    made = Simulation(pods=(ready_pod(1), ready_pod(2)), budget=None)
    made.settle()
    return made


def told(cluster: Simulation, seen: BudgetSeen | None) -> dict[str, Any]:
    """The status as it is once this is known of the budget."""
    world = replace(cluster.world(), budget=seen)
    assert world.resource is not None
    spec = world.resource.spec
    assert isinstance(spec, PooledDatabase)
    body, _ = status.of(spec, want(spec, world, SETTINGS, NOW), world, NOW + timedelta(seconds=1))
    return dict(world.resource.status) if body is None else body


def condition(cluster: Simulation, seen: BudgetSeen | None, kind: str = "WithinBudget") -> tuple[str, str, str]:
    found = next(item for item in told(cluster, seen)["conditions"] if item["type"] == kind)
    return found["status"], found["reason"], found["message"]


def test_what_fits_is_said_with_arithmetic_and_share(cluster: Simulation) -> None:
    assert condition(cluster, SEEN) == (
        "True",
        "WithinBudget",
        "connections for poolers: 100 (max_connections) - 3 (superuser_reserved_connections) - 5 "
        "(spec.budget.reserve) - 7 (held by others) = 85, shared with 1 other PooledDatabase; the share of "
        "this PooledDatabase is 40, and its pods may hold 38",
    )


def test_the_status_holds_the_amounts(cluster: Simulation) -> None:
    assert told(cluster, SEEN)["budget"] == {
        "summary": "38/40",
        "server": "0123abcd",
        "maxConnections": 100,
        "others": 7,
        "reserve": 5,
        "usable": 85,
        "arithmetic": SERVER.arithmetic(5),
        "sharedWith": 1,
        "share": 40,
        "held": 38,
        "pods": [{"name": "shop-pooler-1", "connections": 19}, {"name": "shop-pooler-2", "connections": 19}],
        "waitingPods": 0,
    }


def test_of_many_pods_the_first_ten_are_listed(cluster: Simulation) -> None:
    seen = replace(SEEN, pods={f"pod-{number:02}": 1 for number in range(30)}, waiting=("a", "b"))
    body = told(cluster, seen)["budget"]
    assert [item["name"] for item in body["pods"]] == [f"pod-{number:02}" for number in range(10)]
    assert body["waitingPods"] == 2


def test_the_same_budget_is_not_written_again(cluster: Simulation) -> None:
    cluster.status = told(cluster, SEEN)
    world = replace(cluster.world(), budget=SEEN)
    assert world.resource is not None
    spec = world.resource.spec
    assert isinstance(spec, PooledDatabase)
    later = NOW + timedelta(days=1)
    assert status.of(spec, want(spec, world, SETTINGS, NOW), world, later) == (None, ())


def test_before_the_first_measurement_nothing_is_known(cluster: Simulation) -> None:
    assert condition(cluster, None)[:2] == ("Unknown", "ServerNotMeasured")
    assert "budget" not in told(cluster, None)


def test_a_restarted_operator_reports_what_was_known_until_it_knows_better(cluster: Simulation) -> None:
    cluster.status = told(cluster, SEEN)
    assert told(cluster, None) == cluster.status
    unknown = told(cluster, BudgetSeen(problem="the server does not answer"))
    assert unknown["budget"] == cluster.status["budget"]


def test_a_server_that_could_not_be_measured_is_unknown_with_the_remedy(cluster: Simulation) -> None:
    seen = BudgetSeen(problem="the login has no right to read pg_settings; grant it")
    state, reason, message = condition(cluster, seen)
    assert (state, reason) == ("Unknown", "ServerNotMeasured")
    assert message.startswith("the login has no right to read pg_settings; grant it; until then pods keep")
    assert "budget" not in told(cluster, seen)


def test_a_problem_of_a_known_server_leaves_its_amounts(cluster: Simulation) -> None:
    seen = replace(SEEN, problem="the server does not answer")
    assert condition(cluster, seen)[0] == "Unknown"
    assert told(cluster, seen)["budget"]["share"] == 40


def test_scaled_to_zero_holds_nothing_and_is_within_the_budget(cluster: Simulation) -> None:
    cluster.edit(pooler={"replicas": 0})
    assert condition(cluster, None)[:2] == ("True", "ScaledToZero")
    assert condition(cluster, replace(SEEN, held=0, share=0, most_pods=1))[:2] == ("True", "ScaledToZero")
    leaving = replace(SEEN, held=9, share=0, excess=9)
    assert condition(cluster, leaving)[:2] == ("False", "Overcommitted")


def test_more_held_than_there_is_names_the_amount_and_what_happens(cluster: Simulation) -> None:
    state, reason, message = condition(cluster, replace(SEEN, excess=12))
    assert (state, reason) == ("False", "Overcommitted")
    for words in ("by 12 connections", "nothing new is given", "raise its max_connections", "= 85"):
        assert words in message


def test_pods_that_do_not_fit_wait(cluster: Simulation) -> None:
    divided = divide(10, ["a"], ["b"], [WEB, API])
    seen = replace(SEEN, share=10, problems=divided.problems, waiting=("b",), most_pods=divided.pods)
    state, reason, message = condition(cluster, seen)
    assert (state, reason) == ("False", "PodsWait")
    assert divided.problems[0].message in message


@pytest.mark.parametrize(
    ("pooled", "limits", "larger"),
    [
        (Pooled("shop", 100, None, 2, (WEB, API)), (), "max_connections of the server"),
        (Pooled("shop", 100, 8, 2, (WEB, API)), (), "spec.budget.maxConnections (now 8)"),
        (Pooled("shop", 100, 1000, 2, (WEB, API)), (), "max_connections of the server"),
        (
            Pooled("shop", 100, None, 2, (replace(WEB, limit=6), replace(API, limit=6))),
            (),
            "limits.maxConnections of the consumers",
        ),
        (
            Pooled("shop", 100, None, 2, (WEB, API)),
            (Limit(frozenset({"shop", "blog"}), 20),),
            "the CONNECTION LIMIT of the upstream's role or database",
        ),
        (
            Pooled("shop", 100, 8, 2, (WEB, API)),
            (Limit(frozenset({"shop", "blog"}), 60),),
            "spec.budget.maxConnections (now 8)",
        ),
    ],
)
def test_c9_the_remedy_names_what_is_small(
    cluster: Simulation, pooled: Pooled, limits: tuple[Limit, ...], larger: str
) -> None:
    blog = Pooled("blog", 100, None, 1, (Consumer("blog", "blog.session"),))
    given = shares(40, [pooled, blog], limits)
    assert bottleneck(pooled, given, limits) == larger
    poolers = [Pooler(name, "shop", running=True) for name in ("a", "b", "c", "d", "e", "f", "g", "h")]
    divided = target(pooled, given["shop"], poolers, Record(1), larger)
    assert divided.problems[0].message.endswith(f"or raise {larger}")
    seen = replace(SEEN, share=given["shop"], problems=divided.problems, bottleneck=divided.bottleneck)
    assert f"or raise {larger}" in condition(cluster, seen)[2]
    fewer = condition(cluster, replace(seen, problems=(), most_pods=1))[2]
    assert f"or raise {larger}" in fewer


def test_floors_above_the_share_are_overcommitted(cluster: Simulation) -> None:
    in_force = frozenset({"web", "web.session", "api", "api.session"})
    divided = divide(10, ["a", "b"], [], [WEB, API], in_force)
    state, reason, message = condition(cluster, replace(SEEN, share=10, problems=divided.problems))
    assert (state, reason) == ("False", "Overcommitted")
    assert "2 more are held than there should be" in message


def test_entries_without_a_connection_are_named(cluster: Simulation) -> None:
    divided = divide(4, ["a"], [], [WEB, API])
    assert set(divided.left_out) == {"api.session"}
    seen = replace(SEEN, problems=divided.problems, left_out=frozenset(divided.left_out))
    state, reason, message = condition(cluster, seen)
    assert (state, reason) == ("False", "EntriesLeftOut")
    assert "api.session" in message


def test_a_limit_below_the_floors_is_named(cluster: Simulation) -> None:
    divided = divide(40, ["a", "b"], [], [replace(WEB, limit=5)])
    state, reason, message = condition(cluster, replace(SEEN, problems=divided.problems))
    assert (state, reason) == ("False", "LimitTooSmall")
    assert "raise it to 6" in message


def test_of_several_problems_the_gravest_is_the_reason_and_all_are_told(cluster: Simulation) -> None:
    divided = divide(8, ["a"], ["b"], [replace(WEB, limit=3), API])
    seen = replace(SEEN, excess=1, problems=(*divided.problems, *divide(4, ["a"], [], [WEB, API]).problems))
    _, reason, message = condition(cluster, seen)
    assert reason == "Overcommitted"
    for words in ("pooler pods wait", "no connection is left", "by 1 connection "):
        assert words in message


def test_a_pod_that_waits_for_a_moment_is_no_fault(cluster: Simulation) -> None:
    assert condition(cluster, replace(SEEN, waiting=("shop-pooler-2",)))[0] == "True"


def test_replicas_that_are_not_run_are_a_fault(cluster: Simulation) -> None:
    state, reason, message = condition(cluster, replace(SEEN, share=4, most_pods=1))
    assert (state, reason) == ("False", "PodsWait")
    assert "spec.pooler.replicas is 2" in message
    assert "enough for 1 pod," in message


def test_f2_the_replicas_that_the_remedy_names_are_enough(cluster: Simulation) -> None:
    for most in (1, 2, 4):
        cluster.edit(pooler={"replicas": 5})
        seen = replace(SEEN, share=6 * most, most_pods=most)
        assert f"; lower the replicas to {most}, remove consumers," in condition(cluster, seen)[2]
        cluster.edit(pooler={"replicas": most})
        assert condition(cluster, seen)[:2] == ("True", "WithinBudget")


def test_without_consumers_no_number_of_pods_is_too_many(cluster: Simulation) -> None:
    cluster.edit(consumers=[])
    state, _, message = condition(cluster, replace(SEEN, share=0, held=0, most_pods=1))
    assert state == "True"
    assert "rollout" not in message


@pytest.mark.parametrize(("replicas", "words"), [(2, "a rollout goes on with one less"), (1, "interrupts")])
def test_no_room_for_a_rollouts_pod_is_said_and_no_fault(
    cluster: Simulation, replicas: int, words: str
) -> None:
    cluster.edit(pooler={"replicas": replicas})
    state, _, message = condition(cluster, replace(SEEN, most_pods=replicas))
    assert state == "True"
    assert words in message


def test_the_condition_leaves_ready_alone(cluster: Simulation) -> None:
    assert condition(cluster, replace(SEEN, excess=12), "Ready")[0] == "True"


def test_a_transition_is_an_event_and_so_is_a_fault_from_the_start(cluster: Simulation) -> None:
    world = replace(cluster.world(), budget=replace(SEEN, excess=1))
    assert world.resource is not None
    spec = world.resource.spec
    assert isinstance(spec, PooledDatabase)
    for before in (cluster.status, {}):
        known = replace(world, resource=replace(world.resource, status=before))
        _, events = status.of(spec, want(spec, known, SETTINGS, NOW), known, NOW)
        assert ("Warning", "Overcommitted") in {(event.type, event.reason) for event in events}


def test_a_consumer_without_a_connection_is_not_synced(cluster: Simulation) -> None:
    consumer = want_consumer(cluster)
    seen = replace(SEEN, left_out=frozenset({entry_name("shop", consumer)}))
    state, reason, message = condition(cluster, seen, "ConsumersSynced")
    assert (state, reason) == ("False", "NoConnectionLeft")
    assert "WithinBudget" in message
    assert told(cluster, seen)["consumers"]["synced"] == 0


def test_a_consumer_without_its_session_entry_alone_is_synced(cluster: Simulation) -> None:
    seen = replace(SEEN, left_out=frozenset({session_entry_name("shop", want_consumer(cluster))}))
    assert condition(cluster, seen, "ConsumersSynced")[0] == "True"


def want_consumer(cluster: Simulation) -> Any:
    world = cluster.world()
    assert world.resource is not None
    spec = world.resource.spec
    assert isinstance(spec, PooledDatabase)
    [consumer] = want(spec, world, SETTINGS, NOW).consumers.granted
    return consumer
