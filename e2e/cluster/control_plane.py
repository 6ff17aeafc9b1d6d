"""etcd, kube-apiserver and, where wanted, the controllers: how each is started, and a control plane alone.

The command lines serve two callers: the local cluster, inside its own namespaces, and ``ControlPlane``, for
tests and benchmarks that need a real API server and nothing else.
"""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from e2e.cluster import binaries, packages
from e2e.cluster.pki import Authority, make_key, write_kubeconfig
from e2e.cluster.ports import free_port
from e2e.cluster.shell import ClusterError

SERVICE_RANGE = "10.96.0.0/16"
_API_SERVICE_ADDRESS = "10.96.0.1"
_READY_TIMEOUT_S = 60.0
# Writes only, without bodies: what is counted is who wrote what, and Secrets stay out of the log.
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
        {"level": "None"},
    ],
}


@dataclass(frozen=True)
class Layout:
    """Where one control plane keeps its files and listens."""

    data: Path
    programs: Path  # the directory of the kube-* programs
    address: str  # what clients and the `kubernetes` Service connect to
    api_port: int
    etcd_port: int
    etcd_peer_port: int

    @property
    def pki(self) -> Path:
        return self.data / "pki"

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.api_port}"

    def kubeconfig(self, user: str) -> Path:
        return self.data / f"{user}.kubeconfig"


def etcd_argv(layout: Layout) -> list[str]:
    """etcd without fsync: after a power cut a test cluster is made anew."""
    client = f"http://127.0.0.1:{layout.etcd_port}"
    peer = f"http://127.0.0.1:{layout.etcd_peer_port}"
    return [
        "etcd",
        f"--data-dir={layout.data}/etcd",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--auto-compaction-retention=1h",
        "--quota-backend-bytes=4294967296",
        "--logger=zap",
        "--log-level=warn",
    ]


def apiserver_argv(layout: Layout, *, bind: str, audit_log: Path | None = None) -> list[str]:
    """kube-apiserver with its default admission plugins, the Node authorizer and RBAC."""
    pki = layout.pki
    argv = [
        f"{layout.programs}/kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{layout.etcd_port}",
        f"--bind-address={bind}",
        f"--advertise-address={layout.address}",
        f"--secure-port={layout.api_port}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet.key",
        "--kubelet-preferred-address-types=InternalIP,Hostname",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki}/service-account.key",
        f"--service-account-signing-key-file={pki}/service-account.key",
        f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={pki}/front-proxy-client.crt",
        f"--proxy-client-key-file={pki}/front-proxy-client.key",
    ]
    if audit_log is not None:
        policy = layout.data / "audit-policy.json"
        argv += [f"--audit-policy-file={policy}", f"--audit-log-path={audit_log}"]
    return argv


def controller_manager_argv(layout: Layout, controllers: Sequence[str] = ("*",)) -> list[str]:
    """kube-controller-manager, alone (no leader election) and with room for many requests."""
    kubeconfig = layout.kubeconfig("controller-manager")
    return [
        f"{layout.programs}/kube-controller-manager",
        f"--kubeconfig={kubeconfig}",
        f"--controllers={','.join(controllers)}",
        "--leader-elect=false",
        "--secure-port=0",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={layout.pki}/service-account.key",
        f"--root-ca-file={layout.pki}/ca.crt",
        f"--cluster-signing-cert-file={layout.pki}/ca.crt",
        f"--cluster-signing-key-file={layout.pki}/ca.key",
        "--kube-api-qps=100",
        "--kube-api-burst=200",
    ]


def scheduler_argv(layout: Layout) -> list[str]:
    """kube-scheduler, alone (no leader election)."""
    return [
        f"{layout.programs}/kube-scheduler",
        f"--kubeconfig={layout.kubeconfig('scheduler')}",
        "--leader-elect=false",
        "--secure-port=0",
    ]


def prepare(layout: Layout, *, admin: Path, names: Sequence[str] = ()) -> Authority:
    """Make keys, certificates and the kubeconfigs of admin and controllers. Returns the cluster's authority.

    ``names`` are further subjectAltName entries of the API server, such as ``DNS:example``.
    """
    layout.data.mkdir(parents=True, exist_ok=True)
    authority = Authority(layout.pki, "ca")
    front_proxy = Authority(layout.pki, "front-proxy-ca")
    front_proxy.issue("front-proxy-client", "front-proxy-client")
    service = ["kubernetes", "default", "svc", "cluster", "local"]
    hosts = [f"DNS:{'.'.join(service[:length])}" for length in range(1, len(service) + 1)]
    addresses = dict.fromkeys(("127.0.0.1", layout.address, _API_SERVICE_ADDRESS))
    hosts += ["DNS:localhost", *(f"IP:{address}" for address in addresses), *names]
    authority.issue("apiserver", "kube-apiserver", hosts=hosts)
    authority.issue("apiserver-kubelet", "kube-apiserver-kubelet-client", groups=["system:masters"])
    make_key(layout.pki / "service-account.key")
    write_user_kubeconfig(layout, authority, admin, "kubernetes-admin", ["system:masters"])
    for component in ("controller-manager", "scheduler"):
        path = layout.kubeconfig(component)
        write_user_kubeconfig(layout, authority, path, f"system:kube-{component}")
    (layout.data / "audit-policy.json").write_text(json.dumps(_AUDIT_POLICY))
    return authority


def write_user_kubeconfig(
    layout: Layout, authority: Authority, path: Path, user: str, groups: Sequence[str] = ()
) -> None:
    """Sign a client certificate for ``user`` and write it, with the server's address, as a kubeconfig."""
    client = authority.issue(f"client-{user.replace(':', '-')}", user, groups=groups)
    write_kubeconfig(path, server=layout.server, authority=authority.pair.certificate, client=client)


def is_ready(server: str, ca_file: Path) -> bool:
    """Whether the API server answers /readyz, which anybody may ask."""
    context = ssl.create_default_context(cafile=str(ca_file))
    try:
        with urllib.request.urlopen(f"{server}/readyz", timeout=5, context=context) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class ControlPlane:
    """A real API server with its etcd on free loopback ports, as plain processes: no node, no root needed.

    Use it as a context manager. ``controllers=True`` adds the controller manager and the scheduler; a list
    of controller names starts only those (``["garbage-collector-controller", "namespace-controller"]``).
    With ``audit_log`` every write request leaves one JSON line there (see ``writes_by_user``).

    The processes end with the block, and also when this process dies (the kernel ends them together with
    the thread that started them, so enter the block in a thread that lives as long as the block).
    """

    def __init__(
        self, data_dir: Path, controllers: bool | Sequence[str] = False, audit_log: Path | None = None
    ) -> None:
        self._controllers = controllers
        self._audit_log = audit_log
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        api_port, etcd_port, etcd_peer_port = free_port(), free_port(), free_port()
        programs = binaries.location("kube-apiserver").parent
        self._layout = Layout(data_dir, programs, "127.0.0.1", api_port, etcd_port, etcd_peer_port)
        self.kubeconfig = data_dir / "kubeconfig"

    @property
    def url(self) -> str:
        """The API server's address."""
        return self._layout.server

    @property
    def ca_file(self) -> Path:
        """The authority that signed the API server's certificate."""
        return self._layout.pki / "ca.crt"

    def user_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig for another user, whom RBAC and the audit log know by this name."""
        path = self._layout.kubeconfig(f"user-{user.replace(':', '-')}")
        write_user_kubeconfig(self._layout, self._authority, path, user, groups)
        return path

    def __enter__(self) -> ControlPlane:
        packages.use_system_path()
        packages.ensure(packages.CONTROL_PLANE_PACKAGES)
        binaries.ensure(binaries.CONTROL_PLANE)
        try:
            self._start_all()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process at once; nothing of its data is kept for later."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        shutil.rmtree(self._layout.data / "etcd", ignore_errors=True)

    def _start_all(self) -> None:
        layout = self._layout
        self._authority = prepare(layout, admin=self.kubeconfig)
        self._start("etcd", etcd_argv(layout))
        self._start("kube-apiserver", apiserver_argv(layout, bind="127.0.0.1", audit_log=self._audit_log))
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not is_ready(layout.server, self.ca_file):
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise ClusterError(f"{name} ended during its start; see {layout.data}/{name}.log")
            if time.monotonic() > deadline:
                raise ClusterError(f"kube-apiserver was not ready in time; see {layout.data}")
            time.sleep(0.1)
        if self._controllers is True:
            self._start("kube-controller-manager", controller_manager_argv(layout))
            self._start("kube-scheduler", scheduler_argv(layout))
        elif self._controllers:
            self._start("kube-controller-manager", controller_manager_argv(layout, self._controllers))

    def _start(self, name: str, argv: Sequence[str]) -> None:
        with (self._layout.data / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def writes_by_user(audit_log: Path) -> Counter[str]:
    """How many write requests each user sent, from an audit log (Lease renewals included)."""
    if not audit_log.exists():
        return Counter()
    events = (json.loads(line) for line in audit_log.read_text().splitlines() if line.endswith("}"))
    return Counter(event["user"]["username"] for event in events)
