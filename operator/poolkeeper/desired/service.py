"""The pooler Service: the one address that every consumer's URL names."""

from __future__ import annotations

from poolkeeper import names
from poolkeeper.api import PooledDatabase
from poolkeeper.desired.metadata import Object, metadata


def host(database: PooledDatabase) -> str:
    """Name of the Service in URLs. Without the cluster's domain: every pod's resolver completes it."""
    return host_of(database.namespace, database.name)


def host_of(namespace: str, name: str) -> str:
    """The same, by the PooledDatabase's namespace and name."""
    return f"{names.pooler_name(name)}.{namespace}.svc"


def render(database: PooledDatabase) -> Object:
    """The ClusterIP Service over the ready pooler pods."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(database, names.ROLE_POOLER, names.pooler_name(database.name)),
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
