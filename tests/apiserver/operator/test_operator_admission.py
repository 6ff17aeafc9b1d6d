"""A real API server asks real operator processes about app pods, by the chart's own webhook configuration."""

from __future__ import annotations

import base64
import copy
import json
import socket
import ssl
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from cryptography import x509

from e2e.cluster.ports import free_port
from poolkeeper import names
from poolkeeper.keeper import injection
from poolkeeper.webhook import server
from poolkeeper.webhook.certificate import BUNDLE_MANAGER
from tests.apiserver.client import Refused
from tests.apiserver.operator.operator_process import OPERATOR_NAMESPACE, Operator
from tests.apiserver.operator.site import Lane, Site, decoded, eventually, path
from tests.fast.helm_chart import only, render

Object = dict[str, Any]

NAME = "poolkeeper-webhook"
SERVER_NAME = f"{NAME}.{OPERATOR_NAMESPACE}.svc"
CONFIGURATION = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{NAME}"
ADMISSIONS = 200


@pytest.fixture(scope="module")
def port(site: Site) -> Iterator[int]:
    """The chart's webhook, with a Service that leads to this machine: nothing here makes cluster IPs work."""
    port = free_port()
    service = only(render(), "Service")
    service = {**service, "spec": {"type": "ExternalName", "externalName": "localhost"}}
    site.api.apply(path("Service", OPERATOR_NAMESPACE, NAME), service)
    configuration = copy.deepcopy(only(render(), "MutatingWebhookConfiguration"))
    configuration["webhooks"][0]["clientConfig"]["service"]["port"] = port
    site.api.apply(CONFIGURATION, configuration)
    yield port
    site.api.delete(CONFIGURATION)


@pytest.fixture
def running(site: Site, lane: Lane, port: int) -> Operator:
    """An operator that serves the webhook, and a consumer with its keeper's Secret."""
    one = replica(site, lane, port)
    lane.apply()
    eventually(lambda: lane.secret(lane.web, "database-keeper") is not None, 15)
    for namespace in lane.namespaces:
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        site.api.apply(f"/api/v1/namespaces/{namespace}/serviceaccounts/default", account)
    eventually(lambda: "keeper" in create(lane, pod(), dry_run=True)["spec"]["initContainers"][0]["name"], 15)
    return one


def replica(site: Site, lane: Lane, port: int) -> Operator:
    settings: dict[str, Any] = {"POOLKEEPER_WEBHOOK": NAME, "POOLKEEPER_WEBHOOK_PORT": str(port)}
    one = site.operator(lane.namespaces, fresh=True, **settings).start()
    eventually(lambda: f"admitted on port {port}" in one.said(), 20)
    return one


def pod(label: str | None = "database", annotations: dict[str, str] | None = None, **spec: Any) -> Object:
    labels = {"app": "web"} | ({names.DATABASE_LABEL: label} if label else {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "web-", "labels": labels, "annotations": annotations or {}},
        "spec": {"containers": [{"name": "web", "image": "example.com/web:1"}], **spec},
    }


def create(lane: Lane, body: Object, namespace: str = "", *, dry_run: bool = False) -> Object:
    return lane.api.create(path("Pod", namespace or lane.web), body, dry_run=dry_run)


def refusal(lane: Lane, body: Object, namespace: str = "") -> str:
    with pytest.raises(Refused) as refused:
        create(lane, body, namespace)
    assert refused.value.code == 403
    return refused.value.message


def test_a_labelled_pod_comes_out_with_its_keeper(lane: Lane, running: Operator) -> None:
    made = create(lane, pod(initContainers=[{"name": "migrate", "image": "example.com/web:1"}]))
    [keeper] = injection.injected(made)
    assert (keeper.container, keeper.secret_name, keeper.port) == ("keeper", "database", 6432)
    assert [item["name"] for item in made["spec"]["initContainers"]] == ["keeper", "migrate"]
    env = {item["name"]: item["value"] for item in made["spec"]["containers"][0]["env"]}
    assert env["DATABASE_URL"] == "postgresql://app@127.0.0.1:6432/shop?sslmode=disable"
    assert made["metadata"]["annotations"]["poolkeeper.io/keeper-listen"] == "listen_port = 6432"


def test_no_password_is_in_the_pod(lane: Lane, running: Operator) -> None:
    made = json.dumps(create(lane, pod()))
    for name in ("database", "database-keeper"):
        secret = lane.secret(lane.web, name)
        assert secret is not None
        assert secret.get("PGPASSWORD", "no such key") not in made
    files = decoded(lane.get("Secret", "database-keeper", lane.web))
    consumer = lane.secret(lane.web, "database")
    assert consumer is not None
    assert consumer["PGPASSWORD"] in files["pgbouncer.ini"]


def test_the_pods_token_is_mounted_for_the_app_and_not_for_its_keeper(lane: Lane, running: Operator) -> None:
    made = create(lane, pod())
    [keeper], [app] = made["spec"]["initContainers"], made["spec"]["containers"]
    [token] = [item["name"] for item in made["spec"]["volumes"] if item["name"] != "keeper"]
    assert [item["name"] for item in app["volumeMounts"]] == [token]
    assert {item["name"] for item in keeper["volumeMounts"]} == {"keeper"}


def test_a_password_that_keepers_demand_is_referred_to_by_name(lane: Lane, running: Operator) -> None:
    lane.apply(keeper={"auth": "Scram"})
    eventually(lambda: demanding(create(lane, pod(), dry_run=True)), 10)
    made = create(lane, pod())
    env = {item["name"]: item for item in made["spec"]["containers"][0]["env"]}
    reference = env["KEEPER_PASSWORD"]["valueFrom"]["secretKeyRef"]
    secret = lane.secret(lane.web, reference["name"])
    assert secret is not None
    password = secret[reference["key"]]
    assert len(password) == 43
    for text in (made, lane.get("Secret", "database-keeper", lane.web)["metadata"], lane.resource()):
        assert password not in json.dumps(text)
    again = create(
        lane,
        {
            **pod(),
            "metadata": {**made["metadata"], "name": "again", "resourceVersion": ""},
            "spec": made["spec"],
        },
    )
    assert again["spec"] == made["spec"]


def demanding(made: Object) -> tuple[injection.InjectedKeeper, ...]:
    found = injection.injected(made)
    assert [keeper.auth for keeper in found] == ["Scram"]
    return found


def test_the_keepers_pull_secrets_come_beside_those_of_the_service_account(
    lane: Lane, running: Operator
) -> None:
    account = {"imagePullSecrets": [{"name": "accounts"}]}
    lane.api.merge(f"/api/v1/namespaces/{lane.web}/serviceaccounts/default", account)
    lane.apply(keeper={"imagePullSecrets": [{"name": "keepers"}, {"name": "accounts"}]})

    def pulled() -> list[str]:
        made = create(lane, pod(), dry_run=True)
        return [item["name"] for item in made["spec"].get("imagePullSecrets", [])]

    eventually(lambda: pulled() == ["accounts", "keepers"], 10)
    with_own = create(lane, pod(imagePullSecrets=[{"name": "own"}]))
    assert [item["name"] for item in with_own["spec"]["imagePullSecrets"]] == ["own", "keepers", "accounts"]


def test_what_comes_out_passes_pod_security_restricted(lane: Lane, running: Operator) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    lane.api.merge(f"/api/v1/namespaces/{lane.web}", {"metadata": {"labels": labels}})
    security = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    web = {"name": "web", "image": "example.com/web:1", "securityContext": security}
    assert injection.injected(create(lane, pod(containers=[web])))


def test_quotas_and_limit_ranges_of_the_namespace_hold_for_the_keeper(lane: Lane, running: Operator) -> None:
    limits = [{"type": "Container", "default": {"memory": "100Mi"}, "max": {"memory": "200Mi"}}]
    body = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "own"}, "spec": {"limits": limits}}
    lane.api.create(f"/api/v1/namespaces/{lane.web}/limitranges", body)
    keeper = eventually(lambda: limited(create(lane, pod(), dry_run=True)), 10)
    assert keeper["requests"] == {"cpu": "10m", "memory": "32Mi"}


def limited(made: Object) -> Object:
    resources: Object = made["spec"]["initContainers"][0]["resources"]
    assert resources["limits"] == {"memory": "100Mi"}
    return resources


def test_pods_without_the_label_never_reach_the_operator(lane: Lane, running: Operator, port: int) -> None:
    running.kill()
    running.reap()
    made = create(lane, pod(label=None))
    assert "initContainers" not in made["spec"]
    with pytest.raises(Refused) as refused:
        create(lane, pod())
    assert "keepers.poolkeeper.io" in refused.value.message


def test_the_operators_own_namespace_is_left_alone(site: Site, lane: Lane, running: Operator) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    site.api.apply(f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/serviceaccounts/default", account)
    assert "initContainers" not in create(lane, pod(), OPERATOR_NAMESPACE, dry_run=True)["spec"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (pod("orders"), ("'orders'", "spec.consumers", "poolkeeper.io/accept-from")),
        (pod(hostNetwork=True), ("hostNetwork", "take the label")),
        (pod(dnsPolicy="Default"), ("dnsPolicy Default", "set dnsPolicy to ClusterFirst")),
        (
            pod(
                containers=[
                    {
                        "name": "web",
                        "image": "example.com/web",
                        "ports": [{"containerPort": 6432, "hostPort": 0}],
                    }
                ]
            ),
            ("'web' has port 6432", 'poolkeeper.io/keeper-port: "6433"'),
        ),
        (pod(annotations={names.DATABASES_ANNOTATION: "orders"}), ("lacks database", "list every database")),
        (pod(containers=[{"name": "keeper", "image": "example.com/web"}]), ("of its own", "another name")),
    ],
    ids=["no such database", "hostNetwork", "DNS", "port", "annotation", "name"],
)
def test_a_refusal_says_what_is_wrong_and_what_to_do(
    lane: Lane, running: Operator, body: Object, words: tuple[str, ...]
) -> None:
    message = refusal(lane, body)
    for word in words:
        assert word in message


def test_a_namespace_without_its_consent_gets_no_keeper(lane: Lane, running: Operator) -> None:
    """`api` has another Secret name; `data` is no consumer."""
    assert f"namespace {lane.data}" in refusal(lane, pod(), lane.data)
    assert injection.injected(create(lane, pod("shop-db"), lane.backend))


def test_a_pod_made_of_an_injected_one_stays_as_it_is(lane: Lane, running: Operator) -> None:
    once = create(lane, pod())
    copied = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "copy-",
            "labels": once["metadata"]["labels"],
            "annotations": once["metadata"]["annotations"],
        },
        "spec": once["spec"],
    }
    again = create(lane, copied)
    assert again["spec"] == once["spec"]
    assert again["metadata"]["annotations"] == once["metadata"]["annotations"]


def test_what_a_container_keeps_is_on_the_pod(lane: Lane, running: Operator) -> None:
    env = [{"name": "DATABASE_URL", "value": "postgres://elsewhere/db"}]
    made = create(lane, pod(containers=[{"name": "web", "image": "example.com/web", "env": env}]))
    assert made["spec"]["containers"][0]["env"] == env
    assert made["metadata"]["annotations"][injection.KEPT_ANNOTATION] == "web: DATABASE_URL"


def test_what_a_container_keeps_is_told_to_the_pods_owner_once(lane: Lane, running: Operator) -> None:
    env = [{"name": "DATABASE_URL", "value": "postgres://elsewhere/db"}]
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": str(uuid4())}

    def told() -> list[Object]:
        events = lane.api.get(path("Event", lane.web))["items"]
        return [event for event in events if event["involvedObject"].get("uid") == owner["uid"]]

    body = pod(containers=[{"name": "web", "image": "example.com/web", "env": env}])
    body["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
    create(lane, body, dry_run=True)
    assert not told()
    for _ in range(2):
        create(lane, body)
    [event] = eventually(told, 10)
    assert (event["type"], event["reason"]) == ("Warning", "VariablesKept")
    assert "container web sets DATABASE_URL itself" in event["message"]


# Certificate


def bundle(site: Site) -> str:
    [found] = site.api.get(CONFIGURATION)["webhooks"]
    return base64.b64decode(found["clientConfig"].get("caBundle", "")).decode()


def shown(port: int, authority: str) -> bytes:
    """The certificate that the server shows, verified as the API server does."""
    context = ssl.create_default_context(cadata=authority)
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        context.wrap_socket(plain, server_hostname=SERVER_NAME) as secured,
    ):
        certificate = secured.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def test_replicas_serve_one_and_the_same_certificate_whether_they_lead_or_not(
    site: Site, lane: Lane, running: Operator, port: int
) -> None:
    second = free_port()
    replica(site, lane, second)
    assert shown(port, bundle(site)) == shown(second, bundle(site))
    names_shown = x509.load_der_x509_certificate(shown(port, bundle(site))).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names_shown.value.get_values_for_type(x509.DNSName) == [SERVER_NAME]
    context = ssl.create_default_context(cadata=bundle(site))
    context.check_hostname = False
    url = f"https://127.0.0.1:{second}{server.READY_PATH}"
    with urllib.request.urlopen(url, timeout=5, context=context) as answer:
        assert answer.status == 200


def test_the_authority_goes_with_the_configuration(site: Site, running: Operator) -> None:
    secret = site.api.get(path("Secret", OPERATOR_NAMESPACE, NAME))
    [owner] = secret["metadata"]["ownerReferences"]
    assert owner["uid"] == site.api.get(CONFIGURATION)["metadata"]["uid"]
    assert names.ROLE_LABEL not in secret["metadata"]["labels"]


def test_a_restart_writes_nothing_and_keeps_the_certificate(
    site: Site, lane: Lane, running: Operator, port: int
) -> None:
    before, version = shown(port, bundle(site)), site.api.get(CONFIGURATION)["metadata"]["resourceVersion"]
    assert running.terminate() == 0
    replica(site, lane, port)
    assert shown(port, bundle(site)) == before
    assert site.api.get(CONFIGURATION)["metadata"]["resourceVersion"] == version


def test_the_chart_and_the_operator_own_different_fields(site: Site, running: Operator) -> None:
    """Neither takes the other's away, in whichever order they write."""
    before = bundle(site)
    configuration = copy.deepcopy(only(render(), "MutatingWebhookConfiguration"))
    now = site.api.get(CONFIGURATION)
    service = now["webhooks"][0]["clientConfig"]["service"]
    configuration["webhooks"][0]["clientConfig"]["service"] = service
    site.api.apply(CONFIGURATION, configuration)
    assert bundle(site) == before
    managers = {entry["manager"]: json.dumps(entry["fieldsV1"]) for entry in now["metadata"]["managedFields"]}
    assert "caBundle" in managers[BUNDLE_MANAGER]
    assert "rules" not in managers[BUNDLE_MANAGER]
    assert "caBundle" not in managers["test"]


def test_a_lost_authority_is_made_anew_and_the_api_server_learns_of_it(
    site: Site, lane: Lane, running: Operator, port: int
) -> None:
    before = bundle(site)
    assert running.terminate() == 0
    site.api.delete(path("Secret", OPERATOR_NAMESPACE, NAME))
    site.api.merge(CONFIGURATION, {"metadata": {"annotations": {"touched": "1"}}})
    replica(site, lane, port)
    assert bundle(site) != before
    shown(port, bundle(site))
    assert injection.injected(eventually(lambda: create(lane, pod()), 10))


# A client that is not the API server


def posted(site: Site, port: int, namespace: str, label: str) -> tuple[int, str]:
    """What the webhook answers a client that writes a review of its own."""
    new = pod(label)
    new["metadata"]["generateName"] = "web\nforged line"
    request = {"uid": "1", "namespace": namespace, "object": new}
    body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    context = ssl.create_default_context(cadata=bundle(site))
    context.check_hostname = False
    url = f"https://127.0.0.1:{port}{server.PATH}"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, json.dumps(body).encode()), timeout=10, context=context
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_client_of_its_own_learns_of_no_secret_and_writes_no_line_of_the_log(
    site: Site, lane: Lane, running: Operator, port: int
) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "present-keeper"}}
    site.api.create(f"/api/v1/namespaces/{lane.web}/secrets", body)
    present, absent = (posted(site, port, lane.web, name) for name in ("present", "missing"))
    assert present[0] == absent[0] == 200
    assert present[1].replace("present", "missing") == absent[1]
    for namespace in (f"{lane.web}/secrets/present-keeper?x=", "..", "", "a%2fb"):
        status, text = posted(site, port, namespace, "present")
        assert (status, "request.namespace" in text) == (400, True)
    lines = running.said().splitlines()
    assert any("web\\nforged line is refused" in line for line in lines)
    assert not any(line.startswith("forged") for line in lines)


# How long it takes


def test_an_admission_takes_a_fraction_of_its_time_limit(lane: Lane, running: Operator) -> None:
    def taken(body: Object) -> list[float]:
        seconds = []
        for _ in range(ADMISSIONS):
            began = time.perf_counter()
            create(lane, body, dry_run=True)
            seconds.append(time.perf_counter() - began)
        return seconds

    without, within = taken(pod(label=None)), taken(pod())
    p50, p99 = statistics.median(within), statistics.quantiles(within, n=100)[98]
    plain = statistics.median(without)
    print(
        f"{ADMISSIONS} pods with a keeper: p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms; "
        f"without the label: p50 {plain * 1e3:.1f} ms"
    )
    assert p99 < 1
