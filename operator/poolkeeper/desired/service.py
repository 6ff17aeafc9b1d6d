"""The pooler Service: the one address that every consumer's URL names."""

from __future__ import annotations

from poolkeeper import names
from poolkeeper.desired.metadata import Object, metadata
from poolkeeper.spec.parse import PooledDatabase


def render(database: PooledDatabase) -> Object:
    """The ClusterIP Service over the ready pooler pods."""
    meta = metadata(database, names.ROLE_POOLER, names.pooler_name(database.name))
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            **meta,
            "annotations": {**database.pooler.service_annotations, **meta["annotations"]},
        },
        "spec": {
            "type": "ClusterIP",
            "selector": names.pod_selector(database.uid),
            "ports": [
                {
                    "name": "postgres",
                    "port": names.POOLER_PORT,
                    "targetPort": "postgres",
                    "protocol": "TCP",
                }
            ],
        },
    }
