"""The NetworkPolicy: poolers admit only their consumers' namespaces, one another and the operator."""

from __future__ import annotations

from collections.abc import Iterable

from poolkeeper import names
from poolkeeper.desired.metadata import Object, metadata
from poolkeeper.settings import Settings
from poolkeeper.spec.parse import PooledDatabase

_NAMESPACE_NAME = "kubernetes.io/metadata.name"


def render(database: PooledDatabase, consumer_namespaces: Iterable[str], settings: Settings) -> Object:
    """The policy, for ingress only: it can't say where the upstream is if that is a DNS name."""
    namespaces = sorted(set(consumer_namespaces))
    operator = {
        "namespaceSelector": {"matchLabels": {_NAMESPACE_NAME: settings.namespace}},
        "podSelector": {
            "matchLabels": {
                "app.kubernetes.io/name": "poolkeeper",
                "app.kubernetes.io/component": "operator",
            }
        },
    }
    peers = {"podSelector": {"matchLabels": names.pod_selector(database.uid)}}  # they pass on cancel requests
    consumers = {
        "namespaceSelector": {
            "matchExpressions": [{"key": _NAMESPACE_NAME, "operator": "In", "values": namespaces}]
        }
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(database, names.ROLE_POOLER, names.pooler_name(database.name)),
        "spec": {
            "podSelector": {"matchLabels": names.pod_selector(database.uid)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [operator, peers, *([consumers] if namespaces else [])],
                    "ports": [{"port": names.POOLER_PORT, "protocol": "TCP"}],
                }
            ],
        },
    }
