"""Copies in the status: named with what to do, bounded, and each told of once."""

from __future__ import annotations

from typing import Any

import pytest

from poolkeeper.observed.refs import Ref
from tests.fast.plan.status.test_status import conditions, told
from tests.fast.worlds import Simulation, ready_pod


@pytest.fixture
def cluster() -> Simulation:
    made = Simulation(pods=(ready_pod(),))
    made.settle()
    return made


def secrets(*names: str) -> dict[Ref, str]:
    return {Ref("Secret", "closed", name): f"uid-of-{name}" for name in names}


def copied(events: Any) -> list[str]:
    return [event.message for event in events if event.reason == "CopyLeftAlone"]


def test_a_copy_is_in_the_condition_and_in_one_event(cluster: Simulation) -> None:
    body, events = told(cluster, copies=secrets("database"))
    synced = conditions(body)["ConsumersSynced"]
    assert (synced["status"], synced["reason"]) == ("True", "Synced")
    assert (
        "1 consumers have their Secrets; copies of Poolkeeper's objects: [Secret closed/database];"
        in (synced["message"])
    )
    assert synced["message"].endswith("delete it, or remove its labels poolkeeper.io/...")
    [message] = copied(events)
    assert message.startswith("Secret closed/database is a copy of an object of Poolkeeper's")
    assert conditions(body)["Ready"]["status"] == "True"
    assert body is not None
    cluster.status = body
    assert told(cluster, copies=secrets("database")) == (None, ())
    _, events = told(cluster, copies=secrets("database", "data"))
    assert [message.split()[1] for message in copied(events)] == ["closed/data"]
    body, events = told(cluster)
    assert "copies" not in conditions(body)["ConsumersSynced"]["message"]
    assert copied(events) == []


def test_of_many_copies_a_few_are_named(cluster: Simulation) -> None:
    body, events = told(cluster, copies=secrets(*(f"copy-{number:03}" for number in range(500))))
    message = conditions(body)["ConsumersSynced"]["message"]
    assert "[Secret closed/copy-000] [Secret closed/copy-001] [Secret closed/copy-002] and 497 more" in message
    assert len(copied(events)) == 3
    assert body is not None
    cluster.status = body
    assert told(cluster, copies=secrets(*(f"copy-{number:03}" for number in range(500)))) == (None, ())


def test_names_as_long_as_kubernetes_allows_fit_the_message(cluster: Simulation) -> None:
    long = {Ref("Secret", "n" * 63, letter * 253): letter for letter in "abcdef"}
    body, _ = told(cluster, copies=long)
    assert len(conditions(body)["ConsumersSynced"]["message"]) <= 1024
    assert body is not None
    cluster.status = body
    assert told(cluster, copies=long) == (None, ())
