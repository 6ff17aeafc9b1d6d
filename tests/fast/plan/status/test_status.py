"""Conditions and Events: what they say, that they are bounded, and that they change with transitions only."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poolkeeper.observed.refs import ApiRefusal, Ref
from poolkeeper.plan.status import status
from poolkeeper.plan.wanted import want
from poolkeeper.plan.world import World
from poolkeeper.spec.parse import PooledDatabase
from tests.fast.worlds import NOW, SETTINGS, Simulation, ready_pod


def told(cluster: Simulation, later: float = 0, **changes: Any) -> tuple[dict[str, Any] | None, Any]:
    """The status that would be written, and the Events, in the simulation's world with these changes."""
    world = replace(cluster.world(), **changes)
    assert world.resource is not None
    assert isinstance(world.resource.spec, PooledDatabase)
    wanted = want(world.resource.spec, world, SETTINGS, NOW)
    return status.of(world.resource.spec, wanted, world, NOW + timedelta(seconds=later))


def conditions(body: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    assert body is not None
    return {item["type"]: item for item in body["conditions"]}


@pytest.fixture
def cluster() -> Simulation:
    made = Simulation(pods=(ready_pod(1), ready_pod(2)))
    made.settle()
    return made


def refused(world: World, kind: str, namespace: str, name: str) -> dict[Ref, ApiRefusal]:
    return {Ref(kind, namespace, name): ApiRefusal("Forbidden", f"no {kind} for you")}


def test_everything_in_place_is_ready(cluster: Simulation) -> None:
    body = cluster.status
    kinds = ["Ready", "SpecValid", "UpstreamReachable", "PoolerAvailable", "ConfigApplied", "ConsumersSynced"]
    kinds += ["KeepersCurrent", "WithinBudget", "PoolerImage", "ClientSlots", "DataPath"]
    found = {item["type"]: item["status"] for item in body["conditions"]}
    assert found == dict.fromkeys(kinds, "True")
    assert (body["replicas"], body["readyReplicas"]) == (2, 2)
    assert body["endpoints"]["port"] == 6432
    assert body["consumers"] == {"total": 1, "synced": 1, "failing": []}


def test_a_settled_status_is_not_written_again_however_late_it_is(cluster: Simulation) -> None:
    assert told(cluster, later=1e6) == (None, ())


def test_the_time_of_transition_stays_while_the_status_stays(cluster: Simulation) -> None:
    body, _ = told(cluster, later=60, pods=(ready_pod(1),), shown={})
    after = conditions(body)
    assert after["SpecValid"]["lastTransitionTime"] == "2026-01-02T03:04:05Z"
    assert after["PoolerAvailable"]["status"] == "True"
    assert after["PoolerAvailable"]["reason"] == "Progressing"
    assert after["PoolerAvailable"]["lastTransitionTime"] == "2026-01-02T03:04:05Z"
    assert after["ConfigApplied"]["lastTransitionTime"] == "2026-01-02T03:05:05Z"


def test_no_pod_ready_is_not_ready_and_makes_events_of_the_transitions(cluster: Simulation) -> None:
    body, events = told(cluster, pods=())
    assert conditions(body)["Ready"]["reason"] == "NoPodReady"
    assert {(event.type, event.reason) for event in events} >= {("Warning", "NoPodReady")}


def test_an_event_of_the_same_transition_has_the_same_name_and_another_has_another(cluster: Simulation) -> None:
    first, again = told(cluster, pods=())[1], told(cluster, later=5, pods=())[1]
    assert [event.name for event in first] == [event.name for event in again]
    assert len({event.name for event in first}) == len(first)
    other = told(cluster, pods=(), refusals=refused(cluster.world(), "Service", "data", "shop-pooler"))[1]
    assert {event.name for event in other} != {event.name for event in first}


@pytest.mark.parametrize(
    "kind", ["Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler"]
)
def test_what_the_api_server_refuses_is_quoted(cluster: Simulation, kind: str) -> None:
    body, _ = told(cluster, refusals=refused(cluster.world(), kind, "data", "shop-pooler"))
    condition = conditions(body)["PoolerAvailable"]
    assert (condition["status"], condition["reason"]) == ("False", "Forbidden")
    assert condition["message"] == f"no {kind} for you"
    assert conditions(body)["Ready"]["message"] == f"no {kind} for you"


@pytest.mark.parametrize("name", ["shop-pooler-config", "shop-pooler-logins", "shop-owner"])
def test_a_refused_secret_of_our_own_concerns_the_configuration(cluster: Simulation, name: str) -> None:
    body, _ = told(cluster, refusals=refused(cluster.world(), "Secret", "data", name))
    assert conditions(body)["ConfigApplied"]["reason"] == "Forbidden"
    assert conditions(body)["Ready"]["status"] == "False"


@pytest.mark.parametrize("name", ["database", "database-binding"])
def test_a_refused_secret_of_a_consumer_leaves_ready_alone(cluster: Simulation, name: str) -> None:
    body, _ = told(cluster, refusals=refused(cluster.world(), "Secret", "web", name))
    after = conditions(body)
    assert (after["ConsumersSynced"]["status"], after["ConsumersSynced"]["reason"]) == ("False", "Forbidden")
    assert after["Ready"]["status"] == "True"
    assert body is not None
    assert body["consumers"]["synced"] == 0


def test_of_many_failing_consumers_ten_are_listed_and_all_are_counted(cluster: Simulation) -> None:
    cluster.edit(consumers=[{"namespace": f"nowhere-{number}"} for number in range(30)])
    body, _ = told(cluster)
    assert body is not None
    assert body["consumers"]["total"] == 30
    assert body["consumers"]["synced"] == 0
    assert len(body["consumers"]["failing"]) == 10
    assert "30 of 30 consumers" in conditions(body)["ConsumersSynced"]["message"]


def test_messages_are_bounded(cluster: Simulation) -> None:
    long = {Ref("Service", "data", "shop-pooler"): ApiRefusal("Invalid", "x" * 100_000)}
    body, events = told(cluster, refusals=long)
    assert max(len(item["message"]) for item in conditions(body).values()) <= 1024
    assert max(len(event.message) for event in events) <= 1024


def test_scaled_to_zero_says_so(cluster: Simulation) -> None:
    cluster.edit(pooler={"replicas": 0})
    body, _ = told(cluster, pods=())
    assert conditions(body)["PoolerAvailable"]["reason"] == "ScaledToZero"
    assert conditions(body)["PoolerAvailable"]["observedGeneration"] == 2


def test_a_terminating_pod_counts_for_nothing(cluster: Simulation) -> None:
    body, _ = told(cluster, pods=(ready_pod(1), replace(ready_pod(2), terminating=True)))
    assert body is not None
    assert (body["replicas"], body["readyReplicas"]) == (1, 1)


def test_a_pod_whose_image_cannot_be_pulled_is_named(cluster: Simulation) -> None:
    stuck = replace(ready_pod(2), ready=False, problem="ImagePullBackOff: image x can't be pulled")
    body, _ = told(cluster, pods=(ready_pod(1), stuck))
    condition = conditions(body)["PoolerAvailable"]
    assert (condition["status"], condition["reason"]) == ("False", "ImagePullBackOff")
    assert "shop-pooler-2" in condition["message"]


def test_a_pod_that_restarted_has_to_show_its_configuration_again(cluster: Simulation) -> None:
    body, _ = told(cluster, pods=(ready_pod(1), replace(ready_pod(2), restarts=1)))
    assert conditions(body)["ConfigApplied"]["status"] == "False"


def test_own_namespace_consumers_are_offered_as_a_binding(cluster: Simulation) -> None:
    cluster.edit(consumers=[{"namespace": "data", "secretName": "own"}])
    body, _ = told(cluster)
    assert body is not None
    assert body["binding"] == {"name": "own-binding"}
