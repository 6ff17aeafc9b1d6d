"""Clients that wait in vain, probes, pods to be retired, and what the condition DataPath says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from poolkeeper.budget.assessment import Look
from poolkeeper.budget.protocol import Reading
from poolkeeper.budget.report import newsworthy
from poolkeeper.budget.request import ClientBound
from poolkeeper.budget.seen import BudgetSeen
from poolkeeper.data_path.findings import (
    CALM_SECONDS,
    CLIENTS_WAIT,
    LASTING_SECONDS,
    PROBE,
    RETIRE_SECONDS,
    STUCK,
    UNANSWERED_SECONDS,
    Outcome,
    Probed,
    Reports,
    Waits,
    current,
    excusable,
    probed,
    report,
    retire,
    to_probe,
    waits,
    wedges,
)
from poolkeeper.observed.data_path import Wedge
from poolkeeper.plan.reloads import retiring
from poolkeeper.plan.world import World
from tests.fast.plan.status.test_status import conditions, told
from tests.fast.worlds import Simulation, ready_pod

BOUNDS = (
    ClientBound("web/database", ("shop--web", "shop--web.session"), 10, limited=False),
    ClientBound("api/database", ("shop--api",), 10, limited=False),
)
PODS = {"u1": "shop-pooler-1"}


def look(
    entry: str = "shop--web",
    *,
    cap: int = 4,
    active: int = 0,
    idle: int = 0,
    waiting: int = 0,
    maxwait: int = 0,
    clients: dict[str, int] | None = None,
    **changes: Any,
) -> Look:
    row = {"database": entry, "sv_active": active, "sv_idle": idle, "sv_used": 0, "sv_tested": 0}
    row |= {"sv_active_cancel": 0, "sv_being_canceled": 0, "cl_waiting": waiting, "maxwait": maxwait}
    reading = Reading(1, {entry: cap}, {entry: active + idle})
    made = Look(
        reading, frozenset(), ({name: str(value) for name, value in row.items()},), clients or {entry: 1}
    )
    return replace(made, **changes)


def reported_waits(*looks: Look) -> list[tuple[str, str]]:
    """(kind, consumer) after these looks, one in a second."""
    known: Waits = {}
    for now, seen in enumerate(looks):
        known = waits(known, {"u1": seen}, now)
    return [(wedge.kind, wedge.consumer) for wedge in current(known, {}, PODS, BOUNDS, len(looks) - 1)]


VAIN = look(active=1, waiting=3, maxwait=9)
LONG = int(LASTING_SECONDS) + 1


@pytest.mark.parametrize(
    ("looks", "found"),
    [
        ([VAIN] * LONG, True),
        ([look(active=3, idle=1, waiting=1, maxwait=9)] * LONG, True),
        ([VAIN] * (LONG - 1), False),
        ([look(active=4, waiting=30, maxwait=99)] * LONG, False),  # at work, all of them
        ([look(active=1, waiting=3, maxwait=1)] * LONG, False),
        ([replace(VAIN, paused=frozenset({"shop--web"}))] * LONG, False),
        ([look(cap=0, waiting=3, maxwait=9)] * LONG, False),
        ([look(cap=99, active=n, waiting=3, maxwait=9) for n in range(LONG)], False),  # it grows
        ([*[VAIN] * (LONG - 1), look(active=1)], False),
        ([*[VAIN] * 3, look(active=1), *[VAIN] * (LONG - 1)], False),
    ],
)
def test_clients_that_wait_beside_room_are_reported_once_it_lasts(looks: list[Look], found: bool) -> None:
    assert reported_waits(*looks) == ([(CLIENTS_WAIT, "web/database")] if found else [])


def test_a_probe_that_fails_is_reported_once_it_failed_again_and_forgotten_when_answered() -> None:
    fails = Outcome("shop--web", 10.0, "no answer", silent=True)
    item = probed(Probed(), fails, 12.5)
    assert not list(current({}, {"u1": item}, PODS, BOUNDS, 12.5))
    item = probed(item, replace(fails, begun=13.5), 16.0)
    [wedge] = current({}, {"u1": item}, PODS, BOUNDS, 10 + UNANSWERED_SECONDS)
    assert wedge == Wedge(PROBE, "shop-pooler-1", "web/database", 0, "no answer")
    assert probed(item, replace(fails, said=None), 20.0).failing is None
    assert probed(item, replace(fails, said=""), 20.0) == Probed(answered=20.0)


@pytest.mark.parametrize(
    ("seen", "excused"),
    [
        (look(active=1), False),
        (look(active=4), True),
        (look(active=1, paused=frozenset({"shop--web"})), True),
        (look(cap=0), True),
        (look(clients={"shop--web": 5, "shop--web.session": 4}), True),
        (look(reading=Reading(1, {"shop--web": 4}, {}, frozenset({"shop--web"}))), True),
    ],
)
def test_a_probe_that_may_fail_by_right_is_not_made_and_not_counted(seen: Look, excused: bool) -> None:
    assert excusable(seen, "shop--web", BOUNDS) == excused
    assert bool(to_probe(seen, ["shop--web"], BOUNDS, "", Probed())) != excused


def test_entries_with_clients_are_probed_by_turns_and_one_that_failed_again() -> None:
    caps = {"shop--api": 4, "shop--web": 4, "shop--x": 4}
    seen = look(clients={"shop--api": 1, "shop--web": 2}, reading=Reading(1, caps, {}))
    assert to_probe(seen, caps, BOUNDS, "", Probed()) == "shop--api"
    assert to_probe(seen, caps, BOUNDS, "shop--api", Probed()) == "shop--web"
    assert to_probe(seen, caps, BOUNDS, "shop--web", Probed()) == "shop--api"
    assert to_probe(seen, caps, BOUNDS, "shop--api", Probed("shop--api", 1.0)) == "shop--api"
    assert to_probe(replace(seen, clients={}), caps, BOUNDS, "", Probed()) == ""


SILENT, SERVING = Probed("shop--web", 0.0, "no answer", answered=-4.0), Probed(answered=RETIRE_SECONDS)


@pytest.mark.parametrize(
    ("probes", "pod"),
    [
        ({"a": SILENT, "b": SERVING}, "a"),
        ({"a": SILENT}, ""),
        ({"a": SILENT, "b": SILENT}, ""),
        ({"a": SILENT, "b": SILENT, "c": SERVING}, ""),
        ({"a": SILENT, "b": Probed(answered=0.0)}, ""),  # not lately
        ({"a": replace(SILENT, failing=5.0), "b": SERVING}, ""),
        ({"a": replace(SILENT, silent=False), "b": SERVING}, ""),  # it answers, if with an error
    ],
)
def test_a_pod_is_retired_only_if_it_alone_is_silent_and_another_serves(
    probes: dict[str, Probed], pod: str
) -> None:
    assert retire(probes, RETIRE_SECONDS) == pod


def test_ended_connections_add_up_and_are_told_for_a_calm_minute() -> None:
    one = Wedge(STUCK, "shop-pooler-1", "web/database", 1)
    reports: Reports = {}
    for now, found in ((0.0, [one]), (1.0, []), (2.0, [one])):
        reports = report(reports, found, now)
    assert wedges(reports) == (replace(one, number=2),)
    assert wedges(report(reports, [], 2 + CALM_SECONDS - 1))
    assert not wedges(report(reports, [], 2 + CALM_SECONDS))


def test_words_that_change_are_no_news_and_the_gravest_comes_first() -> None:
    probe = Wedge(PROBE, "shop-pooler-1", "web/database", 0, "no answer")
    first = report({}, [replace(probe, kind=STUCK, number=1), probe], 0.0)
    again = report(first, [replace(probe, said="another error")], 1.0)
    assert wedges(first) == wedges(again)
    assert [wedge.kind for wedge in wedges(again)] == [PROBE, STUCK]


@pytest.fixture
def cluster() -> Simulation:
    made = Simulation(pods=(ready_pod(1), ready_pod(2)))
    made.settle()
    return made


def condition(cluster: Simulation, *found: Wedge, problem: str = "", unwatched: str = "") -> dict[str, Any]:
    seen = BudgetSeen(server="0a1b2c3d", share=90, wedges=found, problem=problem, unwatched=unwatched)
    body, _ = told(cluster, budget=seen)
    assert conditions(body)["Ready"]["status"] == "True"
    return conditions(body)["DataPath"]


def test_the_condition_names_pod_consumer_number_and_what_to_do(cluster: Simulation) -> None:
    assert cluster.condition("DataPath")["status"] == "True"
    stuck = Wedge(STUCK, "shop-pooler-1", "web/database", 3)
    made = condition(cluster, stuck)
    assert (made["status"], made["reason"]) == ("False", STUCK)
    for words in ("pod shop-pooler-1: 3 server connection(s) of consumer web/database", "ended", "firewalls"):
        assert words in made["message"]
    waiting = condition(cluster, replace(stuck, kind=CLIENTS_WAIT, said="its pool has room"), stuck)
    assert waiting["reason"] == CLIENTS_WAIT
    assert "although its pool has room" in waiting["message"]
    assert "1 more" in waiting["message"]
    silent = condition(cluster, replace(stuck, kind=PROBE, said="no answer within 2.5 s"))
    assert silent["reason"] == PROBE
    assert "no answer within 2.5 s" in silent["message"]


def test_without_a_view_of_the_server_nothing_is_claimed(cluster: Simulation) -> None:
    made = condition(cluster, problem="no answer")
    assert (made["status"], made["reason"]) == ("Unknown", "NotMeasured")


def test_what_cannot_be_watched_is_unknown_with_the_cause_unless_a_fault_is_known(cluster: Simulation) -> None:
    unread = "the schema can't be read: permission denied"
    made = condition(cluster, unwatched=unread)
    assert (made["status"], made["reason"], made["message"]) == ("Unknown", "NotWatched", unread)
    stuck = Wedge(STUCK, "shop-pooler-1", "web/database", 3)
    assert condition(cluster, stuck, unwatched=unread)["reason"] == STUCK
    before = BudgetSeen(server="0a1b2c3d", share=90)
    assert newsworthy(before, replace(before, unwatched=unread), settled=False)


def test_a_silent_pod_is_evicted_only_while_all_serve_and_no_other_one_is_on_its_way() -> None:
    pods = (ready_pod(1), ready_pod(2))
    world = World(None, pods=pods, budget=BudgetSeen(silent=pods[0].uid))
    assert retiring(world) == pods[0]
    assert retiring(replace(world, budget=BudgetSeen())) is None
    assert retiring(replace(world, budget=None)) is None
    assert retiring(replace(world, pods=pods[:1])) is None
    for other in (replace(pods[1], terminating=True), replace(pods[1], ready=False)):
        assert retiring(replace(world, pods=(pods[0], other))) is None


def test_it_is_reported_before_it_is_evicted() -> None:
    cluster = Simulation(pods=(ready_pod(1), ready_pod(2)))
    cluster.settle()
    cluster.budget = BudgetSeen(server="0a1b2c3d", share=90, silent=ready_pod(1).uid)
    steps = cluster.plan()
    assert steps.settled
    assert steps.retire is not None
    assert steps.retire.uid == ready_pod(1).uid
