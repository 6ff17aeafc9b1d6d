"""What every object of a PooledDatabase carries, and what none may: labels that other tools track."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from poolkeeper import names
from poolkeeper.observed.refs import Ref
from tests.fast.observed.test_origin import OBJECTS, title
from tests.fast.worlds import UID, Simulation

Object = dict[str, Any]
DEPLOYMENT = Ref("Deployment", "data", "shop-pooler")

TRACKED = ("app.kubernetes.io/instance", "app.kubernetes.io/part-of", "helm.sh/", "argocd.argoproj.io/",
           "kustomize.toolkit.fluxcd.io/", "helm.toolkit.fluxcd.io/", "objectset.rio.cattle.io/")  # fmt: skip
"""Labels and annotations by which Argo CD, Flux, Helm and Fleet know the objects that they may delete."""


@pytest.mark.parametrize("body", OBJECTS, ids=title)
def test_no_object_carries_what_a_gitops_tool_tracks(body: Object) -> None:
    metadata = body["metadata"]
    assert [key for key in {**metadata["labels"], **metadata["annotations"]} if key.startswith(TRACKED)] == []
    assert metadata["labels"][names.MANAGED_BY] == "poolkeeper"


@pytest.mark.parametrize("body", OBJECTS, ids=title)
def test_an_object_has_its_owner_wherever_kubernetes_allows_one(body: Object) -> None:
    """A GitOps tool leaves an object with an owner alone, and Kubernetes deletes it with its owner."""
    owners = body["metadata"].get("ownerReferences", [])
    if body["metadata"]["namespace"] != "data":
        assert owners == []
        return
    [owner] = owners
    assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == (
        names.KIND,
        "shop",
        UID,
        True,
    )


@pytest.mark.parametrize("body", OBJECTS, ids=title)
def test_an_object_says_where_the_operator_made_it(body: Object) -> None:
    metadata = body["metadata"]
    place = f"{metadata['namespace']}/{metadata['name']}"
    assert metadata["annotations"][names.ORIGIN_ANNOTATION] == place


def test_pods_are_selected_by_labels_of_the_operators_own() -> None:
    [deployment] = [obj for obj in OBJECTS if obj["kind"] == "Deployment"]
    template = deployment["spec"]["template"]["metadata"]
    assert [key for key in template["labels"] if key.startswith(TRACKED)] == []
    assert set(template["annotations"]) == {"poolkeeper.io/owner", "poolkeeper.io/restart-digest"}
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector == {"poolkeeper.io/owner-uid": UID, "poolkeeper.io/role": "pooler"}


def template(cluster: Simulation) -> Object:
    made: Object = cluster.objects[DEPLOYMENT]["spec"]["template"]
    return made


def upgraded(**pooler: Any) -> tuple[Simulation, Object]:
    """A cluster whose Deployment an older operator made, and its template."""
    cluster = Simulation()
    cluster.edit(pooler=pooler)
    cluster.settle()
    older = copy.deepcopy(cluster.objects[DEPLOYMENT])
    for metadata in (older["metadata"], older["spec"]["template"]["metadata"]):
        metadata["labels"]["app.kubernetes.io/instance"] = "shop"
    del older["metadata"]["annotations"][names.ORIGIN_ANNOTATION]
    cluster.objects[DEPLOYMENT] = older
    cluster.settle()
    assert "app.kubernetes.io/instance" not in cluster.objects[DEPLOYMENT]["metadata"]["labels"]
    return cluster, older["spec"]["template"]


@pytest.mark.parametrize("labels", [{}, {"app.kubernetes.io/instance": "mine"}, {"team": "shop"}])
def test_an_upgrade_replaces_no_pod_and_the_next_restart_takes_the_label(labels: dict[str, str]) -> None:
    cluster, before = upgraded(podLabels=labels)
    assert template(cluster) == before
    cluster.edit(pooler={"podLabels": labels, "replicas": 3})
    cluster.settle()
    assert template(cluster) == before
    cluster.edit(pooler={"podLabels": labels, "mode": "session"})
    cluster.settle()
    found = template(cluster)["metadata"]["labels"]
    assert found.get("app.kubernetes.io/instance") == labels.get("app.kubernetes.io/instance")
    written = len(cluster.log)
    cluster.settle()
    assert len(cluster.log) == written
