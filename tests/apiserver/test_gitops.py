"""What GitOps tools see of a PooledDatabase at a real API server, by the computations of docs/gitops.md."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests import specs
from tests.apiserver.client import Api
from tests.fast.docs.gitops import SCHEMA, defaulted, document, drift

Object = dict[str, Any]
[IGNORED] = [rule["jqPathExpressions"] for rule in document("Application", "ignoreDifferences")]
CONSUMERS: list[Object] = [
    {"namespace": "web"},
    {"namespace": "api", "secretName": "other", "limits": {"maxConnections": 5}},
    {"namespaceSelector": {"matchLabels": {"tier": "apps"}}, "secretName": "third", "weight": 5},
]


@pytest.mark.parametrize(
    "spec",
    [specs.MINIMAL, specs.BY_HOST, specs.BY_URL, {**specs.MINIMAL, "consumers": CONSUMERS}],
    ids=["minimal", "host", "url", "consumers"],
)
def test_no_gitops_tool_sees_a_drift(api: Api, namespace: str, spec: specs.Spec) -> None:
    """Argo CD with the rule of the page; Argo CD's comparison by the API server, and Flux, without one."""
    manifest: Object = {
        "apiVersion": "poolkeeper.io/v1alpha1",
        "kind": "PooledDatabase",
        "metadata": {"name": "shop", "namespace": namespace},
        "spec": copy.deepcopy(spec),
    }
    path = f"/apis/poolkeeper.io/v1alpha1/namespaces/{namespace}/pooleddatabases/shop"
    live = api.apply(path, manifest, manager="kustomize-controller")
    assert live["spec"] == defaulted(spec, SCHEMA)
    assert not drift(manifest, live, IGNORED)
    assert drift(manifest, live, []) == (spec.get("consumers") != live["spec"].get("consumers"))
    again = api.request(
        "PATCH",
        path,
        manifest,
        content_type="application/apply-patch+yaml",
        fieldManager="kustomize-controller",
        force="true",
        dryRun="All",
    )
    assert again == live
