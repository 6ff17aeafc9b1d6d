"""The HorizontalPodAutoscaler at a real API server, and what its controller makes of it without metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster.control_plane import ControlPlane
from poolkeeper import names
from tests.apiserver.client import Refused
from tests.apiserver.operator.operator_process import Operator
from tests.apiserver.operator.site import Lane, Site, eventually, path

REPAIR_SECONDS = 10.0
KIND = "HorizontalPodAutoscaler"
NAME = "shop-pooler"


@pytest.fixture
def scaled(lane: Lane, operator: Operator) -> Lane:
    lane.apply(pooler={"autoscaling": {"min": 2, "max": 6}})
    lane.synced(2)
    lane.expect("UpstreamReachable", "True", "Reachable")
    return lane


def spec(lane: Lane) -> dict[str, Any]:
    found: dict[str, Any] = lane.get(KIND, NAME)["spec"]
    return found


def absent(lane: Lane) -> bool:
    try:
        lane.get(KIND, NAME)
    except Refused as refusal:
        return refusal.code == 404
    return False


def test_the_autoscaler_is_accepted_and_settles_without_a_further_write_also_after_a_restart(
    scaled: Lane, operator: Operator
) -> None:
    found = spec(scaled)
    assert (found["minReplicas"], found["maxReplicas"]) == (2, 6)
    assert found["scaleTargetRef"] == {
        "apiVersion": "poolkeeper.io/v1alpha1",
        "kind": "PooledDatabase",
        "name": "shop",
    }
    assert found["metrics"][0]["resource"]["target"] == {"type": "AverageValue", "averageValue": "700m"}
    time.sleep(1)
    before = scaled.writes()
    time.sleep(7)
    assert scaled.writes()[len(before) :] == []
    assert operator.terminate() == 0
    operator.start()
    eventually(lambda: operator.said().count("resync: ") == 2, 10)
    time.sleep(7)
    assert scaled.writes()[len(before) :] == []


def test_the_autoscaler_follows_the_spec_and_goes_with_the_field(scaled: Lane) -> None:
    scaled.apply(pooler={"autoscaling": {"min": 3, "max": 4}})
    eventually(lambda: (spec(scaled)["minReplicas"], spec(scaled)["maxReplicas"]) == (3, 4), REPAIR_SECONDS)
    scaled.apply()
    eventually(lambda: absent(scaled), REPAIR_SECONDS)


def test_the_autoscaler_goes_with_the_pooled_database(scaled: Lane) -> None:
    scaled.delete()
    eventually(lambda: absent(scaled), REPAIR_SECONDS)


def test_a_written_status_of_the_autoscaler_is_no_reason_to_write(scaled: Lane) -> None:
    """Its controller writes one every 15 seconds."""
    time.sleep(1)
    before = scaled.writes()
    status = {"status": {"currentReplicas": 2, "desiredReplicas": 2}}
    scaled.api.merge(path(KIND, scaled.data, NAME, "status"), status)
    assert scaled.get(KIND, NAME)["status"]["currentReplicas"] == 2
    time.sleep(3)
    assert scaled.writes()[len(before) :] == []


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"maxReplicas": 50}},
        {"spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME}}},
        {"spec": {"metrics": None}},
        {"spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}},
        {"metadata": {"labels": {names.ROLE_LABEL: None}}},
        None,
    ],
    ids=["maximum", "target", "metrics", "behavior", "label", "deleted"],
)
def test_the_autoscaler_edited_or_deleted_by_hand_is_repaired(
    scaled: Lane, change: dict[str, Any] | None
) -> None:
    whole = scaled.get(KIND, NAME)
    if change is None:
        scaled.api.delete(path(KIND, scaled.data, NAME))
    else:
        scaled.api.merge(path(KIND, scaled.data, NAME), change)

    def repaired() -> None:
        found = scaled.get(KIND, NAME)
        assert found["spec"] == whole["spec"]
        assert found["metadata"]["labels"] == whole["metadata"]["labels"]

    eventually(repaired, REPAIR_SECONDS)


def test_who_scales_the_pooled_database_is_followed_and_not_undone(scaled: Lane) -> None:
    """As the autoscaler's controller does, through the scale subresource."""
    where = path("PooledDatabase", scaled.data, "shop", "scale")
    scaled.api.merge(where, {"spec": {"replicas": 5}})
    eventually(lambda: scaled.get("Deployment", NAME)["spec"]["replicas"] == 5, REPAIR_SECONDS)
    scaled.apply(pooler={"autoscaling": {"min": 2, "max": 8}})
    eventually(lambda: spec(scaled)["maxReplicas"] == 8, REPAIR_SECONDS)
    assert scaled.resource()["spec"]["pooler"]["replicas"] == 5
    assert scaled.get("Deployment", NAME)["spec"]["replicas"] == 5


CONTROLLER_SECONDS = 60.0
"""The controller looks at each autoscaler every 15 seconds."""


@pytest.fixture(scope="module")
def scaling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    """A lane of a control plane of its own, where the autoscalers' controller runs. There are no metrics."""
    directory = tmp_path_factory.mktemp("scaling-site")
    audit_log = directory / "audit.log"
    controllers = ["namespace-controller", "horizontal-pod-autoscaler-controller"]
    with ControlPlane(directory / "plane", controllers, audit_log) as plane:
        site = Site(plane, directory, audit_log)
        try:
            yield Lane(site)
        finally:
            site.close()


def test_the_real_controller_brings_the_pooled_database_between_min_and_max(scaling: Lane) -> None:
    """For that it needs no metrics; without them it says so and leaves the number as it is."""
    running = scaling.site.operator(scaling.namespaces).start()

    def poolers() -> tuple[int, int]:
        wanted = scaling.resource()["spec"]["pooler"]["replicas"]
        return wanted, scaling.get("Deployment", NAME)["spec"]["replicas"]

    scaling.apply(pooler={"autoscaling": {"min": 4, "max": 6}})
    eventually(lambda: poolers() == (4, 4), CONTROLLER_SECONDS)
    # What is applied again doesn't name replicas, and leaves them to the controller.
    scaling.apply(pooler={"autoscaling": {"min": 1, "max": 3}})
    eventually(lambda: poolers() == (3, 3), CONTROLLER_SECONDS)
    written = scaling.writes()
    assert not [line for line in written if "pooleddatabases/scale" in line]

    def said() -> None:
        conditions = scaling.get(KIND, NAME)["status"]["conditions"]
        reasons = {item["type"]: (item["status"], item["reason"]) for item in conditions}
        assert reasons.get("ScalingActive") == ("False", "FailedGetResourceMetric"), conditions
        assert reasons["AbleToScale"][0] == "True", conditions

    eventually(said, CONTROLLER_SECONDS)
    scaling.apply(pooler={"replicas": 5})
    eventually(lambda: absent(scaling) and poolers() == (5, 5), REPAIR_SECONDS)
    assert "Traceback" not in running.said(), running.said()[-5000:]
