"""The policy on workloads: RBAC lets the operator patch the apps' workloads, this leaves it one annotation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster.control_plane import ControlPlane
from poolkeeper import names
from poolkeeper.plan.keeper_rollout import annotation
from tests.apiserver.client import Api, Refused
from tests.apiserver.in_force import chart_in_force
from tests.fast.worlds import Simulation

Object = dict[str, Any]

WORKLOADS = ("deployments", "statefulsets", "daemonsets")
MARK = annotation("database")
COLLECTION = "/apis/apps/v1/namespaces/restarted/{}"


def body(plural: str, name: str, **metadata: Any) -> Object:
    labels = {"app": name}
    template: Object = {
        "metadata": {"labels": {**labels, "team": "a"}, "annotations": {"note": "a", "other": "b"}},
        "spec": {"containers": [{"name": "app", "image": "example.com/app:1"}]},
    }
    kinds = {"deployments": "Deployment", "statefulsets": "StatefulSet", "daemonsets": "DaemonSet"}
    spec: dict[str, Any] = {"selector": {"matchLabels": labels}, "template": template}
    if plural != "daemonsets":
        spec["replicas"] = 2
    if plural == "statefulsets":
        spec["serviceName"] = name
    meta = {"name": name, "labels": {"team": "a"}, "annotations": {"kept": "a"}, **metadata}
    return {"apiVersion": "apps/v1", "kind": kinds[plural], "metadata": meta, "spec": spec}


@pytest.fixture(scope="module")
def operator(control_plane: ControlPlane, api: Api) -> Iterator[Api]:
    """Access with the operator's name and rights; workloads of an app."""
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "restarted"}}
    api.apply("/api/v1/namespaces/restarted", space)
    for plural in WORKLOADS:
        api.create(COLLECTION.format(plural), body(plural, "app"))
    with chart_in_force(control_plane, api, "--set", "keeper.restartWorkloads=true") as operator:
        yield operator


def change(api: Api, plural: str, patch: Object, name: str = "app") -> Object:
    return api.merge(f"{COLLECTION.format(plural)}/{name}", patch)


def in_template(annotations: Object) -> Object:
    return {"spec": {"template": {"metadata": {"annotations": annotations}}}}


@pytest.mark.parametrize("plural", WORKLOADS)
def test_the_operator_may_restart_a_workload_again_and_again(operator: Api, plural: str) -> None:
    for text in ("0123456789ab", "ba9876543210"):
        made = change(operator, plural, in_template({MARK: text}))
        annotations = made["spec"]["template"]["metadata"]["annotations"]
        assert annotations == {"note": "a", "other": "b", MARK: text}
    change(operator, plural, in_template({MARK: None}))


REFUSED: tuple[Object, ...] = (
    in_template({"note": "c"}),
    in_template({"note": None}),
    in_template({"kubectl.kubernetes.io/restartedAt": "now"}),
    in_template({"poolkeeper.io/databases": "all"}),
    {"spec": {"template": {"metadata": {"labels": {"team": "b"}}}}},
    {"spec": {"template": {"spec": {"containers": [{"name": "app", "image": "example.com/evil:1"}]}}}},
    {"spec": {"template": {"spec": {"serviceAccountName": "admin"}}}},
    {"spec": {"minReadySeconds": 5}},
    {"spec": {"revisionHistoryLimit": 1}},
    {"metadata": {"labels": {"team": "b"}}},
    {"metadata": {"labels": {names.ROLE_LABEL: names.ROLE_POOLER}}},
    {"metadata": {"annotations": {"note": "c"}}},
    {"metadata": {"annotations": {"kept": None}}},
    {"metadata": {"finalizers": ["example.com/stay"]}},
)


@pytest.mark.parametrize("plural", WORKLOADS)
def test_the_operator_may_change_nothing_else_of_it(operator: Api, plural: str) -> None:
    for patch in REFUSED:
        with pytest.raises(Refused, match="the Poolkeeper operator may"):
            change(operator, plural, patch)
        both = copy.deepcopy(patch)
        spec = both.setdefault("spec", {}).setdefault("template", {}).setdefault("metadata", {})
        spec.setdefault("annotations", {})[MARK] = "0123456789ab"
        with pytest.raises(Refused, match="the Poolkeeper operator may"):
            change(operator, plural, both)


@pytest.mark.parametrize(
    ("plural", "spec"),
    [
        ("deployments", {"replicas": 0}),
        ("deployments", {"paused": True}),
        ("deployments", {"strategy": {"type": "Recreate", "rollingUpdate": None}}),
        ("deployments", {"progressDeadlineSeconds": 5}),
        ("statefulsets", {"replicas": 0}),
        ("statefulsets", {"updateStrategy": {"type": "OnDelete", "rollingUpdate": None}}),
        ("statefulsets", {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}),
        ("statefulsets", {"ordinals": {"start": 3}}),
        ("daemonsets", {"updateStrategy": {"type": "OnDelete", "rollingUpdate": None}}),
    ],
    ids=str,
)
def test_nor_how_it_runs(operator: Api, api: Api, plural: str, spec: Object) -> None:
    with pytest.raises(Refused, match="the Poolkeeper operator may"):
        change(operator, plural, {"spec": spec})
    asked = api.request(
        "PATCH",
        f"{COLLECTION.format(plural)}/app",
        {"spec": spec},
        content_type="application/merge-patch+json",
        dryRun="All",
    )
    assert asked, "it is the policy that refuses it"


def test_poolers_are_the_operators_own(operator: Api, api: Api) -> None:
    pooler = {names.ROLE_LABEL: names.ROLE_POOLER}
    world = Simulation()
    world.settle()
    [deployment] = [obj for obj in world.objects.values() if obj["kind"] == "Deployment"]
    deployment["metadata"]["namespace"] = "restarted"
    name = deployment["metadata"]["name"]
    api.create(COLLECTION.format("deployments"), deployment)
    assert change(operator, "deployments", {"spec": {"replicas": 5}}, name)["spec"]["replicas"] == 5
    for plural in ("statefulsets", "daemonsets"):
        api.create(COLLECTION.format(plural), body(plural, "pooler", labels=pooler))
        with pytest.raises(Refused, match="the Poolkeeper operator may"):
            change(operator, plural, {"spec": {"minReadySeconds": 5}}, "pooler")


def test_everybody_else_changes_what_they_may(api: Api, operator: Api) -> None:
    assert change(api, "deployments", {"spec": {"replicas": 3}})["spec"]["replicas"] == 3
    for plural in ("statefulsets", "daemonsets"):
        with pytest.raises(Refused, match="cannot delete resource"):
            operator.delete(f"{COLLECTION.format(plural)}/app")
