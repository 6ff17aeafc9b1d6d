"""What the API server makes of the operator's objects reads as what was applied: settled means no write."""

from __future__ import annotations

import time
from typing import Any

from tests.apiserver.operator.site import Lane, Site, eventually, path

_TERM = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd", "nvme"]}]}
_POD_TERM = {
    "labelSelector": {
        "matchLabels": {"app": "shop"},
        "matchExpressions": [{"key": "tier", "operator": "Exists"}],
    },
    "topologyKey": "topology.kubernetes.io/zone",
    "namespaceSelector": {},
}
POD_SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "thousand-milli": {"resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": {"cpu": "1"}}},
    "fractions": {
        "resources": {"requests": {"cpu": 0.1, "memory": "0.5Gi"}, "limits": {"cpu": 2, "memory": "1Gi"}}
    },
    "kibibytes": {"resources": {"requests": {"memory": "65536Ki"}, "limits": {"memory": "262144Ki"}}},
    "exponents": {"resources": {"requests": {"cpu": "5e-1", "memory": "129e6"}, "limits": {"memory": "1e9"}}},
    "bytes": {"resources": {"requests": {"memory": "128974848"}, "limits": {"memory": 268435456}}},
    "milli-bytes": {"resources": {"requests": {"memory": "134217728000m"}, "limits": {"memory": "0.25Gi"}}},
    "extended": {"resources": {"limits": {"ephemeral-storage": "2000Mi", "example.com/thing": "1"}}},
    "empty-resources": {"resources": {}},
    "labels": {
        "podLabels": {"team": "shop", "example.com/part": ""},
        "podAnnotations": {"example.com/a": "b c\"'"},
        "serviceAnnotations": {"example.com/a": "b c"},
    },
    "node": {
        "nodeSelector": {"kubernetes.io/os": "linux", "disk": ""},
        "priorityClassName": "system-cluster-critical",
    },
    "pull-secrets": {
        "imagePullSecrets": [{"name": "one"}, {"name": "two"}],
        "image": "example.com:5000/a@sha256:" + "0" * 64,
    },
    "tolerations": {
        "tolerations": [
            {"operator": "Exists"},
            {"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "tolerationSeconds": 0},
            {"key": "c", "effect": "NoSchedule"},
            {"key": "d", "value": ""},
        ]
    },
    "node-affinity": {
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [_TERM]},
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 5, "preference": _TERM}],
            }
        }
    },
    "pod-affinity": {
        "affinity": {
            "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [_POD_TERM]},
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": _POD_TERM}]
            },
        }
    },
    "empty-affinity": {"affinity": {"nodeAffinity": {}}},
    "emptiness": {
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "labelSelector": {"matchLabels": {"a": ""}, "matchExpressions": []},
                        "namespaceSelector": {"matchLabels": {}},
                        "namespaces": [],
                        "topologyKey": "kubernetes.io/hostname",
                    }
                ],
                "preferredDuringSchedulingIgnoredDuringExecution": [],
            },
            "podAffinity": None,
        }
    },
    "drain": {"drainSeconds": 0, "replicas": 0, "mode": "statement"},
    "parameters": {
        "parameters": {"stats_period": 3, "server_reset_query": "DISCARD ALL", "query_timeout": "0.5"}
    },
}


def test_every_child_and_every_pod_setting_settles_without_a_further_write_also_after_a_restart(
    site: Site, lane: Lane
) -> None:
    operator = site.operator(lane.namespaces).start()
    for name, pooler in POD_SETTINGS.items():
        lane.apply(name, pooler=pooler, consumers=[{"namespace": lane.web, "secretName": name}])
    for name in POD_SETTINGS:
        lane.expect("SpecValid", "True", "Valid", name=name, seconds=20)
        lane.synced(1, name=name, seconds=20)
        lane.expect("UpstreamReachable", "True", "Reachable", name=name, seconds=20)
        assert lane.condition("PoolerAvailable", name)["reason"] in ("NoPodReady", "ScaledToZero"), name
    kinds = [obj["kind"] for obj in lane.children()]
    assert {kind: kinds.count(kind) // len(POD_SETTINGS) for kind in set(kinds)} == {
        "Deployment": 1,
        "Service": 1,
        "PodDisruptionBudget": 1,
        "NetworkPolicy": 1,
        "Secret": 5,
    }
    time.sleep(1)
    before = lane.writes()
    time.sleep(7)
    assert lane.writes()[len(before) :] == []
    assert operator.terminate() == 0
    operator.start()
    eventually(lambda: operator.said().count("resync: ") == 2, 10)
    time.sleep(7)
    assert lane.writes()[len(before) :] == []


def test_fields_that_others_own_are_left_to_them(site: Site, lane: Lane) -> None:
    """A mutating webhook, an autoscaler of the Deployment's annotations, a mesh: no tug of war."""
    site.operator(lane.namespaces).start()
    lane.apply()
    lane.synced(2)
    lane.expect("UpstreamReachable", "True", "Reachable")
    lane.api.merge(
        path("Deployment", lane.data, "shop-pooler"),
        {
            "metadata": {"labels": {"theirs": "1"}, "annotations": {"deployment.kubernetes.io/revision": "3"}},
            "spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}}},
        },
    )
    lane.api.merge(path("Service", lane.data, "shop-pooler"), {"metadata": {"annotations": {"mesh": "x"}}})
    before = lane.writes()
    lane.apply(pooler={"replicas": 4})
    eventually(lambda: lane.get("Deployment", "shop-pooler")["spec"]["replicas"] == 4, 10)
    time.sleep(2)
    assert len(lane.writes()) <= len(before) + 2, lane.writes()[len(before) :]
    deployment = lane.get("Deployment", "shop-pooler")
    assert deployment["metadata"]["labels"]["theirs"] == "1"
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["kubectl.kubernetes.io/restartedAt"] == "now"
