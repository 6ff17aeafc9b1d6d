"""Upstreams that move: what is observed of them, when connections have to leave, and what is written of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.dns import Dns
from poolkeeper.observed.poolers import Moved
from poolkeeper.observed.upstream import Whereabouts
from poolkeeper.plan.addresses import (
    CALM_SECONDS,
    LAST_PATIENCE_SECONDS,
    MOST,
    Answers,
    Place,
    ServiceName,
    place,
)
from poolkeeper.plan.plan import plan
from tests.fast.worlds import KEY, NOW, SETTINGS, Simulation, body, ready_pod

HOST = "pg.data.svc"
DNS = Dns()


def at(*addresses: str, endpoints: tuple[str, ...] = (), host: str = HOST) -> Whereabouts:
    return Whereabouts(host, frozenset(addresses), frozenset(endpoints))


def settled(whereabouts: Whereabouts | None) -> Simulation:
    cluster = Simulation(pods=(ready_pod(1), ready_pod(2)), whereabouts=whereabouts)
    cluster.settle()
    cluster.log.clear()
    return cluster


def upstream(cluster: Simulation) -> dict[str, Any]:
    return {key: value for key, value in cluster.status["upstream"].items() if key != "since"}


# What is observed


@pytest.mark.parametrize(
    ("host", "service"),
    [("pg", ("data", "pg")), ("pg.backend.svc", ("backend", "pg")), ("db.example.com", None)],
)
def test_what_is_observed_of_a_host(host: str, service: tuple[str, str] | None) -> None:
    """tests/fast/test_dns.py has the names and Services of every kind of host."""
    expected = Place(host, DNS.names(host, "data"), ServiceName(*service) if service else None)
    assert place(host, "data", DNS) == expected


@pytest.mark.parametrize("host", ["10.1.2.3", "::1", "fd00::7"])
def test_an_ip_address_cannot_move(host: str) -> None:
    assert place(host, "data", DNS) is None


def test_the_host_in_use_is_observed_and_not_one_that_is_not_proved() -> None:
    cluster = settled(None)
    cluster.edit(upstream={**cluster.resource["spec"]["upstream"], "host": "other.data.svc"})
    observed = cluster.plan().observe
    assert observed is not None
    assert observed.host == HOST


# What one name comes to over time


def taken(*answers: str, every: float = 1.0, since: Answers | None = None, start: float = 0.0) -> Answers:
    seen = since or Answers()
    for number, answer in enumerate(answers):
        seen = seen.take(frozenset(answer), start + number * every)
    return seen


def test_a_new_address_takes_the_place_of_the_old_at_once() -> None:
    assert taken("A", "A", "B").addresses == {"B"}
    assert taken("AB", "A").addresses == {"A"}


def test_an_empty_answer_and_one_of_a_crowd_say_nothing() -> None:
    seen = taken("A", "", "")
    assert seen.addresses == {"A"}
    assert seen.take(frozenset(map(str, range(MOST + 1))), 5).addresses == {"A"}


def test_three_departures_are_quick_and_the_fourth_is_waited_for() -> None:
    seen = taken("A", "B", "A", "B", "A")
    assert seen.addresses == {"A", "B"}
    assert taken("A", "A", "A", "A", "A", since=seen, start=5).addresses == {"A"}


def test_a_name_that_answers_with_another_address_every_time_soon_has_them_all() -> None:
    seen, changes, before = Answers(), 0, frozenset[str]()
    for second in range(3 * 3600):
        seen = seen.take(frozenset("ABC"[second // 7 % 3]), float(second))
        changes += not seen.addresses >= before
        before = seen.addresses
    assert seen.addresses == {"A", "B", "C"}
    assert changes <= 6


def test_what_was_restless_is_forgotten_after_ten_quiet_minutes() -> None:
    seen = taken("A", "B", "A", "B", "A")
    seen = taken("A", since=seen, start=30)
    assert taken("A", "B", since=seen, start=20 + CALM_SECONDS).addresses == {"A", "B"}
    assert taken("A", "B", since=seen, start=40 + CALM_SECONDS).addresses == {"B"}


@given(st.lists(st.tuples(st.frozensets(st.sampled_from("ABCD")), st.floats(0.5, 700)), max_size=60))
def test_the_last_answer_is_always_in_and_nothing_stays_for_ever(
    steps: list[tuple[frozenset[str], float]],
) -> None:
    seen, now, last = Answers(), 0.0, frozenset[str]()
    for answer, pause in steps:
        now += pause
        seen = seen.take(answer, now)
        last = answer or last
        assert seen.addresses >= last
    assert seen.take(last, now + LAST_PATIENCE_SECONDS).addresses == last


# When connections have to leave


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (at("10.9.0.1"), at("10.9.0.2")),
        (at("10.9.0.1", "10.9.0.2"), at("10.9.0.2")),
        (at("10.96.0.1", endpoints=("10.1.0.1",)), at("10.96.0.1", endpoints=("10.1.0.2",))),
    ],
)
def test_what_is_gone_makes_every_pooler_reconnect_once_and_is_recorded_then(
    before: Whereabouts, now: Whereabouts
) -> None:
    cluster = settled(before)
    cluster.whereabouts = now
    cluster.settle()
    assert cluster.log == ["reconnect shop-pooler-1", "reconnect shop-pooler-2", "status"]
    assert upstream(cluster) == {
        "host": HOST,
        "addresses": sorted(now.addresses),
        "endpoints": sorted(now.endpoints),
    }


@pytest.mark.parametrize(
    "now",
    [
        at("10.9.0.1", "10.9.0.2", endpoints=("10.1.0.1",)),
        at("10.9.0.1", endpoints=("10.1.0.1", "10.1.0.2")),
    ],
)
def test_what_only_grows_is_recorded_and_nothing_else(now: Whereabouts) -> None:
    cluster = settled(at("10.9.0.1", endpoints=("10.1.0.1",)))
    cluster.whereabouts = now
    cluster.settle()
    assert cluster.log == ["status"]


@pytest.mark.parametrize(
    "now",
    [
        None,
        at(),
        at("10.9.0.1", endpoints=("10.1.0.1",)),
        at("10.9.0.1"),  # no endpoint: a failover in progress
        at(endpoints=("10.1.0.1",)),  # the name does not resolve just now
        at("10.9.0.3", host="another.data.svc"),
    ],
)
def test_what_is_unknown_or_the_same_changes_nothing(now: Whereabouts | None) -> None:
    cluster = settled(at("10.9.0.1", endpoints=("10.1.0.1",)))
    cluster.whereabouts = now
    assert cluster.plan().reconnect == ()
    assert cluster.plan().status is None


def test_endpoints_that_were_gone_for_a_while_are_compared_with_those_before() -> None:
    cluster = settled(at("10.96.0.1", endpoints=("10.1.0.1",)))
    cluster.whereabouts = at("10.96.0.1")
    cluster.settle()
    cluster.whereabouts = at("10.96.0.1", endpoints=("10.1.0.2",))
    [first, _] = cluster.plan().reconnect
    assert first.left == {"10.1.0.1"}
    assert first.behind_service


def test_known_from_the_start_it_costs_no_write_of_its_own() -> None:
    with_it = Simulation(pods=(ready_pod(1),), whereabouts=at("10.9.0.1"))
    without = Simulation(pods=(ready_pod(1),))
    with_it.settle()
    without.settle()
    assert with_it.log == without.log
    assert "upstream" not in without.status


def test_an_operator_that_was_killed_before_the_record_begins_again() -> None:
    cluster = settled(at("10.9.0.1"))
    cluster.whereabouts = at("10.9.0.2")
    assert len(cluster.plan().reconnect) == 2
    cluster.moved.clear()
    assert len(cluster.plan().reconnect) == 2


def test_nothing_is_recorded_before_every_serving_pooler_has_moved() -> None:
    cluster = settled(at("10.9.0.1"))
    cluster.whereabouts = at("10.9.0.2")
    steps = cluster.plan()
    assert steps.status is None
    cluster.moved["pod-1"] = moved(cluster)
    steps = cluster.plan()
    assert [item.uid for item in steps.reconnect] == ["pod-2"]
    assert steps.status is None
    cluster.pods = (cluster.pods[0], replace(cluster.pods[1], ready=False))
    steps = cluster.plan()
    assert [item.uid for item in steps.reconnect] == ["pod-2"], "it may come back, and is told as well"
    assert steps.status is not None
    assert steps.status["upstream"]["addresses"] == ["10.9.0.2"]


def moved(cluster: Simulation) -> Moved:
    assert cluster.whereabouts is not None
    return Moved(cluster.whereabouts, 2.5, 0)


def test_the_event_names_both_places_and_the_seconds() -> None:
    cluster = settled(at("10.96.0.1", endpoints=("10.1.0.1",)))
    cluster.whereabouts = at("10.96.0.1", endpoints=("10.1.0.2",))
    cluster.moved = {pod.uid: moved(cluster) for pod in cluster.pods}
    steps = cluster.plan()
    [event] = steps.events
    assert (event.type, event.reason) == ("Normal", "UpstreamMoved")
    assert event.message == (
        "the upstream pg.data.svc moved: endpoint 10.1.0.1 became 10.1.0.2; the poolers followed within 2.5 s"
    )
    assert cluster.plan().events == steps.events, "posted again after a crash it is the same one"
    cluster.moved = {pod.uid: replace(moved(cluster), left=3) for pod in cluster.pods}
    [event] = cluster.plan().events
    assert "6 connections still lead elsewhere" in event.message


def test_another_host_in_the_spec_is_no_failover() -> None:
    cluster = settled(at("10.9.0.1"))
    cluster.edit(upstream={**cluster.resource["spec"]["upstream"], "host": "other.data.svc"})
    cluster.settle()
    cluster.whereabouts = at("10.9.0.2", host="other.data.svc")
    cluster.settle()
    assert not [line for line in cluster.log if line.startswith("reconnect")]
    assert upstream(cluster) == {"host": "other.data.svc", "addresses": ["10.9.0.2"], "endpoints": []}


def test_a_connection_is_stale_where_the_upstream_was_or_never_was() -> None:
    cluster = settled(at("10.1.0.1", endpoints=("10.1.0.1",)))
    cluster.whereabouts = at("10.1.0.1", endpoints=("10.1.0.2",))  # headless: the name follows later
    stale = cluster.plan().reconnect[0].stale
    assert [stale(address) for address in ("10.1.0.1", "10.1.0.2", "10.7.7.7")] == [True, False, True]
    cluster = settled(at(endpoints=("10.1.0.1",)))
    cluster.whereabouts = at(endpoints=("10.1.0.2",))  # the name can't be resolved here
    stale = cluster.plan().reconnect[0].stale
    assert [stale(address) for address in ("10.1.0.1", "10.1.0.2", "10.7.7.7")] == [True, False, False]


@pytest.mark.parametrize(("parameter", "seconds"), [(None, 2.0), ("0.5", 0.5), (15, 15.0), (3600, 60.0)])
def test_it_waits_as_long_as_pgbouncer_remembers_an_address(
    parameter: int | str | None, seconds: float
) -> None:
    spec = {"pooler": {"parameters": {"dns_max_ttl": parameter}}} if parameter else {}
    cluster = Simulation(resource=body(**spec), pods=(ready_pod(1),), whereabouts=at("10.9.0.1"))
    cluster.settle()
    cluster.whereabouts = at("10.9.0.2")
    assert [item.lookup_seconds for item in cluster.plan().reconnect] == [seconds]


# While the spec makes no sense


def broken(cluster: Simulation) -> Simulation:
    cluster.edit(
        consumers=[{"namespace": "web", "secretName": "x"}, {"namespace": "web", "secretName": "x-binding"}]
    )
    assert cluster.plan().keepers == ()
    return cluster


def test_with_an_invalid_spec_the_poolers_follow_all_the_same() -> None:
    cluster = broken(settled(at("10.9.0.1")))
    cluster.settle()
    assert cluster.condition("SpecValid")["status"] == "False"
    assert cluster.plan().observe == place(HOST, KEY.namespace, DNS)
    cluster.log.clear()
    cluster.whereabouts = at("10.9.0.2")
    cluster.settle()
    assert "reconnect shop-pooler-1" in cluster.log
    assert upstream(cluster)["addresses"] == ["10.9.0.2"]


def test_without_a_target_nothing_is_observed() -> None:
    cluster = Simulation(pods=(ready_pod(1),), secrets={})
    cluster.settle()
    assert cluster.plan().observe is None


def test_what_is_gone_is_observed_no_more() -> None:
    cluster = settled(at("10.9.0.1"))
    assert cluster.plan().observe is not None
    assert plan(KEY, replace(cluster.world(), resource=None), SETTINGS, NOW).observe is None
    cluster.deleting = True
    assert cluster.plan().observe is None
