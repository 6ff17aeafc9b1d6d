"""The policy that warns of changes that leave little of a PooledDatabase's share of its server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster.control_plane import ControlPlane
from tests.apiserver.client import Api
from tests.apiserver.in_force import chart_in_force
from tests.specs import BY_HOST, body

Object = dict[str, Any]

SPACE = "/api/v1/namespaces/warned"
SHOP = "/apis/poolkeeper.io/v1alpha1/namespaces/warned/pooleddatabases/shop"
SHARE = 20


@pytest.fixture(scope="module")
def shop(control_plane: ControlPlane, api: Api) -> Iterator[str]:
    """A PooledDatabase with a share of 20 and one consumer."""
    api.apply(SPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "warned"}})
    made = body({**BY_HOST, "consumers": [{"namespace": "web"}]})
    made["metadata"] = {"name": "shop", "namespace": "warned"}
    api.apply(SHOP, made)
    api.merge(f"{SHOP}/status", {"status": {"budget": {"share": SHARE}}})
    with chart_in_force(control_plane, api):
        yield SHOP


def warnings(api: Api, replicas: int, **consumer: Any) -> str:
    """What is said to a change to so many poolers."""
    change = {"pooler": {"replicas": replicas}, "consumers": [{"namespace": "web", **consumer}]}
    api.merge(SHOP, {"spec": change})
    return " ".join(api.warnings)


def test_what_can_not_all_be_served_is_said(api: Api, shop: str) -> None:
    said = warnings(api, 7)
    assert "need 21 connections at the least on 7 pooler pods" in said
    assert f"the share of this PooledDatabase is {SHARE}" in said
    assert "limits.sessionConnections" in said


def test_what_leaves_little_is_said(api: Api, shop: str) -> None:
    assert f"of a share of {SHARE} connections, spec.consumers need 12 at the least" in warnings(api, 4)
    assert "little is left" in warnings(api, 2, limits={"sessionConnections": 7})


def test_what_leaves_enough_goes_without_a_word(api: Api, shop: str) -> None:
    assert warnings(api, 3) == ""
    assert warnings(api, 10, limits={"sessionConnections": 0}) == ""


def test_the_change_goes_through(api: Api, shop: str) -> None:
    assert warnings(api, 9) != ""
    assert api.get(shop)["spec"]["pooler"]["replicas"] == 9


@pytest.mark.parametrize(
    ("before", "now", "share", "replicas", "words"),
    [
        # The server's connections are few.
        ("auto", "auto", 20, 7, "is 20: not all will be served"),
        ("auto", 100, 20, 7, "or raise max_connections of the server"),
        # The limit of the spec is small, and was before.
        (8, 8, 8, 3, "is 8: not all will be served"),
        (8, 8, 8, 3, "or raise spec.budget.maxConnections"),
        (8, 8, 8, 2, "little is left to divide by need"),
        (8, 8, 8, 2, "or raise spec.budget.maxConnections"),
        # It becomes small.
        ("auto", 8, 90, 3, "is 8: not all will be served"),
        ("auto", 8, 90, 3, "or raise spec.budget.maxConnections"),
        # It is raised, or goes: what the share will be is not known.
        (8, 12, 8, 3, "little is left to divide by need"),
        (8, 60, 8, 3, ""),
        (8, "auto", 8, 3, ""),
    ],
)
def test_c9_the_warning_names_what_is_small(
    api: Api, shop: str, before: int | str, now: int | str, share: int, replicas: int, words: str
) -> None:
    budget = {"spec": {"budget": {"maxConnections": before}, "pooler": {"replicas": 1}}}
    api.merge(SHOP, {"spec": {"consumers": [{"namespace": "web"}]}})
    api.merge(SHOP, budget)
    api.merge(f"{SHOP}/status", {"status": {"budget": {"share": share}}})
    api.merge(SHOP, {"spec": {"budget": {"maxConnections": now}, "pooler": {"replicas": replicas}}})
    said = " ".join(api.warnings)
    try:
        assert words in said
        assert bool(words) == bool(said)
        both = ("raise max_connections", "raise spec.budget.maxConnections")
        assert sum(remedy in said for remedy in both) == bool(words), said
    finally:
        api.merge(SHOP, {"spec": {"budget": {"maxConnections": "auto"}}})
        api.merge(f"{SHOP}/status", {"status": {"budget": {"share": SHARE}}})
