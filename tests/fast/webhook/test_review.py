"""Answers to admission reviews, and what the server makes of a review that it can't answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import jsonpatch
import pytest
from aiohttp.test_utils import TestClient, TestServer

from poolkeeper.keeper import template
from poolkeeper.keeper.injection import inject, injected
from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.kube.client import Retry
from poolkeeper.names import (
    DATABASE_LABEL,
    DATABASES_ANNOTATION,
    KEEPER_ANNOTATION,
    MANAGER,
    ORIGIN_ANNOTATION,
    ROLE_LABEL,
)
from poolkeeper.observed.refs import Ref
from poolkeeper.webhook import review, server

Object = dict[str, Any]
SHOP = KeeperTemplate("poolkeeper/pgbouncer:1", "IfNotPresent", None, "shop", "shop.session")


def secret(name: str = "database", **metadata: Any) -> Object:
    return {
        "metadata": {
            "name": f"{name}-keeper",
            "labels": {ROLE_LABEL: "keeper"},
            "annotations": {KEEPER_ANNOTATION: template.dump(SHOP)},
            **metadata,
        },
        "data": {"pgbouncer.ini": "never read"},
    }


class Secrets:
    """As much of a cluster as an admission asks for."""

    def __init__(self, *secrets: Object, namespace: str = "web") -> None:
        self.found = {Ref("Secret", namespace, item["metadata"]["name"]): item for item in secrets}
        self.asked: list[Ref] = []

    async def get(self, ref: Ref) -> Object | None:
        self.asked.append(ref)
        return self.found.get(ref)

    async def post(self, body: Mapping[str, Any]) -> Object:
        raise AssertionError(f"nothing is to be told of a dry run: {body}")


def pod(annotations: Mapping[str, str] | None = None, **spec: Any) -> Object:
    metadata: Object = {"generateName": "web-", "labels": {DATABASE_LABEL: "database"}}
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"metadata": metadata, "spec": {"containers": [{"name": "web", "image": "web:1"}], **spec}}


def asked(new: Object, namespace: str = "web") -> Object:
    request = {"uid": "0-1", "operation": "CREATE", "namespace": namespace, "object": new, "dryRun": True}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


async def answer(new: Object, *secrets: Object) -> Object:
    whole = await review.review(asked(new), Secrets(*secrets))
    assert (whole["apiVersion"], whole["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    assert whole["response"]["uid"] == "0-1"
    return dict(whole["response"])


def patched(new: Object, response: Object) -> Object:
    assert response["patchType"] == "JSONPatch"
    return dict(jsonpatch.apply_patch(new, json.loads(base64.b64decode(response["patch"]))))


async def test_the_patch_makes_the_pod_that_the_injection_makes() -> None:
    for new in (pod(), pod({"a": "b"}, initContainers=[{"name": "migrate"}], volumes=[{"name": "data"}])):
        response = await answer(new, secret())
        assert response["allowed"] is True
        assert patched(new, response) == inject(new, {"database": SHOP}).pod


async def test_a_pod_that_has_its_keepers_gets_no_patch() -> None:
    once = patched(pod(), await answer(pod(), secret()))
    again = await answer(once, secret())
    assert again["allowed"] is True
    assert "patch" not in again


async def test_a_pod_without_the_label_is_let_through() -> None:
    new = pod()
    del new["metadata"]["labels"]
    cluster = Secrets()
    whole = await review.review(asked(new), cluster)
    assert whole["response"] == {"uid": "0-1", "allowed": True}
    assert cluster.asked == []


async def test_nothing_but_the_keepers_secrets_of_the_pods_namespace_is_read() -> None:
    cluster = Secrets(secret(), secret("orders"))
    whole = await review.review(asked(pod({DATABASES_ANNOTATION: "database,orders"})), cluster)
    assert whole["response"]["allowed"] is True
    assert cluster.asked == [Ref("Secret", "web", "database-keeper"), Ref("Secret", "web", "orders-keeper")]


async def test_a_database_that_the_namespace_does_not_have_is_refused_with_what_to_do() -> None:
    response = await answer(pod())
    assert (response["allowed"], response["status"]["code"]) == (False, 403)
    message = response["status"]["message"]
    for words in ("poolkeeper:", "'database'", "namespace web", "spec.consumers", "poolkeeper.io/accept-from"):
        assert words in message


@pytest.mark.parametrize(
    "forged",
    [secret(labels={}), secret(annotations={}), secret(annotations={KEEPER_ANNOTATION: "{}"})],
    ids=["label", "annotation", "template"],
)
async def test_a_secret_that_is_not_a_keepers_is_refused(forged: Object) -> None:
    message = (await answer(pod(), forged))["status"]["message"]
    assert "Secret web/database-keeper is not a keeper's" in message
    assert "delete it" in message


def keeper(*, origin: str, manager: str) -> Object:
    """A keeper's Secret in namespace web, as the API server stores it."""
    made = secret(namespace="web")
    made["metadata"]["annotations"][ORIGIN_ANNOTATION] = origin
    fields: Object = {"f:metadata": {"f:annotations": {f"f:{ORIGIN_ANNOTATION}": {}}}}
    made["metadata"]["managedFields"] = [{"manager": manager, "operation": "Apply", "fieldsV1": fields}]
    return made


@pytest.mark.parametrize("manager", [MANAGER, "kubectl"])
@pytest.mark.parametrize("origin", ["web/another-keeper", "api/database-keeper"])
async def test_a_copy_of_a_keepers_secret_is_refused(origin: str, manager: str) -> None:
    """Its contents get old, and its login may be another namespace's."""
    message = (await answer(pod(), keeper(origin=origin, manager=manager)))["status"]["message"]
    assert "Secret web/database-keeper is not a keeper's, delete it" in message


@pytest.mark.parametrize("manager", [MANAGER, "velero"])
async def test_a_keepers_secret_in_its_place_is_accepted_also_from_a_backup(manager: str) -> None:
    assert (await answer(pod(), keeper(origin="web/database-keeper", manager=manager)))["allowed"] is True


async def test_a_refusal_is_that_of_the_injection() -> None:
    response = await answer(pod(hostNetwork=True), secret())
    assert response["allowed"] is False
    assert "hostNetwork" in response["status"]["message"]
    assert "patch" not in response


@pytest.mark.parametrize(
    ("spec", "lacks"),
    [
        ({"containers": [{"image": "web:1"}]}, "'name'"),
        ({"containers": [{"name": "web", "env": [{"value": "1"}]}]}, "'name'"),
        ({"containers": [{"name": "web", "ports": [{"name": "http"}]}]}, "'containerPort'"),
        ({"volumes": [{"emptyDir": {}}]}, "'name'"),
    ],
)
async def test_a_pod_that_is_not_valid_hears_what_it_lacks(spec: Object, lacks: str) -> None:
    response = await answer(pod(**spec), secret())
    assert response["allowed"] is False
    assert f"lacks its {lacks}; add it" in response["status"]["message"]


async def test_what_a_container_keeps_is_a_warning_without_the_value() -> None:
    env = [{"name": "DATABASE_URL", "value": "postgres://secret@elsewhere/db"}]
    response = await answer(pod(containers=[{"name": "web", "env": env}]), secret())
    [warning] = response["warnings"]
    assert "container web sets DATABASE_URL itself" in warning
    assert "secret" not in warning
    assert len(warning) <= 256


OWNER = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "1-1", "controller": True}
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


async def told(dry_run: bool = False, owners: tuple[Object, ...] = (OWNER,), **container: Any) -> Object | None:
    new = pod(containers=[{"name": "web", **container}])
    new["metadata"]["ownerReferences"] = list(owners)
    body = asked(new)
    body["request"]["dryRun"] = dry_run
    return review.event(body, await review.review(body, Secrets(secret())), NOW)


async def test_what_a_container_keeps_is_an_event_on_the_pods_owner() -> None:
    env = [{"name": "DATABASE_URL", "value": "postgres://secret@elsewhere/db"}]
    event = await told(env=env)
    assert event is not None
    about = {key: OWNER[key] for key in ("apiVersion", "kind", "name", "uid")}
    assert event["involvedObject"] == {**about, "namespace": "web"}
    assert event["reason"] == "VariablesKept"
    assert "container web sets DATABASE_URL itself" in event["message"]
    assert "secret" not in json.dumps(event)
    again = await told(env=env)
    assert again is not None
    assert again["metadata"]["name"] == event["metadata"]["name"]


async def test_there_is_no_event_of_a_dry_run_of_a_pod_without_owner_or_of_nothing() -> None:
    env = [{"name": "DATABASE_URL", "value": "postgres://secret@elsewhere/db"}]
    assert await told(dry_run=True, env=env) is None
    assert await told(owners=(), env=env) is None
    assert await told() is None


# The server


class Broken:
    async def get(self, ref: Ref) -> Object | None:
        raise Retry(f"{ref}: no answer")

    async def post(self, body: Mapping[str, Any]) -> Object:
        raise Retry("no answer")


async def posted(cluster: review.Access, body: Any) -> tuple[int, str]:
    async with TestClient(TestServer(server.application(cluster))) as client:
        response = await client.post(server.PATH, data=body if isinstance(body, str) else json.dumps(body))
        return response.status, await response.text()


async def test_the_server_answers_a_review() -> None:
    status, text = await posted(Secrets(secret()), asked(pod()))
    assert status == 200
    response = json.loads(text)["response"]
    assert [keeper.port for keeper in injected(patched(pod(), response))] == [6432]


async def test_the_server_refuses_a_pod_with_a_dns_that_is_not_the_clusters() -> None:
    other = pod(dnsPolicy="None", dnsConfig={"nameservers": ["10.96.0.10"]})
    for nameservers, allowed in ((("10.96.0.10",), True), (("10.96.0.11",), False), ((), False)):
        application = server.application(Secrets(secret()), nameservers=nameservers)
        async with TestClient(TestServer(application)) as client:
            response = await client.post(server.PATH, json=asked(other))
            assert json.loads(await response.text())["response"]["allowed"] is allowed


async def test_the_failure_policy_decides_where_the_api_server_does_not_answer() -> None:
    status, text = await posted(Broken(), asked(pod()))
    assert status == 503
    assert "no answer" in text


@pytest.mark.parametrize(
    "body", ["", "{", "{}", "[]", '"x"', '{"request": {}}', '{"request": {"object": null}}']
)
async def test_what_is_no_review_is_a_bad_request(body: str) -> None:
    status, _ = await posted(Secrets(), body)
    assert status == 400


async def test_a_large_pod_is_taken() -> None:
    status, _ = await posted(Secrets(secret()), asked(pod({"example.com/large": "x" * 2**20})))
    assert status == 200


async def test_the_server_says_that_it_is_ready() -> None:
    async with TestClient(TestServer(server.application(Secrets()))) as client:
        assert (await client.get(server.READY_PATH)).status == 200
