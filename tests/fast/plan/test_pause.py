"""Planned pauses: what the status records, in which order things happen, what the condition says."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.observed.apps import AppPod, Keeper
from poolkeeper.observed.consoles import PauseSeen
from poolkeeper.observed.refs import Ref
from poolkeeper.plan import pause
from poolkeeper.plan.pause_orders import Pausing
from poolkeeper.plan.plan import Plan
from poolkeeper.plan.world import Resource
from poolkeeper.spec.parse import SpecError, parse
from tests.fast.worlds import NOW, Simulation, body, ready_pod

HELD, RESUMED = PauseSeen(held=True), PauseSeen(resumed=True)
IMAGE = "keeper:1"
CONFIG = Ref("Secret", "data", "shop-pooler-config")


@pytest.fixture
def cluster() -> Simulation:
    made = Simulation(pods=(ready_pod(1), ready_pod(2)))
    made.edit(keeper={"enabled": True, "image": IMAGE})
    made.settle()
    return made


def pausing(steps: Plan) -> Pausing:
    assert steps.pausing is not None
    return steps.pausing


def told(cluster: Simulation) -> tuple[str, str]:
    item = cluster.condition("Paused")
    return item["status"], item["reason"]


def see(cluster: Simulation, *seen: PauseSeen) -> None:
    cluster.paused = {pod.uid: one for pod, one in zip(cluster.pods, seen, strict=True)}


def later(cluster: Simulation, seconds: float) -> None:
    cluster.now += timedelta(seconds=seconds)


def paused(cluster: Simulation, seconds: int = 60) -> Plan:
    cluster.edit(paused=True, pauseTimeoutSeconds=seconds)
    cluster.settle()
    see(cluster, HELD, HELD)
    return cluster.settle()


def test_without_a_pause_nothing_is_said_of_one(cluster: Simulation) -> None:
    assert "pause" not in cluster.status
    assert "Paused" not in {item["type"] for item in cluster.status["conditions"]}
    assert cluster.plan().pausing is None


def test_the_status_records_a_pause_before_any_pooler_hears_of_it(cluster: Simulation) -> None:
    cluster.edit(paused=True)
    steps = cluster.step()
    assert steps.status is not None
    assert steps.status["pause"] == {"since": "2026-01-02T03:04:05Z", "until": "2026-01-02T03:05:05Z"}
    assert steps.pausing is None
    assert steps.requeue is not None
    assert steps.requeue < 1
    held = pausing(cluster.step())
    assert (held.hold, held.begin) == (True, True)
    assert [(one.name, one.access.ip) for one in held.poolers] == [
        ("shop-pooler-1", "10.0.0.1"),
        ("shop-pooler-2", "10.0.0.2"),
    ]
    [(entry, login)] = held.logins.items()
    assert entry.startswith("shop--web-")
    assert login.name.startswith("web-database-")
    assert login.password not in repr(held)


def test_the_whole_course_of_a_pause(cluster: Simulation) -> None:
    cluster.edit(paused=True)
    cluster.settle()
    assert told(cluster) == ("False", "Pausing")
    see(cluster, HELD, PauseSeen(waits_for=next(iter(pausing(cluster.plan()).logins))))
    cluster.settle()
    message = cluster.condition("Paused")["message"]
    assert "1 of 2 poolers" in message
    assert "pod shop-pooler-2 waits for transactions of web/database" in message
    assert "03:05:05 UTC" in message
    see(cluster, HELD, HELD)
    steps = cluster.settle()
    assert told(cluster) == ("True", "Paused")
    assert cluster.condition("Ready")["status"] == "True"
    assert steps.requeue == 60
    later(cluster, 10)
    cluster.edit(paused=False)
    steps = cluster.settle()
    assert not pausing(steps).hold
    assert told(cluster) == ("False", "Resuming")
    see(cluster, RESUMED, HELD)
    assert pausing(cluster.settle()).poolers
    see(cluster, RESUMED, RESUMED)
    cluster.settle()
    assert told(cluster) == ("False", "Resumed")
    assert cluster.status["pause"]["resumedAt"] == "2026-01-02T03:04:15Z"
    steps = cluster.settle()
    assert steps.pausing is None
    assert steps.requeue == pause.LOWER_SECONDS
    later(cluster, pause.LOWER_SECONDS)
    cluster.settle()
    assert "pause" not in cluster.status
    assert "Paused" not in {item["type"] for item in cluster.status["conditions"]}


def test_at_its_limit_a_pause_ends_and_is_not_begun_again_until_it_was_taken_back(cluster: Simulation) -> None:
    paused(cluster)
    later(cluster, 60)
    assert not pausing(cluster.settle()).hold
    see(cluster, RESUMED, RESUMED)
    cluster.settle()
    assert told(cluster) == ("False", "TimedOut")
    assert "set spec.paused to false" in cluster.condition("Paused")["message"]
    later(cluster, 1000)
    cluster.paused = {}
    assert cluster.settle().pausing is None
    assert told(cluster) == ("False", "TimedOut")
    cluster.edit(paused=False)
    cluster.settle()
    assert "pause" not in cluster.status
    cluster.edit(paused=True)
    cluster.settle()
    assert pausing(cluster.plan()).hold
    assert cluster.status["pause"]["until"] == "2026-01-02T03:22:45Z"


def test_a_pause_that_follows_at_once_is_a_new_one(cluster: Simulation) -> None:
    paused(cluster)
    later(cluster, 20)
    cluster.edit(paused=False)
    see(cluster, RESUMED, RESUMED)
    cluster.settle()
    later(cluster, 1)
    cluster.edit(paused=True)
    cluster.settle()
    assert cluster.status["pause"] == {"since": "2026-01-02T03:04:26Z", "until": "2026-01-02T03:05:26Z"}


def test_a_pause_that_is_wanted_again_before_all_have_resumed_keeps_its_limit(cluster: Simulation) -> None:
    paused(cluster)
    until = cluster.status["pause"]["until"]
    later(cluster, 20)
    cluster.edit(paused=False)
    see(cluster, RESUMED, HELD)
    cluster.settle()
    cluster.edit(paused=True)
    assert pausing(cluster.settle()).hold
    assert cluster.status["pause"]["until"] == until


def test_a_limit_that_is_edited_counts_for_the_next_pause(cluster: Simulation) -> None:
    paused(cluster)
    until = cluster.status["pause"]["until"]
    cluster.edit(pauseTimeoutSeconds=600)
    cluster.settle()
    assert cluster.status["pause"]["until"] == until


def written(cluster: Simulation, name: str, ref: Ref = CONFIG) -> str:
    ini = cluster.values(ref.namespace, ref.name)["pgbouncer.ini"]
    return next(line.split(" = ")[1] for line in ini.splitlines() if line.startswith(f"{name} = "))


KEEPER = Ref("Secret", "web", "database-keeper")


def test_the_default_limit_takes_no_reload(cluster: Simulation) -> None:
    before = len([line for line in cluster.log if line.startswith(("apply", "reload"))])
    paused(cluster)
    assert len([line for line in cluster.log if line.startswith(("apply", "reload"))]) == before


def test_limits_on_waiting_are_raised_first_and_lowered_last(cluster: Simulation) -> None:
    keeper = Keeper("keeper", "database", IMAGE, "Trust", 6432, running=True, restarts=0, generation="")
    cluster.app_pods = (AppPod("web", "app", "uid-1", "10.1.0.1", False, (keeper,), ()),)
    parameters = {"query_timeout": 20, "query_wait_timeout": 0, "stats_period": 7}
    cluster.edit(pooler={"parameters": parameters})
    cluster.settle()
    cluster.edit(paused=True, pauseTimeoutSeconds=300)
    begun = len(cluster.log)
    steps = cluster.step()
    assert written(cluster, "query_timeout") == "20"
    while steps.pausing is None or not steps.pausing.begin:
        steps = cluster.step()
        if steps.keepers:
            assert not pausing(steps).begin, "the keepers have to have it first"
    assert written(cluster, "query_timeout") == "330"
    assert [line for line in cluster.log[begun:] if line.startswith("reload")][1:]
    assert [line for line in cluster.log[begun:] if line.startswith("keeper")]
    assert written(cluster, "query_wait_timeout") == "0", "that is no limit"
    assert written(cluster, "stats_period") == "7"
    assert written(cluster, "query_wait_timeout", KEEPER) == "330"
    see(cluster, RESUMED, RESUMED)
    cluster.edit(paused=False, pauseTimeoutSeconds=10)
    cluster.settle()
    assert written(cluster, "query_timeout") == "330", "who has waited since the beginning would be cut off"
    later(cluster, pause.LOWER_SECONDS)
    cluster.settle()
    cluster.settle()
    assert written(cluster, "query_timeout") == "20"
    assert written(cluster, "query_wait_timeout", KEEPER) == "120"


def test_a_pause_that_begun_goes_on_while_other_things_change(cluster: Simulation) -> None:
    paused(cluster)
    cluster.edit(pooler={"parameters": {"stats_period": 9}})
    seen = set()
    for _ in range(6):
        held = pausing(cluster.step())
        seen.add(held.hold)
    assert seen == {True}


def test_a_restarted_operator_begins_with_what_the_configuration_needs(cluster: Simulation) -> None:
    paused(cluster, 300)
    cluster.paused, cluster.shown = {}, {}
    steps = cluster.step()
    assert steps.reload
    assert (pausing(steps).hold, pausing(steps).begin) == (True, False)
    assert pausing(cluster.settle()).begin


def test_a_restarted_operator_resumes_what_is_overdue_before_anything_else(cluster: Simulation) -> None:
    paused(cluster)
    cluster.paused, cluster.shown = {}, {}
    later(cluster, 3600)
    steps = cluster.step()
    assert steps.reload
    assert not pausing(steps).hold
    cluster.settle()
    assert "resumedAt" not in cluster.status["pause"], "nobody has shown it yet"


def test_a_pooler_that_was_not_asked_yet_or_cannot_be_reached_has_not_resumed(cluster: Simulation) -> None:
    paused(cluster)
    cluster.edit(paused=False)
    for seen in (
        {},
        {"pod-1": RESUMED},
        {"pod-1": RESUMED, "pod-2": PauseSeen(problem="console at x: refused")},
    ):
        cluster.paused = dict(seen)
        cluster.settle()
        assert told(cluster) == ("False", "Resuming")
        assert not pausing(cluster.plan()).hold
    assert "console at x: refused" in cluster.condition("Paused")["message"]


def test_a_pod_that_shuts_down_holds_up_nothing_once_it_cannot_be_reached(cluster: Simulation) -> None:
    paused(cluster)
    killed = cluster.now + timedelta(seconds=30)
    going = replace(cluster.pods[1], terminating=True, ready=False, grace=35.0, killed_at=killed)
    cluster.pods = (cluster.pods[0], going)
    steps = cluster.settle()
    assert [one.leaving for one in pausing(steps).poolers] == [False, True]
    assert pausing(steps).poolers[1].until == killed - timedelta(seconds=7)
    assert told(cluster) == ("True", "Paused")
    cluster.edit(paused=False)
    see(cluster, RESUMED, HELD)
    cluster.settle()
    assert told(cluster) == ("False", "Resuming")
    see(cluster, RESUMED, PauseSeen(problem="console: refused"))
    cluster.settle()
    assert told(cluster) == ("False", "Resumed")


def test_a_new_pod_takes_part_before_it_is_ready(cluster: Simulation) -> None:
    paused(cluster)
    cluster.pods = (*cluster.pods, replace(ready_pod(3), ready=False))
    steps = cluster.settle()
    assert len(pausing(steps).poolers) == 3
    assert told(cluster) == ("True", "Paused")
    cluster.pods = (*cluster.pods[:2], ready_pod(3))
    cluster.settle()
    assert told(cluster) == ("False", "Pausing")


def test_deletion_resumes(cluster: Simulation) -> None:
    paused(cluster)
    cluster.deleting = True
    held = pausing(cluster.plan())
    assert not held.hold
    assert len(held.poolers) == 2


def test_a_spec_that_makes_no_sense_changes_nothing_about_a_pause_but_its_limit_holds(
    cluster: Simulation,
) -> None:
    paused(cluster)
    cluster.edit(pauseTimeoutSeconds=-1)
    steps = cluster.settle()
    assert pausing(steps).hold
    assert steps.requeue == 60
    later(cluster, 60)
    assert not pausing(cluster.settle()).hold
    see(cluster, RESUMED, RESUMED)
    cluster.settle()
    assert cluster.status["pause"]["timedOut"] is True
    assert cluster.settle().pausing is None


def test_in_session_mode_there_is_nothing_to_hold_back(cluster: Simulation) -> None:
    cluster.edit(paused=True, pooler={"mode": "session"})
    cluster.settle()
    assert told(cluster) == ("False", "SessionMode")
    assert "pause" not in cluster.status
    assert cluster.plan().pausing is None


def test_events_tell_of_it_and_only_the_limit_is_a_warning(cluster: Simulation) -> None:
    happened: list[Any] = []

    def settle() -> None:
        for _ in range(6):
            happened.extend((event.type, event.reason) for event in cluster.step().events)

    cluster.edit(paused=True)
    settle()
    see(cluster, HELD, HELD)
    settle()
    later(cluster, 60)
    settle()
    see(cluster, RESUMED, RESUMED)
    settle()
    assert happened == [("Normal", "Paused"), ("Normal", "Resuming"), ("Warning", "TimedOut")]


@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.integers(0, 40), st.booleans())))
def test_whatever_is_asked_a_pause_keeps_its_limit_and_ends_only_when_all_have_resumed(
    steps: list[tuple[bool | None, int, bool]],
) -> None:
    specs = {wish: parse(body(paused=wish)) for wish in (True, False)}
    resource = Resource("uid", 1, False, True, specs[False], {})
    now, held = NOW, False
    for wish, seconds, resumed in steps:
        now += timedelta(seconds=seconds)
        spec = SpecError("spec", "makes no sense", "") if wish is None else specs[wish]
        resource = replace(resource, spec=spec)
        before = pause.recorded(resource)
        holds = before is not None and before.holds(wish, now)
        found = pause.advance(resource, resumed and not holds, now)
        if found is None or found.resumed_at is not None:
            assert not held or resumed, "given up without looking"
            held = False
        else:
            held = True
            assert found.until - found.since == timedelta(seconds=60)
            assert found.until > now or not found.holds(wish, now)
        assert found == pause.advance(replace(resource, status=recorded(found)), False, now)
        resource = replace(resource, status=recorded(found))


def recorded(found: pause.Pause | None) -> dict[str, Any]:
    return {} if found is None else {"pause": pause.to_record(found)}


def test_only_limits_that_are_too_short_are_raised() -> None:
    raised = pause.with_patience({"query_timeout": "0.5", "query_wait_timeout": "10"}, 90)
    assert raised == {"query_timeout": "90", "query_wait_timeout": "90"}
    assert pause.with_patience({}, 90) == {}
    assert pause.with_patience({}, 121) == {"query_wait_timeout": "121"}
    assert pause.with_patience({"query_timeout": "5"}, None) == {"query_timeout": "5"}
