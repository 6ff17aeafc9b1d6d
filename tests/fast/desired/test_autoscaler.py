"""The HorizontalPodAutoscaler: there where it is asked for, and only there."""

from __future__ import annotations

from poolkeeper import names
from poolkeeper.observed.refs import Ref
from tests.fast.worlds import UID, Simulation

AUTOSCALER = Ref("HorizontalPodAutoscaler", "data", "shop-pooler")


def test_it_scales_the_pooled_database_by_the_cpu_of_its_pods() -> None:
    cluster = Simulation()
    cluster.edit(pooler={"autoscaling": {"min": 2, "max": 6}})
    cluster.settle()
    found = cluster.objects[AUTOSCALER]
    assert found["metadata"]["labels"] == names.child_labels("data", "shop", UID, names.ROLE_POOLER)
    assert found["spec"] == {
        "scaleTargetRef": {"apiVersion": "poolkeeper.io/v1alpha1", "kind": "PooledDatabase", "name": "shop"},
        "minReplicas": 2,
        "maxReplicas": 6,
        "metrics": [
            {
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "700m"}},
            }
        ],
        "behavior": {
            "scaleUp": {
                "stabilizationWindowSeconds": 0,
                "selectPolicy": "Max",
                "policies": [{"type": "Pods", "value": 2, "periodSeconds": 15}],
            },
            "scaleDown": {
                "stabilizationWindowSeconds": 300,
                "selectPolicy": "Max",
                "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
            },
        },
    }


def test_without_the_field_there_is_none_and_one_that_was_there_goes() -> None:
    cluster = Simulation()
    cluster.settle()
    assert AUTOSCALER not in cluster.objects
    cluster.edit(pooler={"autoscaling": {"min": 2, "max": 6}})
    cluster.settle()
    assert AUTOSCALER in cluster.objects
    cluster.edit(pooler={})
    cluster.settle()
    assert AUTOSCALER not in cluster.objects


def test_the_number_of_pods_is_the_spec_s_whatever_the_autoscaler_may_choose() -> None:
    """It writes the PooledDatabase's replicas; what it has not written yet is not guessed."""
    cluster = Simulation()
    cluster.edit(pooler={"replicas": 3, "autoscaling": {"min": 5, "max": 6}})
    cluster.settle()
    assert cluster.objects[Ref("Deployment", "data", "shop-pooler")]["spec"]["replicas"] == 3
