"""The chart's admission webhook: whom it concerns, how it is reached, and whose certificate it shows."""

from __future__ import annotations

import base64
from pathlib import Path

import yaml

from poolkeeper import names
from poolkeeper.credentials import certificates, mint
from poolkeeper.settings import Webhook, from_environment
from poolkeeper.webhook import certificate as webhook_certificate
from poolkeeper.webhook import server
from tests.fast.helm_chart import (
    CLUSTER_WIDE,
    NAMESPACE,
    WATCHING,
    Object,
    environment,
    helm,
    only,
    pods,
    refusal,
    render,
    select,
)

AUTHORITY = certificates.authority("api", mint.authority_key()).certificate
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def one(objects: list[Object]) -> Object:
    [found] = only(objects, "MutatingWebhookConfiguration")["webhooks"]
    return dict(found)


def test_it_concerns_pods_with_the_label_when_they_are_made_and_nothing_else() -> None:
    found = one(render(*CLUSTER_WIDE))
    assert found["objectSelector"] == {
        "matchExpressions": [{"key": names.DATABASE_LABEL, "operator": "Exists"}]
    }
    assert found["rules"] == [
        {
            "operations": ["CREATE"],
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "resources": ["pods"],
            "scope": "Namespaced",
        }
    ]
    [excluded] = found["namespaceSelector"]["matchExpressions"]
    assert excluded == {
        "key": "kubernetes.io/metadata.name",
        "operator": "NotIn",
        "values": ["kube-system", NAMESPACE],
    }
    assert (found["failurePolicy"], found["sideEffects"]) == ("Fail", "NoneOnDryRun")
    assert (found["reinvocationPolicy"], found["timeoutSeconds"]) == ("IfNeeded", 5)
    assert found["timeoutSeconds"] > server.ANSWER_SECONDS


def test_where_some_namespaces_are_watched_it_concerns_these_alone() -> None:
    _, watched = one(render(*WATCHING))["namespaceSelector"]["matchExpressions"]
    assert watched == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["data", "web"]}


def test_the_api_server_reaches_every_operator_pod_through_the_service() -> None:
    objects = render()
    service = only(objects, "Service")
    called = one(objects)["clientConfig"]["service"]
    assert (called["namespace"], called["name"]) == (NAMESPACE, service["metadata"]["name"])
    assert called["path"] == server.PATH
    [port] = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (called["port"], "webhook")
    operator, *others = (pod["metadata"]["labels"] for pod in pods(objects))
    assert service["spec"]["selector"].items() <= operator.items()
    assert not any(service["spec"]["selector"].items() <= labels.items() for labels in others)


def test_the_operator_finds_its_configuration_and_fills_in_the_authority() -> None:
    objects = render()
    own = from_environment(environment(objects)).webhook
    configuration = only(objects, "MutatingWebhookConfiguration")
    assert own == Webhook(configuration["metadata"]["name"])
    assert one(objects)["name"] == webhook_certificate.WEBHOOK
    assert "caBundle" not in one(objects)["clientConfig"]


def test_the_failure_policy_can_be_chosen() -> None:
    assert one(render("--set", "webhook.failurePolicy=Ignore"))["failurePolicy"] == "Ignore"


def test_it_can_be_left_out() -> None:
    objects = render("--set", "webhook.enabled=false,webhook.certificate.source=CertManager")
    assert not {"MutatingWebhookConfiguration", "Service", "Certificate", "Issuer"} & {
        obj["kind"] for obj in objects
    }
    assert from_environment(environment(objects)).webhook is None
    [container] = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert [port["name"] for port in container["ports"]] == ["health"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert "lifecycle" not in container


def mounted(objects: list[Object]) -> str:
    """The Secret whose certificate the operator is told to show, mounted where it looks for it."""
    directory = environment(objects)["POOLKEEPER_WEBHOOK_CERTIFICATES"]
    spec = only(objects, "Deployment")["spec"]["template"]["spec"]
    [mount] = [item for item in spec["containers"][0]["volumeMounts"] if item["mountPath"] == directory]
    [volume] = [item for item in spec["volumes"] if item["name"] == mount["name"]]
    assert mount["readOnly"]
    return str(volume["secret"]["secretName"])


def test_a_certificate_of_cert_manager_is_mounted_and_its_authority_injected() -> None:
    objects = render("--set", "webhook.certificate.source=CertManager")
    certificate, issuer = only(objects, "Certificate"), only(objects, "Issuer")
    assert mounted(objects) == certificate["spec"]["secretName"]
    assert certificate["spec"]["dnsNames"] == [f"poolkeeper-webhook.{NAMESPACE}.svc"]
    assert certificate["spec"]["issuerRef"] == {"name": issuer["metadata"]["name"], "kind": "Issuer"}
    annotations = only(objects, "MutatingWebhookConfiguration")["metadata"]["annotations"]
    named = f"{NAMESPACE}/{certificate['metadata']['name']}"
    assert annotations["cert-manager.io/inject-ca-from"] == named


def test_an_issuer_of_ones_own_is_used() -> None:
    values = "webhook.certificate.source=CertManager,webhook.certificate.issuerRef.name=company"
    objects = render("--set", f"{values},webhook.certificate.issuerRef.kind=ClusterIssuer")
    assert only(objects, "Certificate")["spec"]["issuerRef"] == {"name": "company", "kind": "ClusterIssuer"}
    assert select(objects, "Issuer") == []


def test_an_existing_secret_is_mounted_and_its_authority_told(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    certificate = {"source": "Secret", "secretName": "mine", "caBundle": PEM}
    values.write_text(yaml.safe_dump({"webhook": {"certificate": certificate}}))
    objects = render("--values", str(values))
    assert mounted(objects) == "mine"
    assert base64.b64decode(one(objects)["clientConfig"]["caBundle"]).decode() == PEM
    assert select(objects, "Certificate") == []
    assert helm("lint", "--strict", "charts/poolkeeper", "--values", str(values)).returncode == 0


def test_a_certificate_of_the_api_server_is_demanded_by_authority_and_name(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    client = {"caBundle": AUTHORITY, "commonName": "api-server"}
    values.write_text(yaml.safe_dump({"webhook": {"client": client}}))
    own = from_environment(environment(render("--values", str(values)))).webhook
    assert own is not None
    assert (own.client_authority, own.client_name) == (AUTHORITY.strip(), "api-server")
    plain = from_environment(environment(render())).webhook
    assert plain is not None
    assert (plain.client_authority, plain.client_name) == ("", "")
    values.write_text(yaml.safe_dump({"webhook": {"client": {**client, "commonName": ""}}}))
    assert "commonName" in refusal("--values", str(values))
