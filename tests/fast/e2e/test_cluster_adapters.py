"""The adapters' decisions and the commands they would run; the local cluster itself is run by the e2e tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster import addons, binaries, control_plane, existing, kind, local, namespaces, node, packages
from e2e.cluster.adapters import choose, default_name
from e2e.cluster.paths import KUBECONFIG
from e2e.cluster.shell import ClusterError, run

LAYOUT = control_plane.Layout(Path("/data"), Path("/programs"), "192.0.2.1", 6443, 2379, 2380)


def test_kind_is_the_default_where_a_docker_engine_answers() -> None:
    assert default_name(docker=True, linux=True, root=True) == "kind"
    assert default_name(docker=True, linux=False, root=False) == "kind"


def test_the_local_cluster_is_the_default_for_root_on_linux_without_docker() -> None:
    assert default_name(docker=False, linux=True, root=True) == "local"


@pytest.mark.parametrize(("linux", "root"), [(True, False), (False, True), (False, False)])
def test_a_machine_that_can_run_neither_is_told_what_to_do(linux: bool, root: bool) -> None:
    with pytest.raises(
        ClusterError, match=r"start a Docker engine.*root on Linux.*POOLKEEPER_CLUSTER=existing"
    ):
        default_name(docker=False, linux=linux, root=root)


@pytest.mark.parametrize(
    ("name", "adapter"),
    [("local", local.LocalCluster), ("kind", kind.KindCluster), ("existing", existing.ExistingCluster)],
)
def test_the_variable_names_the_adapter(name: str, adapter: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLKEEPER_CLUSTER", name)
    assert isinstance(choose(), adapter)


def test_an_unknown_adapter_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLKEEPER_CLUSTER", "minikube")
    with pytest.raises(ClusterError, match="POOLKEEPER_CLUSTER=minikube is not known; use one of local, kind"):
        choose()


def test_kind_creates_deletes_and_loads_only_its_own_cluster() -> None:
    kubeconfig, file = Path("/c/kubeconfig"), Path("/c/kind.json")
    own = ["--name", "poolkeeper"]
    assert kind.create_argv(file, kubeconfig) == [
        *["create", "cluster", *own, "--config", "/c/kind.json", "--kubeconfig", "/c/kubeconfig"],
        *["--wait", "120s"],
    ]
    assert kind.delete_argv(kubeconfig) == ["delete", "cluster", *own, "--kubeconfig", "/c/kubeconfig"]
    assert kind.load_argv(Path("/i/a.tar")) == ["load", "image-archive", "/i/a.tar", *own]
    assert kind.list_images_argv()[:3] == ["docker", "exec", "poolkeeper-control-plane"]


def test_kinds_configuration_is_one_node_of_the_current_format() -> None:
    config = json.loads(kind.config())
    assert (config["kind"], config["apiVersion"]) == ("Cluster", "kind.x-k8s.io/v1alpha4")
    assert config["nodes"] == [{"role": "control-plane"}]


def test_the_users_load_command_gets_the_archive_at_its_end_or_where_it_says() -> None:
    archive = Path("/i/my image.tar")
    assert existing.load_argv("minikube image load", archive) == [
        "minikube",
        "image",
        "load",
        "/i/my image.tar",
    ]
    assert existing.load_argv("scp {} host:", archive) == ["scp", "/i/my image.tar", "host:"]


def test_an_existing_cluster_without_a_load_command_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POOLKEEPER_LOAD_COMMAND", raising=False)
    with pytest.raises(ClusterError, match="POOLKEEPER_LOAD_COMMAND is not set"):
        existing.ExistingCluster().load([])


def test_an_existing_clusters_own_kubeconfig_must_not_be_the_file_we_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(KUBECONFIG))
    with pytest.raises(ClusterError, match="name your own file"):
        existing.ExistingCluster().up()


def test_every_kubernetes_module_is_pinned_to_the_one_release() -> None:
    version = binaries.kubernetes_version().removeprefix("v1.")
    text = (binaries.GOMOD / "kubernetes" / "go.mod").read_text()
    replaced = [line.split()[-1] for line in text.splitlines() if "=>" in line]
    assert len(replaced) > 25
    assert set(replaced) == {f"v0.{version}"}


def test_every_module_has_its_checksums() -> None:
    for module in {program.module for program in binaries.PROGRAMS.values()}:
        requires = "require" in (binaries.GOMOD / module / "go.mod").read_text()
        assert (binaries.GOMOD / module / "go.sum").exists() == requires, module


def test_a_changed_pin_changes_where_the_program_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pins = tmp_path / "gomod"
    for module in ("kubernetes", "pause"):
        (pins / module).mkdir(parents=True)
        for source in (binaries.GOMOD / module).iterdir():
            (pins / module / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(binaries, "GOMOD", pins)
    before = binaries.location("pause")
    assert before.is_relative_to(tmp_path / "cache" / "poolkeeper")
    (pins / "pause" / "go.mod").write_text("module poolkeeper.io/e2e/pause\n\ngo 1.25.0\n")
    assert binaries.location("pause") != before


def test_kubernetes_and_helm_are_built_with_their_versions() -> None:
    version = binaries.kubernetes_version()
    minor = version.split(".")[1]
    assert f"k8s.io/component-base/version.gitVersion={version} " in binaries.link_flags("kubernetes")
    helm = binaries.link_flags("tools")
    assert "helm.sh/helm/v3/internal/version.version=v3." in helm
    assert helm.endswith(f"lint/rules.k8sVersionMinor={minor}")


def test_missing_packages_are_found_by_what_they_bring(tmp_path: Path) -> None:
    present, absent = tmp_path / "there", tmp_path / "not-there"
    present.touch()
    needed = {str(present): "one", str(absent): "two", "no-such-program-anywhere": "three", "sh": "dash"}
    assert packages.missing(needed) == ["three", "two"]


def test_a_missing_program_is_named_with_the_remedy() -> None:
    with pytest.raises(ClusterError, match="no-such-program is not installed; install it"):
        run(["no-such-program"])


def test_a_failed_program_is_reported_with_its_last_words() -> None:
    with pytest.raises(ClusterError, match="failed: first / last"):
        run(["sh", "-c", "echo first >&2; echo last >&2; exit 3"])


def test_the_api_server_authorizes_by_node_and_role_and_keeps_the_default_admission() -> None:
    argv = control_plane.apiserver_argv(LAYOUT, bind="127.0.0.1")
    assert "--authorization-mode=Node,RBAC" in argv
    assert not [word for word in argv if word.startswith(("--disable-admission", "--anonymous", "--audit"))]


def test_an_audit_log_holds_writes_without_their_bodies() -> None:
    argv = control_plane.apiserver_argv(LAYOUT, bind="127.0.0.1", audit_log=Path("/log"))
    assert argv[-2:] == ["--audit-policy-file=/data/audit-policy.json", "--audit-log-path=/log"]
    rules: Any = control_plane._AUDIT_POLICY["rules"]
    writes, rest = rules
    assert writes["level"] == "Metadata"
    assert {"get", "list", "watch"}.isdisjoint(writes["verbs"])
    assert rest == {"level": "None"}


def test_writes_are_counted_by_user(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    assert control_plane.writes_by_user(log) == {}
    names = ("operator", "operator", "somebody")
    log.write_text("".join(json.dumps({"user": {"username": name}}) + "\n" for name in names) + '{"half')
    assert control_plane.writes_by_user(log) == {"operator": 2, "somebody": 1}


def test_the_node_takes_more_pods_than_the_tests_start_and_never_drops_images() -> None:
    config = json.loads(node.kubelet_config())
    assert config["maxPods"] >= 100
    assert config["imageGCHighThresholdPercent"] == 100
    assert config["cgroupRoot"] == "/poolkeeper"


def test_containerd_knows_the_pause_image_and_copes_without_cap_sys_resource() -> None:
    config = node.containerd_config("poolkeeper/pause:1")
    assert 'sandbox_image = "poolkeeper/pause:1"' in config
    assert "restrict_oom_score_adj = true" in config


def test_sockets_stay_within_the_kernels_limit_wherever_the_checkout_is() -> None:
    assert len(str(node.CONTAINERD_SOCKET)) <= 107


def test_dns_is_served_at_the_address_that_pods_are_told() -> None:
    manifest = addons.dns_manifest()
    assert f"clusterIP: {json.loads(node.kubelet_config())['clusterDNS'][0]}\n" in manifest
    assert f"image: {addons.reference('coredns')}\n" in manifest
    assert "${" not in manifest


def test_entering_the_network_keeps_the_hosts_files() -> None:
    assert namespaces.enter_argv(7, ["psql"]) == ["nsenter", "--target", "7", "--net", "--", "psql"]
