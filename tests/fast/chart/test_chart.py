"""The Helm chart, rendered by the real helm: what it installs and which values it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import poolkeeper
from poolkeeper import names, settings
from poolkeeper.dns import Dns
from tests.fast.helm_chart import (
    BOTH_MODES,
    CHART,
    CRD_FILE,
    KUBE_VERSION,
    NAMESPACE,
    ROOT,
    WATCHING,
    environment,
    helm,
    installed,
    only,
    pods,
    refusal,
    render,
    select,
    template,
)


@BOTH_MODES
def test_lint_is_content(mode: tuple[str, ...]) -> None:
    result = helm("lint", "--strict", str(CHART), "--kube-version", KUBE_VERSION, *mode)
    assert result.returncode == 0, result.stdout + result.stderr


def test_appversion_is_the_version_of_the_operator() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == poolkeeper.__version__
    [container] = only(render(), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"poolkeeper/operator:{poolkeeper.__version__}"


def test_the_packaged_chart_renders_the_same(tmp_path: Path) -> None:
    result = helm("package", str(CHART), "--destination", str(tmp_path))
    assert result.returncode == 0, result.stderr
    [package] = tmp_path.glob("poolkeeper-*.tgz")
    assert template(chart=package).stdout == template().stdout


def test_kubernetes_below_1_30_is_refused() -> None:
    result = template(kube_version="1.29.14")
    assert result.returncode != 0
    assert "1.30.0" in result.stderr


@pytest.mark.parametrize("version", ["1.30.0", "v1.30.4-gke.1129000", "v1.33.1-eks-1fbb135"])
def test_kubernetes_1_30_and_vendors_versions_are_accepted(version: str) -> None:
    assert template(kube_version=version).returncode == 0


@BOTH_MODES
def test_every_namespaced_object_names_its_namespace(mode: tuple[str, ...]) -> None:
    cluster_scoped = {
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "MutatingWebhookConfiguration",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
    for obj in render(*mode):
        if obj["kind"] not in cluster_scoped:
            assert obj["metadata"]["namespace"] in {NAMESPACE, "data", "web"}, obj


def test_two_releases_do_not_meet_in_cluster_scoped_names() -> None:
    other = helm(
        "template", "team-a", str(CHART), "--kube-version", KUBE_VERSION, "--set", "crds.enabled=false"
    )
    theirs = {(doc["kind"], doc["metadata"]["name"]) for doc in yaml.safe_load_all(other.stdout) if doc}
    ours = {(obj["kind"], obj["metadata"]["name"]) for obj in render("--set", "crds.enabled=false")}
    assert theirs
    assert not ours & theirs


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("replica=1", "replica"),
        ("replicas=two", "replicas"),
        ("image.tags=1", "tags"),
        ("image.digest=latest", "digest"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("pooler.imagePullPolicy=Never", "imagePullPolicy"),
        ("watchNamespace=data", "watchNamespace"),
        ("watchNamespaces=data", "watchNamespaces"),
        ("watchNamespaces={}", "watchNamespaces"),
        ("watchNamespaces={Data}", "watchNamespaces"),
        ("watchNamespaces={kube-system}", "watchNamespaces"),
        ("watchNamespaces={data,data}", "watchNamespaces"),
        ("namespaceSelectors=maybe", "namespaceSelectors"),
        ("namespaceSelectors=false", "watchNamespaces"),
        ("logLevel=verbose", "logLevel"),
        ("clusterDomain=cluster.local.", "clusterDomain"),
        ("resources.limit.memory=1Gi", "limit"),
        ("tolerations[0].effects=NoSchedule", "effects"),
        ("affinity.pod=x", "pod"),
        ("serviceAccount.create=false", "serviceAccount"),
        ("networkPolicy.enable=true", "enable"),
        ("webhook.failurePolicy=Maybe", "failurePolicy"),
        ("webhook.certificate.source=Vault", "source"),
        ("webhook.certificate.source=Secret", "secretName"),
        ("webhook.certificate.source=Secret,webhook.certificate.secretName=x", "caBundle"),
        ("webhook.certificate.caBundle=LS0t", "caBundle"),
        ("webhook.certificate.issuerRef.namespace=x", "namespace"),
        ("keeper.pullPolicy=Sometimes", "pullPolicy"),
        ("crds.keep=perhaps", "keep"),
        (r"podLabels.app\.kubernetes\.io/component=other", "app.kubernetes.io/component"),
    ],
)
def test_schema_refuses(setting: str, named: str) -> None:
    message = refusal("--set", setting)
    assert "values don't meet the specifications of the schema" in message
    assert named in message


def test_schema_leaves_global_open() -> None:
    assert render("--set", "global.registry=registry.example.com")


def test_schema_describes_every_value_and_no_other() -> None:
    def keys(
        schema: Mapping[str, Any], values: Mapping[str, Any], path: str = ""
    ) -> Iterator[tuple[str, set[str]]]:
        described = set(schema["properties"]) - {"global"}
        yield path, described ^ set(values)
        for key, value in values.items():
            below = schema["properties"][key]
            if isinstance(value, dict) and "properties" in below and value:
                yield from keys(below, value, f"{path}.{key}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert {path: difference for path, difference in keys(schema, values) if difference} == {}


def test_the_chart_holds_the_same_crd() -> None:
    ours = CHART / "files" / "crds" / CRD_FILE.name
    remedy = f"cp {CRD_FILE.relative_to(ROOT)} {ours.relative_to(ROOT)}"
    assert ours.read_bytes() == CRD_FILE.read_bytes(), f"the chart's copy of the CRD is not current: {remedy}"


def test_the_crd_is_installed_as_it_is_and_kept() -> None:
    source = yaml.safe_load(CRD_FILE.read_text())
    installed = only(render(), "CustomResourceDefinition")
    assert installed["metadata"]["annotations"].pop("helm.sh/resource-policy") == "keep"
    source["metadata"].setdefault("annotations", {})
    assert installed == source
    assert source["metadata"]["name"] == f"{names.PLURAL}.{names.GROUP}"


def test_the_crd_goes_with_the_release_only_when_asked() -> None:
    installed = only(render("--set", "crds.keep=false"), "CustomResourceDefinition")
    assert installed == yaml.safe_load(CRD_FILE.read_text())


def test_the_crd_can_be_left_out() -> None:
    assert select(render("--set", "crds.enabled=false"), "CustomResourceDefinition") == []


def test_the_crd_is_a_provisioned_service() -> None:
    """Service binding controllers find the kinds they may bind to by this label."""
    installed = only(render(), "CustomResourceDefinition")
    assert installed["metadata"]["labels"]["servicebinding.io/provisioned-service"] == "true"


def test_the_operator_gets_every_variable_it_reads_and_no_other() -> None:
    asked: set[str] = set()

    class Recorder(dict[str, str]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return super().get(key, default)

    given = environment(render())
    settings.from_environment(Recorder(given))
    assert asked == set(given)


def test_the_values_reach_the_operator() -> None:
    defaults = settings.from_environment(environment(render()))
    assert defaults == settings.Settings(
        namespace="metadata.namespace",
        identity="metadata.name",
        webhook=settings.Webhook("poolkeeper-webhook"),
    )
    values = (
        "pooler.image=registry.example.com/pgbouncer:1.27.0,pooler.pullPolicy=Always,namespaceSelectors=false,"
        "logLevel=DEBUG,webhook.enabled=false,clusterDomain=k8s.example.com"
    )
    assert settings.from_environment(environment(render(*WATCHING, "--set", values))) == settings.Settings(
        namespace="metadata.namespace",
        identity="metadata.name",
        watch_namespaces=("data", "web"),
        reads_namespaces=False,
        pooler_image="registry.example.com/pgbouncer:1.27.0",
        pooler_image_pull_policy="Always",
        keeper_image="registry.example.com/pgbouncer:1.27.0",
        keeper_image_pull_policy="Always",
        log_level="DEBUG",
        dns=Dns("k8s.example.com"),
    )
    own = settings.from_environment(
        environment(render("--set", "keeper.image=registry.example.com/k:1,keeper.pullPolicy=Never"))
    )
    assert (own.keeper_image, own.keeper_image_pull_policy) == ("registry.example.com/k:1", "Never")
    assert own.pooler_image == settings.Settings.pooler_image
    images = "keeper.allowedImages={registry.example.com/a:1,registry.example.com/b:*}"
    bounded = settings.from_environment(
        environment(render("--set", f"{images},keeper.maxResources.cpu=0.5,keeper.maxResources.memory=1Gi"))
    )
    assert bounded.keeper_allowed_images == ("registry.example.com/a:1", "registry.example.com/b:*")
    assert (bounded.keeper_max_cpu, bounded.keeper_max_memory) == ("0.5", "1Gi")


OPENSHIFT = ("--api-versions", "security.openshift.io/v1")


@pytest.mark.parametrize(
    ("arguments", "assigned"),
    [
        ((), False),
        (OPENSHIFT, True),
        ((*OPENSHIFT, "--set", "podUsers=Fixed"), False),
        (("--set", "podUsers=Assigned"), True),
    ],
)
def test_no_pod_names_a_user_where_the_cluster_assigns_one(arguments: tuple[str, ...], assigned: bool) -> None:
    objects = render(*arguments)
    for pod in pods(objects):
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert ({"runAsUser", "runAsGroup"} & context.keys() == set()) is assigned
    assert settings.from_environment(environment(objects)).assigned_users is assigned


def test_every_pod_passes_pod_security_restricted() -> None:
    """The fields of the Pod Security Standards' restricted profile, and a read-only root beyond it."""
    for pod in pods(render()):
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(set(volume) == {"name", "emptyDir"} for volume in spec["volumes"])
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert all("hostPort" not in port for port in container.get("ports", []))
            assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]


def test_labels_that_poolers_network_policies_admit() -> None:
    pod, *_ = pods(render("--set", "podLabels.team=data"))
    labels = pod["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "poolkeeper"
    assert labels["app.kubernetes.io/component"] == "operator"
    assert labels["team"] == "data"


def test_selectors_match_the_operators_pods_and_no_others() -> None:
    objects = render()
    operator, *others = (pod["metadata"]["labels"] for pod in pods(objects))
    deployment = only(objects, "Deployment")["spec"]
    selectors = [
        deployment["selector"]["matchLabels"],
        only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        deployment["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= operator.items()
        assert not any(selector.items() <= labels.items() for labels in others)


def test_the_deployment_survives_rollouts_and_drains() -> None:
    objects = render()
    spec = only(objects, "Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert only(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    [container] = spec["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {
        "health": int(environment(objects)["POOLKEEPER_HEALTH_PORT"]),
        "webhook": int(environment(objects)["POOLKEEPER_WEBHOOK_PORT"]),
    }
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "health"}
    ready = {"path": "/readyz", "port": "webhook", "scheme": "HTTPS"}
    assert container["readinessProbe"]["httpGet"] == ready
    assert container["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    assert set(container["resources"]["limits"]) == {"memory"}


def test_the_network_policy_lets_in_the_health_port_and_the_webhooks_only() -> None:
    spec = only(render(), "NetworkPolicy")["spec"]
    ports = [{"port": 8080, "protocol": "TCP"}, {"port": 9443, "protocol": "TCP"}]
    assert spec["ingress"] == [{"ports": ports}]
    without = only(render("--set", "webhook.enabled=false"), "NetworkPolicy")["spec"]
    assert without["ingress"] == [{"ports": ports[:1]}]
    assert spec["egress"] == [{}]
    assert spec["policyTypes"] == ["Ingress", "Egress"]


def test_the_image_can_be_named_by_its_digest() -> None:
    digest = f"sha256:{'0' * 63}a"
    objects = render("--set", f"image.repository=registry:5000/operator,image.tag=v1,image.digest={digest}")
    for pod in pods(objects):
        assert [item["image"] for item in pod["spec"]["containers"]] == [f"registry:5000/operator@{digest}"]


def test_parts_can_be_switched_off() -> None:
    switches = "networkPolicy.enabled=false,podDisruptionBudget.enabled=false"
    kinds = {obj["kind"] for obj in render("--set", switches)}
    assert not kinds & {"NetworkPolicy", "PodDisruptionBudget"}
    objects = installed(render("--set", "serviceAccount.create=false,serviceAccount.name=own"))
    assert select(objects, "ServiceAccount") == []
    assert only(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "own"


def test_placement_reaches_the_pods(tmp_path: Path) -> None:
    placement = {
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "system-cluster-critical",
        "imagePullSecrets": [{"name": "registry"}],
    }
    own = {
        "podAnnotations": {"example.com/team": "data"},
        "serviceAccount": {"annotations": {"example.com/role": "r"}},
    }
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(placement | own))
    objects = render("--values", str(values))
    pod = only(objects, "Deployment")["spec"]["template"]
    assert {key: pod["spec"][key] for key in placement} == placement
    assert pod["metadata"]["annotations"]["example.com/team"] == "data"
    account = only(installed(objects), "ServiceAccount")
    assert account["metadata"]["annotations"] == {"example.com/role": "r"}
