"""What the cluster refuses to the operator shows in a condition with the cluster's own words, and heals."""

from __future__ import annotations

import json

from e2e import kube
from e2e.kube import Object, kubectl
from tests.e2e.client import Agent
from tests.e2e.kit import Place

ONE = [{"one": "1"}]


def test_resource_quota_on_pods_is_quoted_and_old_pods_serve(place: Place, agent: Agent) -> None:
    url = place.serve(place.spec(replicas=1))
    limit(place.data, "ResourceQuota", {"hard": {"pods": "1"}})
    kubectl("-n", place.data, "scale", "pooldb/shop", "--replicas=2")
    message = place.wait_condition("PoolerAvailable", "False", "PodsRefused", within=30)
    assert "exceeded quota" in message
    assert agent.query(url, "SELECT 1 AS one") == ONE
    kubectl("-n", place.data, "scale", "pooldb/shop", "--replicas=1")
    place.wait_ready()


def test_resource_quota_on_secrets_is_quoted_and_heals(place: Place, agent: Agent) -> None:
    limit(place.web, "ResourceQuota", {"hard": {"count/secrets": "1"}})
    place.apply(place.spec(replicas=1))
    place.wait_ready()
    message = place.wait_condition("ConsumersSynced", "False", "QuotaExceeded", within=30)
    assert "exceeded quota" in message
    assert place.condition("Ready")["status"] == "True"
    kubectl("-n", place.web, "delete", "resourcequota", "narrow")
    place.wait_condition("ConsumersSynced", "True", "Synced", within=30)
    assert agent.query_soon(place.url(), "SELECT 1 AS one", within=10) == ONE


def test_limit_range_that_refuses_the_poolers_is_quoted(place: Place) -> None:
    limit(place.data, "LimitRange", {"limits": [{"type": "Container", "max": {"memory": "64Mi"}}]})
    place.apply(place.spec(replicas=1))
    message = place.wait_condition("PoolerAvailable", "False", "PodsRefused", within=30)
    assert "maximum memory usage" in message
    place.patch({"pooler": {"resources": {"limits": {"memory": "64Mi"}}}})
    place.wait_ready()


def limit(namespace: str, kind: str, spec: Object) -> None:
    metadata = {"namespace": namespace, "name": "narrow"}
    kube.apply(json.dumps({"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}))
