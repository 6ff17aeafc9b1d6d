"""Paths at the API server: whatever a name holds, a request goes to an object of its kind and namespace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from poolkeeper.kube.client import RESOURCES, Cluster, Refused
from poolkeeper.names import KIND
from poolkeeper.observed.refs import Key, Ref

Object = dict[str, Any]

HOSTILE = (
    "", ".", "..", "/", "%", "?", "#", "a/b", "../x", "..%2fx", "%2e%2e", "x/secrets/y", "a%2fb",
    "kube-system/secrets/x?y=", "kube-system/pods", "a?b", "a#b", "a b", "a\nb", "a\r\nX: y", "\x00", "a;b",
    "a\\b", "//evil.example", "@evil", "é", "\u202e", "\ud800",
)  # fmt: skip


class Wire:
    """The connection under a Cluster: remembers where requests go, as the HTTP client sends it."""

    def __init__(self) -> None:
        self.configuration = SimpleNamespace(host="https://api.example:6443")
        self.rest_client = self
        self.sent: list[tuple[str, URL]] = []

    async def update_params_for_auth(self, *_: Any) -> None:
        pass

    async def request(self, method: str, url: str, **_: Any) -> Any:
        self.sent.append((method, URL(url)))
        answer = {"metadata": {"resourceVersion": "1"}, "items": []}
        content = SimpleNamespace(iter_any=lambda: _nothing())
        return SimpleNamespace(
            status=200,
            getheader=lambda name: None,
            read=lambda: _soon(json.dumps(answer).encode()),
            response=SimpleNamespace(content=content, close=lambda: None),
        )


async def _soon(value: bytes) -> bytes:
    return value


async def _nothing() -> AsyncIterator[bytes]:
    if False:
        yield b""


Call = Callable[[Cluster, str, str], Awaitable[object]]


def body(kind: str, namespace: str, name: str) -> Object:
    return {
        "apiVersion": RESOURCES[kind].api_version,
        "kind": kind,
        "metadata": {"namespace": namespace, "name": name},
    }


async def drained(items: AsyncIterator[object]) -> None:
    async for _ in items:
        pass


OF_ONE: dict[str, tuple[str, Call]] = {
    "get": ("secrets", lambda it, ns, name: it.get(Ref("Secret", ns, name))),
    "apply": ("deployments", lambda it, ns, name: it.apply(body("Deployment", ns, name))),
    "create": ("secrets", lambda it, ns, name: it.create(body("Secret", ns, name))),
    "delete": ("services", lambda it, ns, name: it.delete(Ref("Service", ns, name), "1")),
    "apply_status": ("pooleddatabases", lambda it, ns, name: it.apply_status(Key(ns, name), "1", {})),
    "set_finalizer": ("pooleddatabases", lambda it, ns, name: it.set_finalizer(Key(ns, name), "1", True)),
    "mark_source": ("secrets", lambda it, ns, name: it.mark_source(ns, name, "1", True)),
    "annotate_pod": ("pods", lambda it, ns, name: it.annotate_pod(ns, name, "1", {})),
    "admit_pod": ("pods", lambda it, ns, name: it.admit_pod(ns, name, "1")),
    "evict_pod": ("pods", lambda it, ns, name: it.evict_pod(ns, name, "1")),
    "annotate_template": (
        "statefulsets", lambda it, ns, name: it.annotate_template(Ref("StatefulSet", ns, name), "1", "1", {}),
    ),
    "put": ("leases", lambda it, ns, name: it.put(body("Lease", ns, name))),
}  # fmt: skip
"""Every method that addresses one object, with the objects' resource."""
OF_ALL: dict[str, tuple[str, Call]] = {
    "pages": ("pods", lambda it, ns, name: drained(it.pages("Pod", ns, name))),
    "version": ("pods", lambda it, ns, name: it.version("Pod", ns)),
    "watch": ("pods", lambda it, ns, name: drained(it.watch("Pod", ns, name, name))),
    "post": ("events", lambda it, ns, name: it.post(body("Event", ns, name))),
}
"""Every method that addresses all objects of a kind in a namespace; the name goes into query or body."""


def sent(call: Call, namespace: str, name: str) -> list[tuple[str, URL]] | Refused:
    wire = Wire()
    refused = None
    try:
        asyncio.run(cast("Any", call(Cluster(cast("Any", wire)), namespace, name)))
    except Refused as error:
        refused = error
    assert bool(wire.sent) == (refused is None)
    if refused is not None:
        assert refused.reason == "InvalidName"
        assert str(refused).isprintable()
    return refused or wire.sent


def test_no_method_is_forgotten() -> None:
    public = {name for name in vars(Cluster) if not name.startswith("_")} - {"close"}
    assert public == OF_ONE.keys() | OF_ALL.keys()


def check(resource: str, call: Call, namespace: str, name: str, named: bool) -> None:
    found = sent(call, namespace, name)
    if isinstance(found, Refused):
        return
    for _, url in found:
        assert url.host == "api.example"
        assert url.fragment == ""
        segments = url.raw_path.split("/")
        at = segments.index("namespaces")
        assert segments[at + 2] == resource
        assert unquote(segments[at + 1]) == namespace
        assert [unquote(segment) for segment in segments[at + 3 : at + 4]] == ([name] if named else [])
        assert segments[at + 4 :] in ([], ["status"], ["eviction"])
        assert set(url.query) <= {"fieldManager", "force", "limit", "labelSelector", *WATCHED}


WATCHED = ("watch", "allowWatchBookmarks", "resourceVersion", "timeoutSeconds")


@pytest.mark.parametrize("method", [*OF_ONE, *OF_ALL])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_name_leaves_its_place_in_a_path(method: str, hostile: str) -> None:
    resource, call = (OF_ONE | OF_ALL)[method]
    named = method in OF_ONE
    check(resource, call, hostile, "web", named)
    if named or "\ud800" not in hostile:
        check(resource, call, "shop", hostile, named)


@given(method=st.sampled_from([*OF_ONE, *OF_ALL]), namespace=st.text(), name=st.text())
@settings(max_examples=200, deadline=None)
def test_no_text_leaves_its_place_in_a_path(method: str, namespace: str, name: str) -> None:
    resource, call = (OF_ONE | OF_ALL)[method]
    check(resource, call, namespace, name, method in OF_ONE)


@pytest.mark.parametrize("method", OF_ONE)
def test_without_a_name_or_a_namespace_no_object_is_meant(method: str) -> None:
    assert isinstance(sent(OF_ONE[method][1], "shop", ""), Refused)
    assert isinstance(sent(OF_ONE[method][1], "", "web"), Refused)


def test_ordinary_names_stay_as_they_are() -> None:
    for method, (resource, call) in (OF_ONE | OF_ALL).items():
        found = sent(call, "shop", "web-1.x")
        assert not isinstance(found, Refused)
        [(_, url)] = found
        assert f"/namespaces/shop/{resource}" in url.raw_path
        assert ("web-1.x" in url.raw_path) == (method in OF_ONE)


def test_objects_of_the_cluster_have_no_namespace_in_their_path() -> None:
    found = sent(lambda it, ns, name: it.get(Ref("Namespace", "", name)), "", "shop")
    assert not isinstance(found, Refused)
    assert [url.raw_path for _, url in found] == ["/api/v1/namespaces/shop"]
    found = sent(lambda it, ns, name: it.version(KIND), "", "")
    assert not isinstance(found, Refused)
    assert [url.raw_path for _, url in found] == ["/apis/poolkeeper.io/v1alpha1/pooleddatabases"]
