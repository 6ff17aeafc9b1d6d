"""What only a real API server can say of the chart: it takes every object; what its policy and scripts do."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import pytest
from kubernetes import config
from kubernetes.aio import config as aio_config
from kubernetes.aio.client import ApiClient, Configuration

from e2e.cluster.control_plane import ControlPlane
from poolkeeper import names
from poolkeeper.kube.client import Cluster, ClusterError, Conflict
from poolkeeper.kube.client import Refused as ClusterRefused
from poolkeeper.observed.refs import Ref
from poolkeeper.settings import Settings, Webhook
from poolkeeper.webhook import certificate
from tests.apiserver.chart_paths import path
from tests.apiserver.client import Api, Refused
from tests.apiserver.in_force import chart_in_force
from tests.fast.helm_chart import BOTH_MODES, CHART, NAMESPACE, WATCHING, Object, render

_POOLED_DATABASES = f"/apis/{names.GROUP}/{names.VERSION}/namespaces/{{namespace}}/{names.PLURAL}"


@pytest.fixture(scope="module")
def namespaces(api: Api) -> None:
    """The release's namespace, which demands Pod Security restricted, and those that are watched."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    for name in (NAMESPACE, "data", "web"):
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        api.apply(f"/api/v1/namespaces/{name}", body)


@BOTH_MODES
def test_the_server_takes_every_object(api: Api, namespaces: None, mode: tuple[str, ...]) -> None:
    """Strictly: a field that the server does not know is an error. Pods pass Pod Security restricted."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": NAMESPACE}}
    for name in (
        "poolkeeper",
        "poolkeeper-test",
        "poolkeeper-uninstall",
    ):  # a pod is refused without its account
        named = {**account, "metadata": {"namespace": NAMESPACE, "name": name}}
        api.apply(path(named), named)
    for obj in render(*mode):
        api.request(
            "PATCH",
            path(obj),
            obj,
            content_type="application/apply-patch+yaml",
            fieldManager="test",
            force="true",
            dryRun="All",
            fieldValidation="Strict",
        )


# --- the policy on pods/status ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def operator(control_plane: ControlPlane, api: Api, namespaces: None) -> Iterator[Api]:
    """Access with the operator's name and rights."""
    default = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": "web"},
    }
    api.apply(path(default), default)
    with chart_in_force(control_plane, api) as operator:
        yield operator


def make_pod(api: Api, name: str, **metadata: Any) -> None:
    security = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "main", "image": "example.com/app", "securityContext": security}
    spec = {"containers": [container], "automountServiceAccountToken": False}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **metadata}, "spec": spec}
    api.create("/api/v1/namespaces/web/pods", body)


def status_of(pod: str) -> str:
    return f"/api/v1/namespaces/web/pods/{pod}/status"


@pytest.fixture(scope="module")
def pods(api: Api, operator: Api) -> Iterator[None]:
    """One pod with labels and annotations, one without any."""
    own = {names.GENERATION_ANNOTATION: "1", f"{names.GROUP}/other": "1"}
    make_pod(api, "dressed", labels={"app": "shop"}, annotations={"team": "data", **own})
    make_pod(api, "bare")
    yield
    for name in ("dressed", "bare"):
        api.delete(f"/api/v1/namespaces/web/pods/{name}")


@pytest.mark.parametrize("pod", ["dressed", "bare"])
def test_the_operator_may_set_and_remove_its_own_annotation(operator: Api, pods: None, pod: str) -> None:
    for value in ("2", None):
        answer = operator.merge(
            status_of(pod), {"metadata": {"annotations": {names.GENERATION_ANNOTATION: value}}}
        )
        assert answer["metadata"].get("annotations", {}).get(names.GENERATION_ANNOTATION) == value


@pytest.mark.parametrize("pod", ["dressed", "bare"])
@pytest.mark.parametrize(
    "patch",
    [
        {"metadata": {"annotations": {"team": "mine"}}},
        {"metadata": {"annotations": {"poolkeeper.iox/key": "1"}}},
        {"metadata": {"annotations": {names.GENERATION_ANNOTATION: "3", "example.com/restarted": "now"}}},
        {"metadata": {"labels": {"app": "mine"}}},
        {"metadata": {"finalizers": ["example.com/stay"]}},
        {"status": {"phase": "Failed"}},
        {"status": {"conditions": [{"type": "Ready", "status": "True"}]}},
        {"status": {"podIP": "192.0.2.1", "podIPs": [{"ip": "192.0.2.1"}]}},
    ],
    ids=str,
)
def test_the_operator_may_change_nothing_else(operator: Api, pods: None, pod: str, patch: Object) -> None:
    with pytest.raises(Refused, match="the Poolkeeper operator may") as refusal:
        operator.merge(status_of(pod), patch)
    assert refusal.value.code == 403


KUBELETS = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}


def gate(status: str = "True", **more: str) -> Object:
    return {"type": names.GATE, "status": status, "lastTransitionTime": "2026-01-02T00:00:00Z", **more}


@pytest.fixture
def pooler(api: Api, operator: Api) -> Iterator[str]:
    """Path of the status of a pooler pod with a condition of kubelet's."""
    make_pod(api, "pooler", labels={names.ROLE_LABEL: names.ROLE_POOLER})
    path = status_of("pooler")
    api.merge(path, {"status": {"conditions": [KUBELETS], "hostIP": "192.0.2.7"}})
    yield path
    api.delete("/api/v1/namespaces/web/pods/pooler")


def conditions_of(pod: Object) -> dict[str, str]:
    return {item["type"]: item["status"] for item in pod["status"]["conditions"]}


def patch_condition(api: Api, path: str, condition: Object) -> Object:
    """As the operator does it: conditions are merged by their type."""
    body = {"status": {"conditions": [condition]}}
    return api.request("PATCH", path, body, content_type="application/strategic-merge-patch+json")


def test_the_operator_may_open_the_gate_of_a_pooler_pod_and_say_why(operator: Api, pooler: str) -> None:
    answer = patch_condition(operator, pooler, gate())
    assert conditions_of(answer) == {names.GATE: "True", "PodScheduled": "True"}
    patch_condition(operator, pooler, gate(reason="WithinBudget"))
    operator.merge(pooler, {"metadata": {"annotations": {names.GENERATION_ANNOTATION: "9"}}})


async def test_what_the_operator_sends_to_open_the_gate_is_let_through_by_the_policy(
    control_plane: ControlPlane, api: Api, operator: Api, pooler: str
) -> None:
    configuration = Configuration()
    kubeconfig = str(control_plane.user_kubeconfig(f"system:serviceaccount:{NAMESPACE}:poolkeeper"))
    await aio_config.load_kube_config(kubeconfig, client_configuration=configuration)
    cluster = Cluster(ApiClient(configuration))
    uid = api.get(pooler)["metadata"]["uid"]
    try:
        for _ in range(2):
            answer = await cluster.admit_pod("web", "pooler", uid)
            assert conditions_of(answer) == {names.GATE: "True", "PodScheduled": "True"}
        with pytest.raises(Conflict):
            await cluster.admit_pod("web", "gone", uid)
    finally:
        await cluster.close()


def test_kubelets_status_of_a_pod_is_no_hindrance(api: Api, operator: Api, pooler: str) -> None:
    patch_condition(api, pooler, {**KUBELETS, "type": "Ready", "status": "False"})
    api.merge(pooler, {"status": {"phase": "Running", "podIP": "192.0.2.9", "podIPs": [{"ip": "192.0.2.9"}]}})
    assert conditions_of(patch_condition(operator, pooler, gate()))[names.GATE] == "True"


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_the_operator_may_not_set_the_gate_to_anything_else(operator: Api, pooler: str, status: str) -> None:
    with pytest.raises(Refused, match="to True, and not take it back"):
        patch_condition(operator, pooler, gate(status))


@pytest.mark.parametrize("conditions", [[KUBELETS, gate("False")], [KUBELETS]], ids=["false", "removed"])
def test_the_operator_may_not_take_the_gate_back(operator: Api, pooler: str, conditions: list[Object]) -> None:
    patch_condition(operator, pooler, gate())
    with pytest.raises(Refused, match="to True, and not take it back"):
        operator.merge(pooler, {"status": {"conditions": conditions}})


@pytest.mark.parametrize(
    "status",
    [
        {"conditions": [gate()]},
        {"conditions": [{**KUBELETS, "status": "False"}, gate()]},
        {"conditions": [KUBELETS, gate(), {**KUBELETS, "type": "Ready"}]},
        {"conditions": [KUBELETS, gate()], "phase": "Running"},
        {"conditions": [KUBELETS, gate()], "hostIP": None},
    ],
    ids=["another removed", "another changed", "another added", "a field changed", "a field removed"],
)
def test_beside_the_gate_nothing_of_the_status_may_change(operator: Api, pooler: str, status: Object) -> None:
    with pytest.raises(Refused, match="may not change the status of a pod but for"):
        operator.merge(pooler, {"status": status})


def test_the_gate_of_a_pod_that_is_no_pooler_stays_as_it_is(operator: Api, pods: None) -> None:
    for pod in ("dressed", "bare"):
        with pytest.raises(Refused, match="on pooler pods only"):
            patch_condition(operator, status_of(pod), gate())


def test_a_pod_does_not_become_a_pooler_along_with_its_gate(operator: Api, pods: None) -> None:
    labels = {names.ROLE_LABEL: names.ROLE_POOLER}
    with pytest.raises(Refused, match="the Poolkeeper operator may"):
        operator.merge(status_of("bare"), {"metadata": {"labels": labels}, "status": {"conditions": [gate()]}})


@pytest.mark.parametrize("annotations", [{"team": None}, None], ids=["one", "all"])
def test_the_operator_may_not_remove_what_is_not_its_own(
    operator: Api, pods: None, annotations: Object | None
) -> None:
    with pytest.raises(Refused, match="may change only pod annotations"):
        operator.merge(status_of("dressed"), {"metadata": {"annotations": annotations}})


def test_the_operator_may_not_touch_a_pod_but_through_its_status(operator: Api, pods: None) -> None:
    with pytest.raises(Refused, match="cannot patch resource"):
        operator.merge("/api/v1/namespaces/web/pods/bare", {"metadata": {"annotations": {"a": "b"}}})


def test_others_are_not_judged_by_the_policy(api: Api, pods: None) -> None:
    answer = api.merge(
        status_of("bare"), {"metadata": {"labels": {"set-by": "admin"}}, "status": {"reason": "x"}}
    )
    assert answer["metadata"]["labels"]["set-by"] == "admin"


# --- the scripts --------------------------------------------------------------------------------------------


def script(name: str, control_plane: ControlPlane) -> ModuleType:
    """A script of the chart as a module, with an administrator's access in place of the pod's."""
    spec = importlib.util.spec_from_file_location(name, CHART / "files" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config.load_kube_config(str(control_plane.kubeconfig))
    return module


def lease(api: Api, namespace: str, holder: str, renewals: int) -> None:
    body = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "poolkeeper"},
        "spec": {"holderIdentity": holder, "renewTime": f"2026-01-01T00:00:{renewals:02}.000000Z"},
    }
    api.apply(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/poolkeeper", body)


def test_helm_test_wants_a_leader_that_renews(
    control_plane: ControlPlane, api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("helm_test", control_plane)
    monkeypatch.setattr(module, "DEADLINE_S", 1.0)
    monkeypatch.setattr(module, "POLL_S", 0.1)
    with pytest.raises(TimeoutError, match="has no holder"):
        module.check(namespace, "poolkeeper")
    lease(api, namespace, "pod-a", 1)
    with pytest.raises(TimeoutError, match="held by pod-a but not renewed"):
        module.check(namespace, "poolkeeper")
    monkeypatch.setattr(module, "DEADLINE_S", 30.0)
    timer = threading.Timer(0.5, lease, (api, namespace, "pod-a", 2))
    timer.start()
    assert "pod-a leads" in module.check(namespace, "poolkeeper")
    timer.join()


def test_helm_test_wants_the_api_to_be_served(
    control_plane: ControlPlane, api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("helm_test", control_plane)
    monkeypatch.setattr(module, "DEADLINE_S", 0.5)
    monkeypatch.setattr(module, "GROUP", "elsewhere.poolkeeper.io")
    with pytest.raises(TimeoutError, match="does not serve pooleddatabases, pooleddatabases/scale"):
        module.check(namespace, "poolkeeper")


def test_uninstalling_takes_off_the_operators_finalizer_and_no_other(
    control_plane: ControlPlane, api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = _POOLED_DATABASES.format(namespace=namespace)
    upstream = {"host": "pg", "database": "shop", "credentialsSecretRef": {"name": "owner"}}

    def create(name: str, *finalizers: str) -> None:
        api.create(
            collection,
            {
                "apiVersion": f"{names.GROUP}/{names.VERSION}",
                "kind": names.KIND,
                "metadata": {"name": name, "finalizers": list(finalizers)},
                "spec": {"upstream": upstream},
            },
        )

    create("kept", names.FINALIZER, "example.com/theirs")
    create("deleted", names.FINALIZER)
    api.delete(f"{collection}/deleted")
    module = script("release_finalizers", control_plane)
    monkeypatch.setattr(module, "POLL_S", 0.1)
    assert module.release_all([namespace])
    [left] = api.get(collection)["items"]
    assert left["metadata"]["name"] == "kept"
    assert left["metadata"]["finalizers"] == ["example.com/theirs"]
    api.merge(f"{collection}/kept", {"metadata": {"finalizers": None}})


def test_uninstalling_after_the_crd_is_gone_has_nothing_to_do(
    control_plane: ControlPlane, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("release_finalizers", control_plane)
    monkeypatch.setitem(module.KIND, "group", "elsewhere.poolkeeper.io")
    assert module.release_all([])
    assert module.release_all(["data"])


# --- the rights for the webhook's certificate ---------------------------------------------------------------


@pytest.fixture
async def scoped(control_plane: ControlPlane, api: Api, namespaces: None) -> AsyncIterator[Cluster]:
    """Access with the rights that the operator has in its own namespace where it watches others only."""
    name = f"{NAMESPACE}:scoped"
    subject = {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name}
    for obj in render(*WATCHING):
        if obj["metadata"]["name"] == "poolkeeper-webhook" and obj["kind"] != "Service":
            subjects = {"subjects": [subject]} if "subjects" in obj else {}
            api.apply(path(obj), {**obj, **subjects})
    configuration = Configuration()
    kubeconfig = str(control_plane.user_kubeconfig(name))
    await aio_config.load_kube_config(kubeconfig, client_configuration=configuration)
    cluster = Cluster(ApiClient(configuration))
    yield cluster
    await cluster.close()
    for obj in render(*WATCHING):
        if obj["kind"] == "MutatingWebhookConfiguration":
            api.delete(path(obj))


async def test_the_webhooks_certificate_takes_no_more_rights_than_the_chart_gives(
    scoped: Cluster, api: Api
) -> None:
    own, concerns = Settings(NAMESPACE, "pod"), Webhook("poolkeeper-webhook")
    deadline = time.monotonic() + 30
    while True:  # the authorizer takes up rights from its own watches
        try:
            made = await certificate.current(scoped, own, concerns, datetime.now(UTC))
            break
        except ClusterError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
    assert made.name == f"poolkeeper-webhook.{NAMESPACE}.svc"
    stored = api.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/poolkeeper-webhook")
    assert set(stored["data"]) == {"authority.key"}
    again = await certificate.current(scoped, own, concerns, datetime.now(UTC))
    assert again == made
    after = api.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/poolkeeper-webhook")
    assert after["metadata"]["resourceVersion"] == stored["metadata"]["resourceVersion"]
    for ref in (Ref("Secret", NAMESPACE, "another"), Ref("MutatingWebhookConfiguration", "", "another")):
        with pytest.raises(ClusterRefused):
            await scoped.get(ref)


def test_the_operator_may_evict_pooler_pods_and_no_others(operator: Api, api: Api) -> None:
    for name in ("shop-pooler-66d4b8f5c-x2v7q", "payments-7c9f8d6b5-abcde"):
        make_pod(api, name)
    with pytest.raises(Refused, match="may evict pooler pods only"):
        evict(operator, "payments-7c9f8d6b5-abcde")
    evict(operator, "shop-pooler-66d4b8f5c-x2v7q")
    with pytest.raises(Refused, match="not found"):
        api.get("/api/v1/namespaces/web/pods/shop-pooler-66d4b8f5c-x2v7q")
    evict(api, "payments-7c9f8d6b5-abcde")


def evict(api: Api, pod: str) -> None:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"namespace": "web", "name": pod}}
    api.request("POST", f"/api/v1/namespaces/web/pods/{pod}/eviction", body)
