"""The HorizontalPodAutoscaler: how many pooler pods their CPU asks for. It knows nothing of server connections:
more pods never get more of them, since the budget divides the same sum."""

from __future__ import annotations

from poolkeeper import names
from poolkeeper.desired.metadata import Object, metadata
from poolkeeper.spec.parse import PooledDatabase

TARGET = "700m"
"""CPU of a pod, on average. PgBouncer has one thread, so a pod can use 1 at most: 0.7 leaves room until another
pod is there. (A utilization would be relative to the CPU request, which says nothing about that.)"""


def render(database: PooledDatabase) -> tuple[Object, ...]:
    """The autoscaler; none unless spec.pooler.autoscaling asks for it. It scales the PooledDatabase, not the
    Deployment, whose replicas are the operator's."""
    scaling = database.pooler.autoscaling
    if scaling is None:
        return ()
    up = {"type": "Pods", "value": 2, "periodSeconds": 15}
    # Each removed pod is drained, and load returns sooner than it stays away.
    down = {"type": "Pods", "value": 1, "periodSeconds": 60}
    return (
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": metadata(database, names.ROLE_POOLER, names.pooler_name(database.name)),
            "spec": {
                "scaleTargetRef": {
                    "apiVersion": f"{names.GROUP}/{names.VERSION}",
                    "kind": names.KIND,
                    "name": database.name,
                },
                "minReplicas": scaling.min,
                "maxReplicas": scaling.max,
                "metrics": [
                    {
                        "type": "Resource",
                        "resource": {
                            "name": "cpu",
                            "target": {"type": "AverageValue", "averageValue": TARGET},
                        },
                    }
                ],
                "behavior": {
                    "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [up]},
                    "scaleDown": {
                        "stabilizationWindowSeconds": 300,
                        "selectPolicy": "Max",
                        "policies": [down],
                    },
                },
            },
        },
    )
