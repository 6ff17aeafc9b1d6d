"""Who may connect to the poolers, as the policy is rendered; enforcing it is up to the cluster's network."""

from __future__ import annotations

from typing import Any

from poolkeeper import names
from poolkeeper.observed.refs import Ref
from tests.fast.worlds import UID, Simulation

POLICY = Ref("NetworkPolicy", "data", "shop-pooler")


def admitted(**spec: Any) -> list[dict[str, Any]]:
    cluster = Simulation()
    cluster.edit(**spec)
    cluster.settle()
    policy = cluster.objects[POLICY]["spec"]
    assert policy["podSelector"] == {"matchLabels": names.pod_selector(UID)}
    assert policy["policyTypes"] == ["Ingress"]
    [rule] = policy["ingress"]
    assert rule["ports"] == [{"port": 6432, "protocol": "TCP"}]
    peers: list[dict[str, Any]] = rule["from"]
    return peers


def test_the_operator_the_other_poolers_and_the_consumers_namespaces_are_admitted() -> None:
    operator, poolers, consumers = admitted()
    assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "poolkeeper"}
    assert operator["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "operator"
    assert poolers == {"podSelector": {"matchLabels": names.pod_selector(UID)}}
    [expression] = consumers["namespaceSelector"]["matchExpressions"]
    assert (expression["operator"], expression["values"]) == ("In", ["web"])


def test_without_consumers_no_namespace_is_admitted() -> None:
    """A selector without values would be refused, and one without expressions would admit everybody."""
    assert len(admitted(consumers=[])) == 2
    assert len(admitted(consumers=[{"namespace": "closed"}])) == 2
