"""A real single-node cluster out of plain processes, for Linux machines with root and no Docker engine."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2e.cluster import addons, binaries, control_plane, namespaces, node, packages, supervisor
from e2e.cluster.adapters import VARIABLE, Image
from e2e.cluster.paths import BIN_DIR, CLUSTER_DIR, KUBECONFIG, lock
from e2e.cluster.pki import Authority
from e2e.cluster.shell import ClusterError, run, say

STATE = CLUSTER_DIR / "state"
_READY_TIMEOUT_S = 90.0
_HEALING_TIME_S = 15.0


class LocalCluster:
    """etcd, the control plane, containerd and kubelet in namespaces of their own (see ``namespaces``)."""

    def up(self) -> None:
        if sys.platform != "linux" or os.geteuid() != 0:
            raise ClusterError(
                "the local cluster needs root on Linux: become root, or start a Docker engine and set "
                f"{VARIABLE}=kind"
            )
        packages.use_system_path()
        with lock("cluster"):
            problem = self._settled_status()
            if problem is None:
                say(f"the cluster is up; kubeconfig: {KUBECONFIG}")
                return
            if STATE.exists():
                say(f"replacing the earlier cluster: {problem}")
            _refuse_second_cluster()
            packages.ensure(packages.CLUSTER_PACKAGES)
            binaries.ensure((*binaries.CONTROL_PLANE, *binaries.NODE))
            binaries.link_user_tools()
            self._remove()
            self._start()

    def down(self) -> None:
        packages.use_system_path()
        with lock("cluster"):
            if namespaces.owner() not in (None, STATE):
                say("no cluster of this checkout is up")
                return
            self._remove()
            KUBECONFIG.unlink(missing_ok=True)
        remains = namespaces.leftovers()
        if remains:
            raise ClusterError(f"still there after the tear-down: {', '.join(remains)}; run `down` again")
        say("the cluster is gone")

    def status(self) -> str | None:
        if namespaces.find(STATE) is None:
            return "it is not running"
        if not KUBECONFIG.exists() or not (BIN_DIR / "kubectl").exists():
            return "its start did not finish"
        if _release_of_state() != _release():
            return "it runs another release than this checkout pins"
        try:
            objects = _kubectl_json("get", "nodes,deployments", "--namespace=kube-system")
        except ClusterError as error:
            return f"its API server does not answer: {error}"
        kinds = {item["kind"]: item for item in objects["items"]}
        if not _condition(kinds.get("Node"), "Ready"):
            return "its node is not Ready"
        if not _condition(kinds.get("Deployment"), "Available"):
            return "CoreDNS is not available"
        return None

    def load(self, images: Sequence[Image]) -> list[str]:
        packages.use_system_path()
        with lock("cluster"):
            present = _images_present()
            absent = [image for image in images if image.reference not in present]
            for image in absent:
                _import(image)
        return [image.reference for image in absent]

    def _settled_status(self) -> str | None:
        """The status, with some seconds for a part that was just started again by the supervisor."""
        deadline = time.monotonic() + _HEALING_TIME_S
        while (problem := self.status()) is not None and time.monotonic() < deadline:
            if namespaces.find(STATE) is None or _release_of_state() != _release():
                break
            time.sleep(0.5)
        return problem

    def _remove(self) -> None:
        namespaces.destroy(STATE)
        if (owner := namespaces.owner()) is None:
            namespaces.destroy()
        shutil.rmtree(STATE, ignore_errors=True)
        if owner is None and STATE.exists():
            raise ClusterError(f"{STATE} cannot be removed; is something still mounted or open in it?")

    def _start(self) -> None:
        say("starting the control plane")
        programs = binaries.location("kubelet").parent
        _write_state(programs)
        pid = namespaces.start(STATE, programs)
        containerd = STATE / "run"  # made by the supervisor; the socket itself shows inside only
        deadline = time.monotonic() + _READY_TIMEOUT_S
        _wait(deadline, "containerd", lambda: containerd.exists() and _containerd_answers(pid))
        for name in ("pause", "coredns"):
            _import(Image(addons.reference(name), addons.archive(name)))
        layout = supervisor.layout(STATE, programs)
        authority = layout.pki / "ca.crt"
        _wait(deadline, "the API server", lambda: control_plane.is_ready(layout.server, authority))
        _wait(deadline, "the node's registration", lambda: bool(_kubectl_json("get", "nodes")["items"]))
        say("the API server is ready; waiting for the node and CoreDNS")
        _kubectl("apply", "--filename=-", text_input=addons.dns_manifest())
        _wait(deadline, "the node and CoreDNS", lambda: self.status() is None)
        say(f"the cluster is up; kubeconfig: {KUBECONFIG}")


def exec_in_netns(argv: Sequence[str]) -> list[str]:
    """The command line that runs ``argv`` where pod and Service addresses are reachable.

    The file system stays the host's. Raises ClusterError when the cluster is not running.
    """
    pid = namespaces.find(STATE)
    if pid is None:
        raise ClusterError("the cluster is not running; start it with `make cluster`")
    return namespaces.enter_argv(pid, argv)


def _refuse_second_cluster() -> None:
    owner = namespaces.owner()
    if owner not in (None, STATE):
        raise ClusterError(
            f"the cluster of another checkout is up on this machine ({owner}); "
            f"run `make cluster-down` there first"
        )


def _release() -> str:
    """What decides whether a running cluster is still the one this checkout describes."""
    return " ".join(binaries.module_key(module) for module in ("kubernetes", "coredns", "pause"))


def _release_of_state() -> str:
    file = STATE / "release"
    return file.read_text() if file.exists() else ""


def _write_state(programs: Path) -> None:
    """Everything the supervisor and its parts read."""
    layout = supervisor.layout(STATE, programs)
    authority = control_plane.prepare(layout, admin=KUBECONFIG)
    _issue_node_certificates(layout, authority)
    (STATE / "cni").mkdir()
    (STATE / "cni" / "10-pods.conflist").write_text(node.cni_config())
    (STATE / "containerd.toml").write_text(node.containerd_config(addons.reference("pause")))
    (STATE / "kubelet.json").write_text(node.kubelet_config())
    (STATE / "kube-proxy.json").write_text(node.kube_proxy_config())
    (STATE / "resolv.conf").write_text("")
    # The API server finds the node by name when it asks for logs and exec.
    (STATE / "hosts").write_text(f"127.0.0.1 localhost\n{namespaces.CLUSTER_ADDRESS} {node.NODE_NAME}\n")
    (STATE / "release").write_text(_release())


def _issue_node_certificates(layout: control_plane.Layout, authority: Authority) -> None:
    user, groups = f"system:node:{node.NODE_NAME}", ["system:nodes"]
    control_plane.write_user_kubeconfig(layout, authority, layout.kubeconfig("kubelet"), user, groups)
    proxy = layout.kubeconfig("kube-proxy")
    control_plane.write_user_kubeconfig(layout, authority, proxy, "system:kube-proxy")
    hosts = [f"DNS:{node.NODE_NAME}", f"IP:{namespaces.CLUSTER_ADDRESS}"]
    authority.issue("kubelet-server", node.NODE_NAME, hosts=hosts)


def _wait(deadline: float, what: str, ready: Any) -> None:
    while True:
        try:
            if ready():
                return
        except ClusterError:
            pass
        if namespaces.find(STATE) is None:
            raise ClusterError(f"the cluster ended during its start; see {STATE}/supervisor.log")
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} did not get ready in time; see {STATE}/log")
        time.sleep(0.1)


def _ctr_argv(pid: int, *argv: str) -> list[str]:
    socket = str(node.CONTAINERD_SOCKET)
    return namespaces.enter_argv(pid, ["ctr", "-a", socket, "-n", "k8s.io", *argv], mounts=True)


def _containerd_answers(pid: int) -> bool:
    run(_ctr_argv(pid, "version"), timeout=10)
    return True


def _running() -> int:
    pid = namespaces.find(STATE)
    if pid is None:
        raise ClusterError("the cluster is not running; start it with `make cluster`")
    return pid


def _images_present() -> set[str]:
    """References of the images in the cluster, without the registry that containerd puts before them."""
    names = run(_ctr_argv(_running(), "images", "list", "-q")).split()
    return {name.partition("/")[2] for name in names}


def _import(image: Image) -> None:
    began = time.monotonic()
    with image.archive.open("rb") as archive:
        # Through standard input: the file may lie where the cluster's own mounts hide it.
        run(_ctr_argv(_running(), "images", "import", "-"), stdin=archive, timeout=300)
    size = image.archive.stat().st_size / 1e6
    say(f"loaded {image.reference} ({size:.0f} MB, {time.monotonic() - began:.1f} s)")


def _kubectl(*argv: str, text_input: str | None = None) -> str:
    env = {**os.environ, "KUBECONFIG": str(KUBECONFIG)}
    return run([BIN_DIR / "kubectl", "--request-timeout=5s", *argv], text_input=text_input, env=env, timeout=30)


def _kubectl_json(*argv: str) -> Any:
    return json.loads(_kubectl(*argv, "--output=json"))


def _condition(item: Any, kind: str) -> bool:
    conditions = item["status"].get("conditions", []) if item else []
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)
