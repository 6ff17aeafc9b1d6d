"""docs/gitops.md: its snippets do what it says, by the computations of the tools that they are for."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.spec.parse import parse
from tests import specs
from tests.fast.docs.gitops import (
    SCHEMA,
    defaulted,
    document,
    documents,
    drift,
    kstatus,
    list_defaults,
    snippets,
)
from tests.fast.worlds import Simulation, ready_pod

Object = dict[str, Any]
RULES = [
    rule
    for rule in document("Application", "ignoreDifferences")
    if (rule["group"], rule["kind"]) == ("poolkeeper.io", "PooledDatabase")
]
[IGNORED] = [rule["jqPathExpressions"] for rule in RULES]
CONSUMERS = st.lists(
    st.fixed_dictionaries(
        {"namespace": st.sampled_from(["web", "api"])},
        optional={
            "secretName": st.sampled_from(["database", "other"]),
            "weight": st.sampled_from([100, 1, 150]),
            "limits": st.fixed_dictionaries(
                {},
                optional={
                    "sessionConnections": st.sampled_from([2, 0, 5]),
                    "maxConnections": st.sampled_from([3, 100]),
                },
            ),
        },
    ),
    max_size=4,
)


def stored(manifest: Object) -> Object:
    return {**manifest, "spec": defaulted(manifest["spec"], SCHEMA)}


def manifest(spec: specs.Spec) -> Object:
    return {"metadata": {"name": "shop"}, "spec": spec}


def of_consumers(consumers: list[Object]) -> Object:
    return manifest({**copy.deepcopy(specs.MINIMAL), "consumers": consumers})


@pytest.mark.parametrize("spec", [specs.MINIMAL, specs.BY_HOST, specs.BY_URL], ids=["minimal", "host", "url"])
def test_a_manifest_shows_no_drift_with_the_rule_of_the_page(spec: specs.Spec) -> None:
    made = manifest(spec)
    assert not drift(made, stored(made), IGNORED)


@given(CONSUMERS)
def test_whatever_consumers_leave_out_is_no_drift_with_the_rule(consumers: list[Object]) -> None:
    made = of_consumers(consumers)
    assert not drift(made, stored(made), IGNORED)


@given(CONSUMERS, CONSUMERS)
def test_a_change_in_git_shows_although_the_rule_is_there(before: list[Object], after: list[Object]) -> None:
    live, made = stored(of_consumers(before)), of_consumers(after)
    assert drift(made, live, IGNORED) == (stored(made) != live)


@pytest.mark.parametrize("expression", IGNORED)
def test_the_rule_has_nothing_that_is_not_needed(expression: str) -> None:
    """Each of its lines covers a default that shows without it."""
    items: list[Object] = [
        {"namespace": "web"},
        {"namespace": "web", "limits": {"maxConnections": 3}},
        {"namespace": "web", "secretName": "x", "weight": 1},
    ]
    made = of_consumers(items)
    assert drift(made, stored(made), [item for item in IGNORED if item != expression])
    assert drift(made, stored(made), [])


def test_the_rule_covers_every_default_inside_of_a_list() -> None:
    assert sorted({expression.split(" | ")[0] for expression in IGNORED}) == sorted(list_defaults())


def test_consumers_written_out_as_on_the_page_show_no_drift_without_the_rule() -> None:
    made = of_consumers(document("PooledDatabase", "consumers"))
    assert not drift(made, stored(made), [])
    parse({**made, "metadata": {"name": "shop", "namespace": "data", "uid": "u"}})


def test_every_document_of_the_page_is_one() -> None:
    assert {title for title, _ in documents()} >= {"Application", "AppProject", "Kustomization", "Namespace"}
    for _, made in documents():
        assert isinstance(made, dict)
    annotations = [made.get("metadata", {}).get("annotations", {}) for _, made in documents()]
    assert all(isinstance(value, str) for item in annotations for value in item.values())
    waves = [
        int(item["argocd.argoproj.io/sync-wave"])
        for item in annotations
        if "argocd.argoproj.io/sync-wave" in item
    ]
    assert waves == sorted(waves)


def conditions_of(text: str) -> set[str]:
    """The conditions that a health check, in Lua or CEL, looks at."""
    return {name for found in re.findall(r"\bfound\.(\w+)|\bc\.type == '(\w+)'|\"([A-Z]\w+)\"[,}]", text)
            for name in found if name}  # fmt: skip


def test_health_checks_name_conditions_that_there_are() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    known = {item["type"] for item in cluster.status["conditions"]} | {"Paused"}
    healths = {"Progressing", "Healthy", "Degraded", "Suspended"}
    [lua] = [made for _, made in documents() if "data" in made]
    [(key, check)] = lua["data"].items()
    assert key == "resource.customizations.health.poolkeeper.io_PooledDatabase"
    [expressions] = document("Kustomization", "healthCheckExprs")
    for text in (check, expressions["failed"], expressions["current"]):
        assert conditions_of(text) - healths
        assert conditions_of(text) - healths <= known
    assert (expressions["apiVersion"], expressions["kind"]) == ("poolkeeper.io/v1alpha1", "PooledDatabase")
    assert len(snippets("yaml")) > 5


def resource(cluster: Simulation) -> Object:
    return {"metadata": cluster.resource["metadata"], "status": cluster.status}


def test_kstatus_is_in_progress_until_the_poolers_serve_and_after_each_change_of_the_spec() -> None:
    cluster = Simulation()
    seen = []
    for _ in range(10):
        cluster.step()
        seen.append(kstatus(resource(cluster)) if cluster.status else "none")
    assert seen[-1] == "InProgress"
    assert "Current" not in seen
    cluster.pods = (ready_pod(1), ready_pod(2))
    cluster.settle()
    assert kstatus(resource(cluster)) == "Current"
    cluster.edit(consumers=[])
    assert kstatus(resource(cluster)) == "InProgress"
    cluster.settle()
    assert kstatus(resource(cluster)) == "Current"
    cluster.edit(consumers=[{"namespace": "a", "namespaceSelector": {}}])
    cluster.settle()
    assert kstatus(resource(cluster)) == "InProgress"
    assert cluster.condition("SpecValid")["status"] == "False"
    generation = cluster.resource["metadata"]["generation"]
    assert cluster.status["observedGeneration"] == generation, "or the checks of the page wait for it"
