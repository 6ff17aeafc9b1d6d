"""Which consumer fills its client slots (C6), and what the condition ClientSlots says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from poolkeeper.budget.request import ClientBound
from poolkeeper.budget.seen import BudgetSeen
from poolkeeper.data_path.client_limits import CALM_SECONDS, Crowds, advance, at_limit
from poolkeeper.observed.data_path import AtLimit
from tests.fast.plan.status.test_status import conditions, told
from tests.fast.worlds import Simulation, ready_pod

WEB = ClientBound("web/database", ("shop--web", "shop--web.session"), 10, limited=False)
SESSIONS = ClientBound("web/database", ("shop--web.session",), 3, limited=True)
API = ClientBound("api/database", ("shop--api",), 10, limited=False)


def read(*readings: tuple[float, dict[str, dict[str, int]]]) -> tuple[AtLimit, ...]:
    """What is reported after these readings, each with its time."""
    crowds: Crowds = {}
    for now, shown in readings:
        crowds = advance(crowds, (WEB, SESSIONS, API), shown, now)
    return at_limit(crowds)


@pytest.mark.parametrize(
    ("shown", "reported"),
    [
        ({}, ()),
        ({"a": {"shop--web": 9}}, ()),
        ({"a": {"shop--web": 10}}, (AtLimit("web/database", "a", 10, 10, limited=False),)),
        # Both endpoints count together.
        (
            {"a": {"shop--web": 8, "shop--web.session": 2}},
            (AtLimit("web/database", "a", 10, 10, limited=False),),
        ),
        # One pod is enough, and pods are not added up.
        (
            {"b": {"shop--api": 12}, "a": {"shop--api": 9}},
            (AtLimit("api/database", "b", 12, 10, limited=False),),
        ),
        # Its own limit is the one to name.
        (
            {"a": {"shop--web": 10, "shop--web.session": 3}},
            (AtLimit("web/database", "a", 3, 3, limited=True),),
        ),
        ({"a": {"another": 100}}, ()),
    ],
)
def test_c6_a_consumer_at_its_bound_is_named(
    shown: dict[str, dict[str, int]], reported: tuple[AtLimit, ...]
) -> None:
    assert read((0.0, shown)) == reported


def test_c6_numbers_that_move_and_pods_that_alternate_are_no_news() -> None:
    first = read((0.0, {"b": {"shop--web": 10}}))
    assert first == read((0.0, {"b": {"shop--web": 10}}), (1.0, {"a": {"shop--web": 11}}), (2.0, {"a": {}}))


def test_c6_it_ends_after_a_calm_minute_and_not_by_one_free_slot() -> None:
    full, free = {"a": {"shop--web": 10}}, {"a": {"shop--web": 9}}
    assert read((0.0, full), (CALM_SECONDS - 1, free))
    assert read((0.0, full), (50.0, full), (CALM_SECONDS + 10, free))
    assert not read((0.0, full), (CALM_SECONDS, free))


def test_c6_another_bound_is_news_and_a_consumer_that_went_is_forgotten() -> None:
    crowds = advance({}, (WEB,), {"a": {"shop--web": 10}}, 0.0)
    larger = replace(WEB, bound=20)
    crowds = advance(crowds, (larger,), {"a": {"shop--web": 20}}, 1.0)
    assert at_limit(crowds) == (AtLimit("web/database", "a", 20, 20, limited=False),)
    assert not advance(crowds, (API,), {}, 2.0)


@pytest.fixture
def cluster() -> Simulation:
    made = Simulation(pods=(ready_pod(1), ready_pod(2)))
    made.settle()
    return made


def condition(cluster: Simulation, *items: AtLimit) -> dict[str, Any]:
    seen = BudgetSeen(server="0a1b2c3d", share=90, at_limit=items)
    body, _ = told(cluster, budget=seen)
    return conditions(body)["ClientSlots"]


def test_c6_the_condition_names_consumer_pod_numbers_and_remedy(cluster: Simulation) -> None:
    web = AtLimit("web/database", "shop-pooler-1", 94, 94, limited=False)
    made = condition(cluster, web)
    assert (made["status"], made["reason"]) == ("False", "ConsumerAtLimit")
    for words in ("web/database has 94", "pod shop-pooler-1", "max_client_conn (now 1000)", "weight"):
        assert words in made["message"]
    assert "limits.maxClientConnections" not in made["message"]
    limited = condition(cluster, replace(web, limited=True))["message"]
    assert "raise its limits.maxClientConnections" in limited
    assert "max_client_conn (now" not in limited
    assert "1 more are" in condition(cluster, web, replace(web, consumer="x/y"))["message"]


def test_c6_where_a_setting_for_all_consumers_is_what_is_small_the_condition_says_so(
    cluster: Simulation,
) -> None:
    cluster.edit(pooler={"parameters": {"max_user_client_connections": 7}})
    cluster.settle()
    made = condition(cluster, AtLimit("web/database", "shop-pooler-1", 7, 7, limited=False))
    assert "raise spec.pooler.parameters.max_user_client_connections (now 7)" in made["message"]
    assert "max_client_conn" not in made["message"]


def test_c6_more_consumers_than_slots_are_said_with_the_number_that_is_enough(cluster: Simulation) -> None:
    cluster.namespaces |= {f"n{number}": cluster.namespaces["web"] for number in range(30)}
    consumers = [{"namespace": f"n{number}"} for number in range(30)]
    for slots, status in ((20, "False"), (42, "True"), (41, "False")):
        cluster.edit(consumers=consumers, pooler={"parameters": {"max_client_conn": slots}})
        cluster.settle()
        made = cluster.condition("ClientSlots")
        assert made["status"] == status, made
        if status == "False":
            assert made["reason"] == "SlotsExhausted"
            assert f"from {slots} to 42 or more" in made["message"]
    assert cluster.condition("Ready")["status"] == "True"
