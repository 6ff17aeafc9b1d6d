"""When server connections are renewed: how often, whose, once each, and what the next operator knows of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from poolkeeper import names
from poolkeeper.consumers.consent import Consumer
from poolkeeper.consumers.entries import entry_name, session_entry_name
from poolkeeper.data_path.schema import BURST, GAP_SECONDS, REFILL_SECONDS, Schema
from poolkeeper.observed.poolers import Renewed
from poolkeeper.store import reading
from tests.fast.worlds import Simulation, ready_pod

WEB = Consumer("web", "database")
REASONS = ("ServerConnectionsRenewed", "ReconnectRefused")


def settled(schema: str = "first", request: str = "") -> Simulation:
    cluster = Simulation(pods=(ready_pod(1), ready_pod(2)), schema=schema)
    if request:
        ask(cluster, request)
    cluster.settle()
    cluster.log.clear()
    return cluster


def ask(cluster: Simulation, request: str) -> None:
    metadata = {**cluster.resource["metadata"], "annotations": {names.RECONNECT_ANNOTATION: request}}
    cluster.resource = {**cluster.resource, "metadata": metadata}


def told(cluster: Simulation) -> list[tuple[str, str]]:
    """The Events of a run to the end; it ends settled."""
    found = []
    for _ in range(6):
        steps = cluster.step()
        found += [(event.reason, event.message) for event in steps.events if event.reason in REASONS]
    cluster.settle()
    return found


def renewal(cluster: Simulation) -> dict[str, Any]:
    return {key: value for key, value in cluster.status.get("renewal", {}).items() if key != "at"}


def restarted(cluster: Simulation) -> Simulation:
    """What a new operator knows: the cluster, and nothing that the one before had in its memory."""
    cluster.renewed = {}
    return cluster


# Causes


def test_the_first_schema_that_is_seen_is_recorded_and_renews_nothing() -> None:
    cluster = Simulation(pods=(ready_pod(1),), schema="first")
    assert told(cluster) == []
    assert renewal(cluster) == {"schema": "first"}
    assert "at" not in cluster.status["renewal"]


def test_another_schema_renews_all_connections_of_every_pooler_once_and_is_recorded_then() -> None:
    cluster = settled()
    cluster.schema = "second"
    cluster.step()
    assert cluster.log == ["renew shop-pooler-1", "renew shop-pooler-2"]
    assert renewal(cluster) == {"schema": "first"}, "it is recorded before it is done"
    [(reason, message)] = told(cluster)
    assert reason == "ServerConnectionsRenewed"
    assert message == (
        "the schema of the database changed: 2 poolers renewed their server connections within 0.4 s"
    )
    assert renewal(cluster) == {"schema": "second"}
    assert cluster.status["renewal"]["at"]
    assert [item for item in cluster.log if item.startswith("renew")] == [
        "renew shop-pooler-1",
        "renew shop-pooler-2",
    ]


def test_each_new_value_of_the_annotation_is_one_request() -> None:
    cluster = settled()
    for number, token in enumerate(("now", "again", "2026-11-28 19:30"), 1):
        ask(cluster, token)
        [(reason, message)] = told(cluster)
        assert reason == "ServerConnectionsRenewed"
        assert names.RECONNECT_ANNOTATION in message
        assert renewal(cluster) == {"request": token, "schema": "first"}
        assert len([item for item in cluster.log if item == "renew shop-pooler-1"]) == number
    cluster.resource["metadata"].pop("annotations")
    assert told(cluster) == []
    assert renewal(cluster)["request"] == "2026-11-28 19:30"


def test_a_request_may_name_one_consumer() -> None:
    cluster = settled()
    ask(cluster, "web/database now")
    entries = sorted({entry_name("shop", WEB), session_entry_name("shop", WEB)})
    assert told(cluster)
    assert cluster.log[0] == f"renew shop-pooler-1 {','.join(entries)}"


def test_a_request_for_one_consumer_together_with_another_schema_renews_all() -> None:
    cluster = settled()
    ask(cluster, "web/database now")
    cluster.schema = "second"
    [(_, message)] = told(cluster)
    assert message.startswith("the schema of the database changed and annotation poolkeeper.io/reconnect asks")
    assert cluster.log[0] == "renew shop-pooler-1"


@pytest.mark.parametrize("consumer", ["web/elsewhere", "nowhere/database", "/", "a/b/c"])
def test_a_request_for_what_is_no_consumer_is_refused_once_with_the_remedy(consumer: str) -> None:
    cluster = settled()
    ask(cluster, f"{consumer} now")
    [(reason, message)] = told(cluster)
    assert reason == "ReconnectRefused"
    assert f"names {consumer}, which is not a consumer" in message
    assert "write <namespace>/<secretName> of a consumer" in message
    assert not [item for item in cluster.log if item.startswith("renew")]


def test_the_status_holds_a_request_of_any_length() -> None:
    cluster = settled(request="x" * 5000)
    assert renewal(cluster)["request"] == "x" * reading.MOST_OF_A_REQUEST
    assert told(cluster) == []


# What the next operator knows


@pytest.mark.parametrize("change", ["schema", "request"])
def test_what_was_done_is_not_repeated_by_the_next_operator(change: str) -> None:
    cluster = settled()
    if change == "schema":
        cluster.schema = "second"
    else:
        ask(cluster, "now")
    assert told(cluster)
    cluster.log.clear()
    assert told(restarted(cluster)) == []
    assert not [item for item in cluster.log if item.startswith("renew")]


@pytest.mark.parametrize("change", ["schema", "request"])
def test_what_was_not_complete_is_done_by_the_next_operator(change: str) -> None:
    cluster = settled()
    if change == "schema":
        cluster.schema = "second"
    else:
        ask(cluster, "now")
    cluster.step()
    cluster.log.clear()
    assert len(told(restarted(cluster))) == 1
    assert "renew shop-pooler-1" in cluster.log


def test_a_schema_that_is_not_known_yet_is_no_other_schema() -> None:
    cluster = restarted(settled())
    cluster.schema = ""
    assert told(cluster) == []
    cluster.schema = "first"
    assert told(cluster) == []


def test_with_an_invalid_spec_connections_are_renewed_all_the_same() -> None:
    cluster = settled()
    cluster.edit(pooler={"parameters": {"no_such_parameter": 1}})
    cluster.schema = "second"
    assert [reason for reason, _ in told(cluster)] == ["ServerConnectionsRenewed"]
    assert renewal(cluster) == {"schema": "second"}


def test_a_pooler_that_does_not_serve_is_not_waited_for() -> None:
    cluster = settled()
    cluster.schema = "second"
    first = cluster.plan().renew[0]
    cluster.pods = (cluster.pods[0], replace(cluster.pods[1], ready=False))
    cluster.renewed = {first.uid: Renewed(first.cause, 0.1, 3)}
    steps = cluster.plan()
    assert [item.name for item in steps.renew] == ["shop-pooler-2"]
    [event] = [event for event in steps.events if event.reason in REASONS]
    assert "3 are still in a transaction" in event.message


def test_a_deleted_one_renews_nothing() -> None:
    cluster = settled()
    cluster.schema, cluster.deleting = "second", True
    assert cluster.plan().renew == ()


def test_the_names_of_events_tell_every_renewal_apart() -> None:
    cluster = settled()
    found = []
    for number in range(4):
        cluster.schema = f"schema-{number % 2}"
        ask(cluster, f"token-{number // 2}")
        for _ in range(4):
            found += [event.name for event in cluster.step().events if event.reason in REASONS]
    assert len(found) == len(set(found)) == 4


# How often


def test_the_first_look_and_the_same_schema_change_nothing() -> None:
    first = Schema().see("a", 0.0)
    assert first.fingerprint == "a"
    assert first.see("a", 100.0) == first


def test_changes_are_followed_at_once_and_at_most_every_two_seconds() -> None:
    schema = Schema().see("a", 0.0).see("b", 0.1)
    assert schema.fingerprint == "b", "the first change has waited"
    assert schema.see("c", 0.1 + GAP_SECONDS - 0.01).fingerprint == "b"
    assert schema.see("c", 0.1 + GAP_SECONDS).fingerprint == "c"


def test_a_schema_that_changes_all_the_time_is_followed_ever_more_rarely() -> None:
    schema, followed = Schema().see("0", 0.0), []
    for second in range(1, 1201):
        before, schema = schema, schema.see(str(second), float(second))
        if schema != before:
            followed.append(second)
    early = [second for second in followed if second <= BURST * GAP_SECONDS]
    assert len(early) >= BURST - 1
    assert len(followed) <= BURST + 1200 / REFILL_SECONDS
    late = [second for second in followed if second > 600]
    assert abs(len(late) - 600 / REFILL_SECONDS) <= 1


def test_a_change_every_twenty_seconds_is_followed_for_hours() -> None:
    schema = Schema().see("0", 0.0)
    for number in range(1, 500):
        schema = schema.see(str(number), number * 20.0)
        assert schema.fingerprint == str(number)


def test_after_quiet_minutes_a_migration_of_many_steps_is_followed_again() -> None:
    schema = Schema().see("0", 0.0)
    for round_ in range(2):
        begun = round_ * BURST * REFILL_SECONDS * 2
        for step in range(BURST):
            at = begun + (step + 1) * 5.0
            schema = schema.see(f"{round_}.{step}", at)
            assert schema.fingerprint == f"{round_}.{step}"
