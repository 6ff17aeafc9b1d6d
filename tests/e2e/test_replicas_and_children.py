"""Replicas by the scale subresource, and children that somebody edits or deletes by hand."""

from __future__ import annotations

import itertools
import json
from functools import partial

import pytest

from e2e import kube
from e2e.kube import Object, kubectl
from poolkeeper.desired.deployment import LEAVE_ENDPOINTS_SECONDS as PRE_STOP_SECONDS
from tests.e2e.client import Agent
from tests.e2e.kit import CONVERGES_WITHIN, Place, setting, timed, wait_until

ONE = [{"one": "1"}]
CHILDREN = [
    ("deployment", "shop-pooler"),
    ("service", "shop-pooler"),
    ("poddisruptionbudget", "shop-pooler"),
    ("networkpolicy", "shop-pooler"),
    ("secret", "shop-pooler-config"),
    ("secret", "shop-pooler-logins"),
    ("secret", "database"),
    ("secret", "database-binding"),
]
_sizes = itertools.count(21)
EDITS: dict[tuple[str, str], Object] = {
    ("deployment", "shop-pooler"): {"spec": {"replicas": 3}},
    ("service", "shop-pooler"): {"spec": {"selector": {"app.kubernetes.io/part-of": "nothing"}}},
    ("poddisruptionbudget", "shop-pooler"): {"spec": {"maxUnavailable": 2}},
    ("networkpolicy", "shop-pooler"): {"spec": {"ingress": [{}]}},
    ("secret", "shop-pooler-config"): {"data": {"pgbouncer.ini": "W3BnYm91bmNlcl0K"}},
    ("secret", "shop-pooler-logins"): {"data": {"console": "bm9uc2Vuc2U="}},
    ("secret", "database"): {"data": {"DATABASE_URL": "bm9uc2Vuc2U="}},
    ("secret", "database-binding"): {"data": {"uri": None}},
}


@pytest.fixture(scope="module")
def shop(module_place: Place) -> Place:
    module_place.serve()
    return module_place


def test_kubectl_scale_changes_the_poolers(shop: Place, agent: Agent) -> None:
    for replicas in (3, 1, 2):
        kubectl("-n", shop.data, "scale", "pooldb/shop", f"--replicas={replicas}")
        with timed(f"{replicas} poolers are ready", at_most=CONVERGES_WITHIN):
            wait_until(partial(has_ready, shop, replicas), 30, f"{replicas} ready poolers")
        assert agent.query(shop.url(), "SELECT 1 AS one") == ONE
    scale = json.loads(kubectl("get", "--raw", scale_path(shop)))
    assert scale["spec"]["replicas"] == 2
    assert "poolkeeper.io/owner-uid=" in scale["status"]["selector"]
    shop.wait_settled()


def test_scaled_to_zero_says_so_and_comes_back(place: Place, agent: Agent) -> None:
    url = place.serve(place.spec(replicas=1))
    kubectl("-n", place.data, "scale", "pooldb/shop", "--replicas=0")
    place.wait_condition("Ready", "False", "ScaledToZero")
    kubectl("-n", place.data, "scale", "pooldb/shop", "--replicas=1")
    place.wait_ready()
    assert agent.query_soon(url, "SELECT 1 AS one", within=10) == ONE


@pytest.mark.parametrize(("kind", "name"), CHILDREN)
def test_child_deleted_by_hand_comes_back(shop: Place, agent: Agent, kind: str, name: str) -> None:
    namespace = shop.web if name.startswith("database") else shop.data
    before, url = kube.get(kind, namespace, name), shop.url()
    assert before is not None
    kubectl("-n", namespace, "delete", kind, name, "--wait=false")

    def made_anew() -> bool:
        found = kube.get(kind, namespace, name)
        return found is not None and found["metadata"]["uid"] != before["metadata"]["uid"]

    # Pods keep what they have of the budget until they have ended, so those of a new Deployment wait for that.
    ending = PRE_STOP_SECONDS if kind == "deployment" else 0
    with timed(f"{kind} {name} is back and works", at_most=CONVERGES_WITHIN + ending):
        wait_until(made_anew, 30, f"a new {kind} {name}")
        shop.wait_ready()
        wait_until(partial(has_ready, shop, 2), 30, "2 ready poolers")
        assert agent.query_soon(url, "SELECT 1 AS one", within=30) == ONE
    assert shop.url() == url
    shop.wait_settled()
    assert_changes_still_arrive(shop)


@pytest.mark.parametrize(("kind", "name"), list(EDITS))
def test_child_edited_by_hand_is_repaired(shop: Place, agent: Agent, kind: str, name: str) -> None:
    namespace = shop.web if name.startswith("database") else shop.data
    before = kube.get(kind, namespace, name)
    assert before is not None
    change = EDITS[kind, name]
    kubectl("-n", namespace, "patch", kind, name, "--type=merge", "-p", json.dumps(change))
    with timed(f"{kind} {name} is repaired", at_most=CONVERGES_WITHIN):
        wait_until(lambda: repaired(kube.get(kind, namespace, name), before, change), 30, f"{kind} as before")
        assert agent.query_soon(shop.url(), "SELECT 1 AS one", within=30) == ONE
    shop.wait_settled()
    assert_changes_still_arrive(shop)


def assert_changes_still_arrive(place: Place) -> None:
    """The operator has not lost its hold on the running poolers: their consoles show the next change."""
    before = place.resource()["status"]["appliedConfig"]
    size = next(_sizes)
    with place.consoles() as consoles:
        assert len(consoles) == 2
        place.patch({"pooler": {"parameters": {"stats_period": size}}})

        def shown() -> bool:
            return {setting(console, "stats_period") for console in consoles} == {str(size)}

        wait_until(shown, 10, "the change on every console")
    wait_until(lambda: place.resource()["status"].get("appliedConfig", before) != before, 10, "a new config")


def has_ready(place: Place, replicas: int) -> bool:
    return bool(place.resource()["status"].get("readyReplicas", 0) == replicas)


def scale_path(place: Place) -> str:
    return f"/apis/poolkeeper.io/v1alpha1/namespaces/{place.data}/pooleddatabases/shop/scale"


def repaired(found: Object | None, before: Object, change: Object) -> bool:
    """Whether an object says again what it said; of a Secret, the keys that were changed."""
    assert found is not None
    if found["kind"] == "Secret":
        return all(found["data"].get(key) == before["data"][key] for key in change["data"])
    return bool(found["spec"] == before["spec"] and found["metadata"]["uid"] == before["metadata"]["uid"])
