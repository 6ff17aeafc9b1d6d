"""What plan() makes of the budget: it carries tables on, lets pods in, holds logins back, decides on no cap."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

from poolkeeper import names
from poolkeeper.budget import allotments
from poolkeeper.budget.seen import BudgetSeen
from poolkeeper.consumers.consent import Consumer
from poolkeeper.consumers.entries import entry_name, session_entry_name
from poolkeeper.observed.consoles import Shown
from poolkeeper.observed.namespaces import Namespace
from poolkeeper.observed.refs import Ref
from tests.fast.worlds import CONFIG, Simulation, new_pod, ready_pod

WEB = entry_name("shop", Consumer("web", "database"))
WEB_SESSION = session_entry_name("shop", Consumer("web", "database"))
DEPLOYMENT = Ref("Deployment", "data", "shop-pooler")
API_SECRET = Ref("Secret", "api", "database")


def with_second_consumer(cluster: Simulation) -> str:
    """Add a consumer; returns the name of its entry."""
    cluster.namespaces["api"] = Namespace({}, "data", terminating=False)
    cluster.edit(consumers=[{"namespace": "web"}, {"namespace": "api"}])
    return entry_name("shop", Consumer("api", "database"))


# Tables


def test_a_pod_reads_its_own_table_and_nothing_else_has_the_entries() -> None:
    cluster = Simulation(pods=(ready_pod(1), ready_pod(2)))
    cluster.settle()
    files = cluster.values("data", "shop-pooler-config")
    assert "[databases]" not in files["pgbouncer.ini"]
    for number in (1, 2):
        table = files[f"caps-pod-{number}.ini"]
        assert table.startswith("syslog_ident = caps-1\n[databases]\n")
        assert f"{WEB} = host='pg.data.svc'" in table
        assert cluster.pods[number - 1].lines == (
            f"peer_id = {number}\n%include /etc/poolkeeper/caps-pod-{number}.ini\n"
        )


def test_reconciles_own_object_holds_nothing_of_the_budget() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    owned = cluster.objects[CONFIG]["data"]
    assert not [name for name in owned if name == allotments.RECORD_FILE or name.startswith("caps-")]


def test_tables_follow_the_lines_and_the_record_stays() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    before = cluster.tables
    cluster.allotting = False
    cluster.secrets = {"shop-owner": {"username": b"shop_owner", "password": b"rotated"}}
    cluster.log.clear()
    written: list[dict[str, Any]] = []
    for _ in range(8):
        steps = cluster.step()
        written += [steps.tables] if steps.tables else []
    assert cluster.tables[allotments.RECORD_FILE] == before[allotments.RECORD_FILE]
    assert cluster.tables["caps-pod-1.ini"] == before["caps-pod-1.ini"].replace("upstream-password", "rotated")
    [body] = written
    assert body["metadata"]["uid"] == f"uid-of-{CONFIG.name}"
    assert body["metadata"]["resourceVersion"] == "7"
    reload = next(index for index, line in enumerate(cluster.log) if line.startswith("reload"))
    assert cluster.log.index("tables") < reload


def test_a_table_spoilt_by_hand_is_written_again() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    whole = dict(cluster.tables)
    cluster.tables = {**whole, "caps-pod-1.ini": "syslog_ident = caps-1\n[databases]\n"}
    cluster.allotting = False
    assert cluster.step().tables is not None
    assert cluster.tables == whole


def test_a_table_that_has_become_an_entry_poorer_is_looked_at_again() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    cluster.allotting = False
    order = cluster.plan().budget
    assert order is not None
    cluster.allot(order, {"pod-1": {WEB: 5}})
    [reload] = cluster.plan().reload
    assert set(reload.configuration.databases) == {WEB}
    cluster.allot(order, {"pod-1": {WEB: 4}})
    cluster.step()
    assert not cluster.plan().reload
    cluster.allot(order, {"pod-1": {WEB: 3}})
    assert not cluster.plan().reload, "caps are the budget's to bring"


def test_a_pod_keeps_including_its_table_when_the_record_is_gone() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    lines = cluster.pods[0].lines
    del cluster.objects[CONFIG]
    cluster.tables, cluster.allotting = {}, False
    for _ in range(8):
        cluster.step()
    assert CONFIG in cluster.objects
    assert cluster.pods[0].lines == lines


def test_a_pod_without_an_allotment_includes_no_table() -> None:
    cluster = Simulation(pods=(ready_pod(1), new_pod(2)), allotting=False)
    for _ in range(8):
        cluster.step()
    assert [pod.lines for pod in cluster.pods] == ["peer_id = 1", "peer_id = 2"]


# Logins


def test_a_login_is_handed_out_once_every_serving_pod_has_a_connection_for_it() -> None:
    cluster = Simulation(pods=(ready_pod(1), ready_pod(2)))
    cluster.settle()
    cluster.allotting = False
    api = with_second_consumer(cluster)
    order = cluster.plan().budget
    assert order is not None
    assert api in order.lines
    both, old = dict.fromkeys(order.lines, 2), {WEB: 2, WEB_SESSION: 2}
    for caps in ({"pod-1": old, "pod-2": old}, {"pod-1": both, "pod-2": old}):
        cluster.allot(order, caps)
        for _ in range(8):
            cluster.step()
        assert API_SECRET not in cluster.objects
    cluster.allot(order, {"pod-1": both, "pod-2": both})
    cluster.settle()
    assert API_SECRET in cluster.objects


def test_a_pod_that_waits_or_goes_holds_no_login_back() -> None:
    cluster = Simulation(pods=(ready_pod(1), new_pod(2), replace(ready_pod(3), terminating=True)))
    cluster.allotting = False
    cluster.settle()
    order = cluster.plan().budget
    assert order is not None
    cluster.allot(order, {"pod-1": dict.fromkeys(order.lines, 2)})
    cluster.settle()
    assert Ref("Secret", "web", "database") in cluster.objects


def test_what_was_handed_out_goes_when_its_entry_is_left_out() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    assert Ref("Secret", "web", "database") in cluster.objects
    cluster.budget = BudgetSeen(server="0a1b2c3d", left_out=frozenset({WEB}))
    cluster.settle()
    assert Ref("Secret", "web", "database") not in cluster.objects


def test_where_no_connection_is_left_no_login_is_handed_out() -> None:
    cluster = Simulation(budget=BudgetSeen(server="0a1b2c3d", left_out=frozenset({WEB})))
    cluster.settle()
    assert Ref("Secret", "web", "database") not in cluster.objects
    [failing] = cluster.status["consumers"]["failing"]
    assert failing["reason"] == "NoConnectionLeft"


# Admission


def admitting(cluster: Simulation) -> list[str]:
    return [pod.name for pod in cluster.plan().admit]


def test_a_pod_is_admitted_once_it_shows_its_configuration() -> None:
    cluster = Simulation(pods=(new_pod(),))
    cluster.settle()
    assert cluster.pods[0].admitted
    reload = next(index for index, line in enumerate(cluster.log) if line.startswith("reload"))
    assert reload < cluster.log.index("admit shop-pooler-1")


def test_nobody_is_admitted_whom_the_budget_does_not_name() -> None:
    cluster = Simulation(pods=(new_pod(),))
    cluster.settle()
    cluster.pods = (replace(cluster.pods[0], admitted=False),)
    assert admitting(cluster) == ["shop-pooler-1"]
    cluster.allotting = False
    assert cluster.budget is not None
    for seen in (None, cluster.budget, replace(cluster.budget, admissible=frozenset({"pod-2"}))):
        cluster.budget = seen
        assert admitting(cluster) == []


def test_a_pod_that_shows_something_else_or_restarted_is_not_admitted() -> None:
    cluster = Simulation(pods=(new_pod(),))
    cluster.settle()
    shown = cluster.shown["pod-1"]
    waiting = replace(cluster.pods[0], admitted=False, ready=False)
    for pod, said in (
        (waiting, Shown(shown.generation, shown.restarts, "entry x is not shown")),
        (replace(waiting, restarts=1), shown),
        (replace(waiting, running=False), shown),
        (replace(waiting, terminating=True), shown),
    ):
        cluster.pods, cluster.shown = (pod,), {"pod-1": said}
        assert admitting(cluster) == []
    cluster.pods, cluster.shown = (waiting,), {"pod-1": shown}
    assert admitting(cluster) == ["shop-pooler-1"]


def test_who_is_in_is_not_let_in_again() -> None:
    cluster = Simulation(pods=(new_pod(),))
    cluster.settle()
    assert admitting(cluster) == []


# The Deployment


def strategy(replicas: int, most_pods: int | None) -> tuple[int, int, int]:
    """(replicas, maxSurge, maxUnavailable)."""
    cluster = Simulation(budget=BudgetSeen(server="0a1b2c3d", most_pods=most_pods))
    cluster.edit(pooler={"replicas": replicas})
    cluster.settle()
    spec = cluster.objects[DEPLOYMENT]["spec"]
    rolling = spec["strategy"]["rollingUpdate"]
    return spec["replicas"], rolling["maxSurge"], rolling["maxUnavailable"]


def test_a_rollout_adds_a_pod_first_where_there_is_room_for_it() -> None:
    assert strategy(2, None) == (2, 1, 0)
    assert strategy(2, 3) == (2, 1, 0)


def test_where_there_is_no_room_a_rollout_takes_one_away_first() -> None:
    assert strategy(2, 2) == (2, 0, 1)
    assert strategy(1, 1) == (1, 0, 1)


def test_no_more_pods_are_made_than_there_is_room_for() -> None:
    assert strategy(5, 3) == (3, 0, 1)
    assert strategy(2, 0) == (0, 0, 1)


def test_a_restarted_operator_leaves_the_deployment_alone_until_it_has_measured() -> None:
    for replicas, most_pods in ((5, 3), (2, 2), (2, 9)):
        cluster = Simulation(budget=BudgetSeen(server="0a1b2c3d", most_pods=most_pods))
        cluster.edit(pooler={"replicas": replicas})
        cluster.settle()
        before = cluster.objects[DEPLOYMENT]
        for seen in (None, BudgetSeen(problem="no answer")):
            cluster.budget = seen
            cluster.settle()
            assert cluster.objects[DEPLOYMENT] == before


def test_with_room_again_there_are_as_many_pods_as_are_wanted() -> None:
    cluster = Simulation(budget=BudgetSeen(server="0a1b2c3d", most_pods=3))
    cluster.edit(pooler={"replicas": 5})
    cluster.settle()
    cluster.budget = BudgetSeen(server="0a1b2c3d", most_pods=20)
    cluster.settle()
    spec = cluster.objects[DEPLOYMENT]["spec"]
    assert (spec["replicas"], spec["strategy"]["rollingUpdate"]) == (5, {"maxSurge": 1, "maxUnavailable": 0})


def test_pods_wait_for_the_budget_before_they_are_ready() -> None:
    cluster = Simulation()
    cluster.settle()
    template = cluster.objects[DEPLOYMENT]["spec"]["template"]["spec"]
    assert template["readinessGates"] == [{"conditionType": names.GATE}]


# What is asked of the budget


def test_the_order_follows_the_spec() -> None:
    cluster = Simulation()
    cluster.edit(
        budget={"maxConnections": 60, "reserve": 10, "weight": 200},
        pooler={"replicas": 3, "drainSeconds": 40},
        consumers=[
            {"namespace": "web", "weight": 300, "limits": {"maxConnections": 40, "sessionConnections": 4}}
        ],
    )
    cluster.settle()
    order = cluster.plan().budget
    assert order is not None
    [consumer] = order.pooled.consumers
    assert (order.pooled.name, order.pooled.weight, order.pooled.most, order.pooled.pods) == (
        "data/shop",
        200,
        60,
        3,
    )
    assert (consumer.entry, consumer.session_entry, consumer.weight, consumer.limit, consumer.sessions) == (
        WEB,
        WEB_SESSION,
        300,
        40,
        4,
    )
    assert (order.pooled.reserve, order.fixed) == (10, frozenset({WEB_SESSION}))
    assert set(order.lines) == {WEB, WEB_SESSION}
    assert "upstream-password" not in repr(replace(order, target=replace(order.target, password="x")))


def test_in_session_mode_clients_hold_every_entry() -> None:
    cluster = Simulation()
    cluster.edit(pooler={"mode": "session"})
    cluster.settle()
    order = cluster.plan().budget
    assert order is not None
    assert order.fixed == {WEB, WEB_SESSION}


def test_an_invalid_spec_asks_for_nothing() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    cluster.edit(pooler={"parameters": {"bogus": 1}})
    assert cluster.plan().budget is None
    cluster.deleting = True
    assert cluster.plan().budget is None


def test_the_body_of_the_tables_is_readable_text() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    cluster.tables = {**cluster.tables, "caps-pod-1.ini": ""}
    tables = cluster.plan().tables
    assert tables is not None
    assert base64.b64decode(tables["data"]["caps-pod-1.ini"]).startswith(b"syslog_ident = caps-")


def test_the_budget_is_asked_with_the_weight_of_the_namespace() -> None:
    cluster = Simulation()
    cluster.settle()
    cluster.namespaces["data"] = replace(cluster.namespaces["data"], budget_weight=300)
    order = cluster.plan().budget
    assert order is not None
    assert (order.pooled.weight, order.pooled.namespace_weight) == (100, 300)
