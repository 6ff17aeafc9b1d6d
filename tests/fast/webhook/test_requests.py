"""What comes in at the webhook's port, from any pod of the cluster: an answer or a refusal, whatever it is."""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
import logging
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolkeeper.keeper import template
from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.kube.client import Cluster
from poolkeeper.names import DATABASE_LABEL, DATABASES_ANNOTATION, KEEPER_ANNOTATION, ROLE_LABEL
from poolkeeper.webhook import review, server
from poolkeeper.webhook.request import BODY_LIMIT, NESTING_LIMIT, NotAReview, parse

Object = dict[str, Any]

SHOP = KeeperTemplate("poolkeeper/pgbouncer:1", "IfNotPresent", None, "shop", "shop.session")
ALLOWED = re.compile(
    r"GET https://api\.example/api/v1/namespaces/[-a-z0-9]{1,63}/secrets/[-.a-z0-9]{1,245}-keeper"
)
EVENTS = re.compile(r"POST https://api\.example/api/v1/namespaces/[-a-z0-9]{1,63}/events")


class ApiServer:
    """The API server under a Cluster. Every keeper's Secret that is asked for exists if `exists`."""

    def __init__(self) -> None:
        self.configuration = SimpleNamespace(host="https://api.example")
        self.rest_client = self
        self.asked: list[str] = []
        self.posted: list[Object] = []
        self.metadata: Object | None = {
            "labels": {ROLE_LABEL: "keeper"},
            "annotations": {KEEPER_ANNOTATION: template.dump(SHOP)},
        }

    async def update_params_for_auth(self, *_: Any) -> None:
        pass

    async def request(self, method: str, url: str, *, body: Object | None = None, **_: Any) -> Any:
        self.asked.append(f"{method} {url}")
        if body is not None:
            self.posted.append(body)
        status = 404 if method == "GET" and self.metadata is None else 200
        names = dict(zip(("namespace", "name"), url.split("/")[-3::2], strict=True))
        metadata = None if self.metadata is None else {**names, **self.metadata}
        text = json.dumps({"metadata": metadata}).encode()
        return SimpleNamespace(status=status, getheader=lambda name: None, read=lambda: _soon(text))


async def _soon(value: bytes) -> bytes:
    return value


class Webhook:
    """The server on a port, over the operator's own client."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.api = ApiServer()
        self._loop = loop
        self._client = loop.run_until_complete(self._started())

    async def _started(self) -> TestClient[Any, Any]:
        client = TestClient(TestServer(server.application(Cluster(cast("Any", self.api)))))
        await client.start_server()
        return client

    def post(self, body: object, **more: Any) -> tuple[int, str]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._loop.run_until_complete(self._answer(data, **more))

    async def _answer(self, data: bytes, **more: Any) -> tuple[int, str]:
        async with self._client.post(server.PATH, data=data, **more) as response:
            return response.status, await response.text()

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    loop = asyncio.new_event_loop()
    one = Webhook(loop)
    yield one
    one.close()
    loop.close()


OWNER = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "1-1", "controller": True}


def reviewed(**request: Any) -> Object:
    """A review with something in every field that an injection reads."""
    container = {
        "name": "web",
        "image": "web:1",
        "command": ["web"],
        "env": [{"name": "DATABASE_URL", "value": "x"}, {"name": "A", "valueFrom": {"fieldRef": {}}}],
        "envFrom": [{"prefix": "P_", "secretRef": {"name": "database"}}, {"configMapRef": {"name": "c"}}],
        "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    sidecar = {
        **copy.deepcopy(container),
        "name": "keeper",
        "restartPolicy": "Always",
        "ports": [{"name": "keeper", "containerPort": 6432}],
        "resources": {"limits": {"cpu": "1"}},
        "securityContext": {"capabilities": {"drop": ["ALL"]}, "runAsUser": 1},
    }
    sources = [{"secret": {"name": "database-keeper"}}, {"downwardAPI": {"items": [{"path": "x"}]}}]
    pod = {
        "metadata": {
            "generateName": "web-",
            "labels": {DATABASE_LABEL: "database"},
            "annotations": {DATABASES_ANNOTATION: "database,orders", "poolkeeper.io/keeper-port": "6500"},
            "ownerReferences": [dict(OWNER)],
        },
        "spec": {
            "hostNetwork": False,
            "initContainers": [sidecar],
            "containers": [container],
            "volumes": [{"name": "keeper", "projected": {"sources": sources}}, {"name": "d", "emptyDir": {}}],
            "imagePullSecrets": [{"name": "pull"}],
        },
    }
    asked = {"uid": "0-1", "operation": "CREATE", "namespace": "web", "object": pod, "dryRun": False}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {**asked, **request}}


NAMES = (
    "", ".", "..", "a/b", "kube-system/secrets/x?y=", "../../x", "%2e%2e", "a\nb", "\x1b[2K", "\ud800",
    "A", "a" * 300, "web,web", "database-keeper", "kube-system", "keeper", "name", "Always", "0", "65536",
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(NAMES),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("name", "secret", "mountPath", "request", "x")), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


PLACES = list(places(reviewed()))


def changed(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    inside = body
    for key in path[:-1]:
        try:
            inside = inside[key]
        except (KeyError, IndexError, TypeError):
            return body
    if isinstance(inside, (dict, list)) and (isinstance(inside, dict) or path[-1] in range(len(inside))):
        inside[path[-1]] = value
    return body


CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), JSON), min_size=1, max_size=3)


@given(changes=CHANGES)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_field_in_any_shape_is_answered_and_leads_nowhere_else(
    webhook: Webhook, changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    body = reviewed()
    for path, value in changes:
        body = changed(body, path, value)
    status, text = webhook.post(body)
    assert status in (200, 400), text
    assert len(text) < 2**16
    if status == 200:
        response = json.loads(text)["response"]
        assert response["allowed"] is True or response["status"]["message"].isprintable()
        assert all(warning.isprintable() for warning in response.get("warnings", ()))
    else:
        assert text.isprintable()
    for request in webhook.api.asked:
        assert ALLOWED.fullmatch(request) or EVENTS.fullmatch(request), request
    webhook.api.asked.clear()


@given(body=JSON)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_json_is_a_bad_request(webhook: Webhook, body: Any) -> None:
    assert webhook.post(body)[0] == 400
    assert webhook.api.asked == []


VALUES: tuple[Any, ...] = (None, True, 0, 1.5, "", [], {}, [None], [[]], {"name": []}, [{"name": {}}])


async def test_every_field_in_every_type_is_parsed_or_refused() -> None:
    cluster, refused = Cluster(cast("Any", ApiServer())), set()
    for path in PLACES:
        for value in VALUES:
            body = changed(reviewed(), path, copy.deepcopy(value))
            try:
                answer = await review.review(body, cluster)
                review.event(body, answer, datetime.now(UTC))
            except NotAReview:
                refused.add(path)
            except Exception as error:
                raise AssertionError(f"{path} = {value!r}") from error
    assert len(refused) > len(PLACES) / 2


@pytest.mark.parametrize(
    "namespace",
    [
        "kube-system/secrets/x?y=",
        "",
        ".",
        "..",
        "a/b",
        "A",
        "a.b",
        "a\nb",
        "-a",
        "a" * 64,
        "a%2fb",
        "*",
        1,
        None,
        ["a"],
    ],
)
def test_a_namespace_that_is_none_is_refused_before_anything_is_read(webhook: Webhook, namespace: Any) -> None:
    status, text = webhook.post(reviewed(namespace=namespace))
    assert status == 400
    assert "request.namespace" in text
    assert webhook.api.asked == []


@pytest.mark.parametrize("namespace", ["web", "kube-system"])
@pytest.mark.parametrize("label", ["database", "x"])
def test_the_answer_does_not_tell_whether_a_secret_that_is_not_a_keepers_exists(
    webhook: Webhook, namespace: str, label: str
) -> None:
    body = reviewed(namespace=namespace)
    body["request"]["object"]["metadata"] |= {"labels": {DATABASE_LABEL: label}, "annotations": {}}
    answers = set()
    for metadata in (
        None,
        {},
        {"labels": {ROLE_LABEL: "keeper"}},
        {"labels": {ROLE_LABEL: "keeper"}, "annotations": {KEEPER_ANNOTATION: "{}"}},
        {"annotations": {KEEPER_ANNOTATION: template.dump(SHOP)}},
    ):
        webhook.api.metadata = metadata
        answers.add(webhook.post(body))
    [(status, text)] = answers
    assert status == 200
    assert json.loads(text)["response"]["allowed"] is False
    assert (webhook.api.asked == []) == (namespace == "kube-system")


def test_so_many_databases_are_refused_before_any_secret_is_read(webhook: Webhook) -> None:
    body = reviewed()
    many = ",".join(["database", *(f"d{number}" for number in range(16))])
    body["request"]["object"]["metadata"]["annotations"] = {DATABASES_ANNOTATION: many}
    status, text = webhook.post(body)
    assert (status, "name at most 16" in text) == (200, True)
    assert webhook.api.asked == []


# Logs and Events


def test_a_refusal_is_one_line_of_the_log_whatever_the_pod_holds(
    webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    forged = "x\n2026-01-01 00:00:00,000 INFO poolkeeper forged\x1b[2K"
    body = reviewed()
    body["request"]["object"]["metadata"] |= {
        "generateName": forged,
        "annotations": {DATABASES_ANNOTATION: forged},
    }
    with caplog.at_level(logging.INFO):
        status, text = webhook.post(body)
    assert status == 200
    assert json.loads(text)["response"]["status"]["message"].isprintable()
    [record] = [item for item in caplog.records if item.name.startswith("poolkeeper")]
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 3000


def with_own_url(number: int, namespace: str = "web", **owner: Any) -> Object:
    body = reviewed(namespace=namespace)
    body["request"]["object"]["metadata"]["annotations"] = {}
    body["request"]["object"]["metadata"]["ownerReferences"] = [{**OWNER, "uid": f"1-{number}", **owner}]
    body["request"]["object"]["spec"] = {
        "containers": [{"name": "web", "env": [{"name": "DATABASE_URL", "value": "x"}]}]
    }
    return body


def test_events_are_bounded_in_each_namespace(webhook: Webhook) -> None:
    for number in range(3 * server.EVENTS):
        assert webhook.post(with_own_url(number))[0] == 200
    for _ in range(3):
        assert webhook.post(with_own_url(1, "other"))[0] == 200
    namespaces = [event["metadata"]["namespace"] for event in webhook.api.posted]
    assert (namespaces.count("web"), namespaces.count("other")) == (server.EVENTS, 1)


@pytest.mark.parametrize(
    "owner",
    [
        {"kind": "replica set"}, {"kind": "A" * 64}, {"name": "a\nb"}, {"name": "a/b"}, {"name": ""},
        {"uid": "x" * 65}, {"uid": "1 1"}, {"apiVersion": "apps"}, {"apiVersion": "a b/v1"},
        {"controller": False},
    ],
)  # fmt: skip
def test_there_is_no_event_about_an_owner_that_cannot_exist(webhook: Webhook, owner: Object) -> None:
    assert webhook.post(with_own_url(1, **owner))[0] == 200
    assert webhook.api.posted == []


@pytest.mark.parametrize("name", ["a b", "buy at evil.example", "a\nb", "A", "", "x" * 64])
def test_an_event_holds_no_text_that_the_client_chose(webhook: Webhook, name: str) -> None:
    body = with_own_url(1)
    body["request"]["object"]["spec"]["containers"][0]["name"] = name
    status, _ = webhook.post(body)
    assert status == 400
    assert webhook.api.posted == []


# Size, depth and time


def nested(depth: int) -> Object:
    body = reviewed()
    inside: Any = {}
    for _ in range(depth):
        inside = [inside]
    body["request"]["object"]["spec"]["affinity"] = inside
    return body


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"a":' * 500_000,
        b"\xff\xfe\xfd",
        b'{"request": 1e999}',
        b'{"request": NaN}',
        b"1" * 5000,
        b'"\\ud800"',
        gzip.compress(json.dumps(reviewed()).encode()),
        json.dumps([0] * 60_000).encode(),
    ],
    ids=["lists", "maps", "bytes", "infinite", "nan", "digits", "surrogate", "gzip", "values"],
)
def test_a_body_that_is_no_bounded_json_is_a_bad_request(webhook: Webhook, body: bytes) -> None:
    assert webhook.post(body)[0] == 400


def test_nesting_is_bounded() -> None:
    parse(nested(NESTING_LIMIT - 10))
    with pytest.raises(NotAReview, match="levels deep"):
        parse(nested(NESTING_LIMIT))


def test_the_size_is_bounded(webhook: Webhook) -> None:
    assert webhook.post(b" " * (BODY_LIMIT + 1))[0] == 413


def test_an_unknown_encoding_makes_no_difference(webhook: Webhook) -> None:
    headers: Mapping[str, str] = {"Content-Type": "application/json; charset=nonsense"}
    assert webhook.post(reviewed(), headers=headers)[0] == 200


async def test_a_body_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.1)
    application = server.application(Cluster(cast("Any", ApiServer())))
    async with TestServer(application) as one:
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        writer.write(b"POST /pods HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert b"503" in await asyncio.wait_for(reader.readline(), 5)
        writer.close()


async def test_one_address_is_answered_so_many_times_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reviews beyond that wait, so that what they hold of memory and of the API server's time is bounded."""
    monkeypatch.setattr(server, "REVIEWS_AT_ONCE", 2)
    going_on, most = 0, 0

    class Slow(ApiServer):
        async def request(self, *arguments: Any, **more: Any) -> Any:
            nonlocal going_on, most
            going_on += 1
            most = max(most, going_on)
            await asyncio.sleep(0.01)
            going_on -= 1
            return await super().request(*arguments, **more)

    async with TestClient(TestServer(server.application(Cluster(cast("Any", Slow()))))) as client:
        body = reviewed(dryRun=True)
        answers = await asyncio.gather(*(client.post(server.PATH, json=body) for _ in range(8)))
        assert [answer.status for answer in answers] == [200] * 8
    assert most == 2
