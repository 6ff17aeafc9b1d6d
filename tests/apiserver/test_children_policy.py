"""The policies on the operator's children: its account may write what its code writes, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster.control_plane import ControlPlane
from poolkeeper import names
from tests.apiserver.chart_paths import path
from tests.apiserver.client import Api, Refused
from tests.apiserver.in_force import chart_in_force
from tests.fast.helm_chart import NAMESPACE
from tests.fast.worlds import KEY, Simulation, body, ready_pod
from tests.specs import BY_HOST

Object = dict[str, Any]

REFUSAL = "ValidatingAdmissionPolicy"


def children() -> list[Object]:
    """Every object that the operator makes for a PooledDatabase that uses what there is."""
    spec = copy.deepcopy(BY_HOST)
    pooler = {key: spec["pooler"][key] for key in ("resources", "podLabels", "tolerations", "autoscaling")}
    resource = body(pooler=pooler, keeper={"enabled": True})
    world = Simulation(resource, pods=(ready_pod(),))
    world.settle()
    return [copy.deepcopy(obj) for obj in world.objects.values()]


def secret(name: str, role: str | None = None, **fields: Any) -> Object:
    labels = {} if role is None else {names.ROLE_LABEL: role}
    metadata = {"namespace": "web", "name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"a": "b"}, **fields}


@pytest.fixture(scope="module")
def operator(control_plane: ControlPlane, api: Api) -> Iterator[Api]:
    """Access with the operator's name and rights."""
    for space in ("data", "web"):
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space}}
        api.apply(f"/api/v1/namespaces/{space}", made)
    with chart_in_force(control_plane, api) as operator:
        yield operator


@pytest.fixture
def made(operator: Api, api: Api) -> Iterator[list[Object]]:
    """The children, created by the operator's account."""
    objects = children()
    for obj in objects:
        operator.apply(path(obj), obj, names.MANAGER)
    yield objects
    for obj in objects:
        api.delete(path(obj))


def bare(kind: str) -> Object:
    """An object of that kind as the operator makes it, without its role."""
    obj = next(obj for obj in children() if obj["kind"] == kind)
    del obj["metadata"]["labels"][names.ROLE_LABEL]
    return {**obj, "metadata": {**obj["metadata"], "name": "bare"}}


def refuses(operator: Api, obj: Object) -> bool:
    """Whether a policy refuses to let the operator's account apply the object."""
    try:
        operator.request(
            "PATCH",
            path(obj),
            obj,
            content_type="application/apply-patch+yaml",
            fieldManager=names.MANAGER,
            force="true",
            dryRun="All",
        )
    except Refused as refusal:
        return REFUSAL in refusal.message
    return False


def test_the_operator_writes_changes_and_deletes_its_own_children(operator: Api, api: Api) -> None:
    objects = children()
    assert {obj["kind"] for obj in objects} == {
        "Deployment", "Service", "Secret", "NetworkPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler",
    }  # fmt: skip
    for obj in objects:
        operator.apply(path(obj), obj, names.MANAGER)
        changed = copy.deepcopy(obj)
        changed["metadata"]["annotations"]["example.com/again"] = "true"
        operator.apply(path(obj), changed, names.MANAGER)
    for obj in objects:
        operator.delete(path(obj))


@pytest.mark.parametrize(
    "kind",
    ["Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Secret"],
)
def test_it_writes_and_deletes_nothing_without_its_label(operator: Api, api: Api, kind: str) -> None:
    obj = bare(kind)
    assert refuses(operator, obj)
    api.apply(path(obj), obj)
    try:
        claimed = copy.deepcopy(obj)
        claimed["metadata"]["labels"][names.ROLE_LABEL] = names.ROLE_POOLER
        for attempt in (obj | {"metadata": {**obj["metadata"], "annotations": {"a": "b"}}}, claimed):
            assert refuses(operator, attempt)
        with pytest.raises(Refused, match=REFUSAL):
            operator.delete(path(obj))
    finally:
        api.delete(path(obj))


def test_nor_takes_its_label_off(operator: Api, made: list[Object]) -> None:
    for obj in made:
        with pytest.raises(Refused, match=REFUSAL):
            operator.merge(path(obj), {"metadata": {"labels": {names.ROLE_LABEL: None}}})


SHAPES: dict[str, Object] = {
    "account": {"serviceAccountName": "admin"},
    "token": {"automountServiceAccountToken": True},
    "token by default": {"automountServiceAccountToken": None},
    "host's network": {"hostNetwork": True},
    "host's processes": {"hostPID": True},
    "host's memory": {"hostIPC": True},
    "one node": {"nodeName": "control-plane"},
    "host's files": {"volumes": [{"name": "config", "hostPath": {"path": "/"}}]},
    "projected token": {
        "volumes": [{"name": "config", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]
    },
    "claim": {"volumes": [{"name": "config", "persistentVolumeClaim": {"claimName": "data"}}]},
    "root": {"securityContext": {"runAsNonRoot": False, "runAsUser": 0}},
    "anything before": {"initContainers": [{"name": "first", "image": "example.com/evil:1"}]},
}
CONTAINERS: dict[str, Object] = {
    "command": {"command": ["sh", "-c", "true"]},
    "arguments": {"args": ["-v"]},
    "image's command": {"command": None},
    "variables": {"env": [{"name": "LD_PRELOAD", "value": "x"}]},
    "variables of others": {"envFrom": [{"secretRef": {"name": "other"}}]},
    "host's port": {"ports": [{"name": "postgres", "containerPort": 6432, "hostPort": 6432}]},
    "command after the start": {"lifecycle": {"postStart": {"exec": {"command": ["true"]}}}},
    "command before the end": {"lifecycle": {"preStop": {"sleep": None, "exec": {"command": ["true"]}}}},
    "command as a probe": {"livenessProbe": {"tcpSocket": None, "exec": {"command": ["true"]}}},
    "no probe": {"readinessProbe": None},
    "privileges": {"securityContext": {"privileged": True, "allowPrivilegeEscalation": True}},
    "capabilities": {"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}},
    "writable root": {"securityContext": {"readOnlyRootFilesystem": False}},
    "root": {"securityContext": {"runAsUser": 0}},
    "no context": {"securityContext": None},
}


def merged(value: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386) of maps."""
    if not (isinstance(value, dict) and isinstance(patch, dict)):
        return patch
    found = {key: merged(value.get(key), item) for key, item in patch.items() if item is not None}
    return {key: item for key, item in value.items() if key not in patch} | found


def pooler(change: Object, container: Object | None = None) -> Object:
    """The pooler's Deployment with a changed pod."""
    deployment = next(obj for obj in children() if obj["kind"] == "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    if container is not None:
        change = {"containers": [merged(spec["containers"][0], container)]}
    deployment["spec"]["template"]["spec"] = merged(spec, change)
    return deployment


@pytest.mark.parametrize(
    "deployment",
    [
        *(pytest.param(pooler(change), id=name) for name, change in SHAPES.items()),
        *(pytest.param(pooler({}, change), id=f"container: {name}") for name, change in CONTAINERS.items()),
    ],
)
def test_it_runs_nothing_but_poolers(operator: Api, api: Api, deployment: Object) -> None:
    """Neither a new Deployment nor a change of one that is there gets through, and others may have it."""
    assert refuses(operator, deployment)
    first = pooler({})
    operator.apply(path(first), first, names.MANAGER)
    try:
        assert refuses(operator, deployment)
    finally:
        operator.delete(path(first))


def test_a_second_container_and_a_namespace_of_kubernetes_are_refused(operator: Api) -> None:
    deployment = pooler({})
    spec = deployment["spec"]["template"]["spec"]
    spec["containers"].append({**spec["containers"][0], "name": "second"})
    assert refuses(operator, deployment)
    elsewhere = pooler({})
    elsewhere["metadata"]["namespace"] = "kube-system"
    assert refuses(operator, elsewhere)
    assert not refuses(operator, pooler({}))


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("Service", {"selector": {"app": "bank"}}),
        ("Service", {"type": "ExternalName", "externalName": "evil.example"}),
        ("Service", {"externalIPs": ["192.0.2.1"]}),
        ("NetworkPolicy", {"podSelector": {}}),
        ("PodDisruptionBudget", {"selector": {"matchLabels": {"app": "bank"}}}),
        (
            "HorizontalPodAutoscaler",
            {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "bank"}},
        ),
    ],
    ids=str,
)
def test_what_it_makes_is_about_its_own_pods(operator: Api, kind: str, spec: Object) -> None:
    obj = next(obj for obj in children() if obj["kind"] == kind)
    assert not refuses(operator, obj)
    assert refuses(operator, {**obj, "spec": {**obj["spec"], **spec}})


def test_secrets_of_others_get_its_mark_and_nothing_else(operator: Api, api: Api) -> None:
    others = secret("others", metadata={"namespace": "web", "name": "others", "labels": {"team": "a"}})
    api.apply(path(others), others)
    place = path(others)
    mark = {"metadata": {"labels": {names.ROLE_LABEL: names.ROLE_SOURCE}}}
    operator.merge(place, mark)
    operator.merge(place, {"metadata": {"labels": {names.ROLE_LABEL: None}}})
    operator.merge(place, mark)
    changes: list[Object] = [
        {"stringData": {"a": "evil"}},
        {"immutable": True},
        {"metadata": {"labels": {names.ROLE_LABEL: names.ROLE_CONSUMER}}},
        {"metadata": {"labels": {"team": "b"}}},
        {"metadata": {"labels": {"more": "b"}}},
        {"metadata": {"annotations": {"more": "b"}}},
        {"metadata": {"finalizers": ["example.com/stay"]}},
    ]
    for change in changes:
        with pytest.raises(Refused, match=REFUSAL):
            operator.merge(place, change)
    with pytest.raises(Refused, match=REFUSAL):
        operator.delete(place)
    api.delete(place)


@pytest.mark.parametrize("role", [None, names.ROLE_SOURCE, names.ROLE_POOLER, "other"])
def test_new_secrets_have_a_role_of_its_own(operator: Api, role: str | None) -> None:
    assert refuses(operator, secret("new", role))
    assert not refuses(operator, secret("new", names.ROLE_CONSUMER))


def test_no_secret_becomes_an_accounts_token(operator: Api) -> None:
    token = secret("token", names.ROLE_CONSUMER, type="kubernetes.io/service-account-token")
    token["metadata"]["annotations"] = {"kubernetes.io/service-account.name": "default"}
    assert refuses(operator, token)


def test_of_a_pooleddatabase_it_changes_the_finalizer_and_the_status(operator: Api, api: Api) -> None:
    resource = body()
    resource["metadata"] = {"namespace": KEY.namespace, "name": KEY.name}
    place = f"/apis/poolkeeper.io/v1alpha1/namespaces/{KEY.namespace}/pooleddatabases/{KEY.name}"
    api.apply(place, resource)
    for patch in ([names.FINALIZER], None):
        operator.merge(place, {"metadata": {"finalizers": patch}})
    operator.merge(f"{place}/status", {"status": {"observedGeneration": 1}})
    changes: list[Object] = [
        {"spec": {"upstream": {"host": "evil.example"}}},
        {"metadata": {"labels": {"a": "b"}}},
        {"metadata": {"annotations": {"a": "b"}}},
    ]
    for change in changes:
        with pytest.raises(Refused, match=REFUSAL):
            operator.merge(place, change)
    api.delete(place)


def test_the_key_of_the_webhook_is_its_own(operator: Api) -> None:
    key = secret("poolkeeper-webhook", metadata={"namespace": NAMESPACE, "name": "poolkeeper-webhook"})
    assert not refuses(operator, key)
    assert refuses(operator, {**key, "metadata": {"namespace": NAMESPACE, "name": "other"}})


def test_other_accounts_are_left_alone(api: Api) -> None:
    assert not refuses(api, pooler(SHAPES["account"]))
    assert not refuses(api, secret("token", "other"))
