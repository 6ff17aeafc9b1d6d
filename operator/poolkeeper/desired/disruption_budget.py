"""The PodDisruptionBudget: a node drain takes one pooler pod at a time."""

from __future__ import annotations

from poolkeeper import names
from poolkeeper.desired.metadata import Object, metadata
from poolkeeper.spec.parse import PooledDatabase


def render(database: PooledDatabase) -> Object:
    """One pod may be missing; so with a single replica an eviction is never blocked for good.

    Pods that are not ready may always be evicted: they serve no client and would block a drain.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(database, names.ROLE_POOLER, names.pooler_name(database.name)),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": names.pod_selector(database.uid)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
