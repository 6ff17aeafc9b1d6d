"""The first process inside the cluster's namespaces: prepares them, starts every part, restarts what ends.

``namespaces.start`` runs it as ``python -m e2e.cluster.supervisor STATE PROGRAMS``. It ends only by SIGKILL,
and everything else in its process namespace ends with it: that is the whole of the tear-down.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from e2e.cluster import control_plane, node
from e2e.cluster.namespaces import CLUSTER_ADDRESS, HOST_ADDRESS, INTERFACE

RUNTIME_DIR = node.RUNTIME_DIR
_STATE = RUNTIME_DIR / "state"
_RESTART_DELAY_S = 1.0
API_PORT = 6443


def layout(state: Path, programs: Path) -> control_plane.Layout:
    """The control plane's layout: ``state`` and ``programs`` as seen by whoever asks (host or cluster)."""
    return control_plane.Layout(state, programs, CLUSTER_ADDRESS, API_PORT, 2379, 2380)


def main(state: Path, programs: Path) -> None:
    """Never returns."""
    _prepare_mounts(state, programs)
    _prepare_network()
    _raise_file_limit()
    inside = layout(_STATE, RUNTIME_DIR / "bin")
    parts: dict[str, list[str]] = {
        "etcd": control_plane.etcd_argv(inside),
        "containerd": node.containerd_argv(),
        "kube-apiserver": control_plane.apiserver_argv(inside, bind="0.0.0.0"),  # noqa: S104
    }
    running = {_start(name, argv): name for name, argv in parts.items()}
    while not control_plane.is_ready(inside.server, inside.pki / "ca.crt"):
        _restart_ended(running, parts, os.WNOHANG)
        time.sleep(0.1)
    late: dict[str, list[str]] = {
        "kube-controller-manager": control_plane.controller_manager_argv(inside),
        "kube-scheduler": control_plane.scheduler_argv(inside),
        "kubelet": node.kubelet_argv(CLUSTER_ADDRESS),
        "kube-proxy": node.kube_proxy_argv(),
    }
    parts.update(late)
    running.update({_start(name, argv): name for name, argv in late.items()})
    while True:
        _restart_ended(running, parts, 0)


def _prepare_mounts(state: Path, programs: Path) -> None:
    """Give the cluster a /run, /var/lib and /var/log of its own; the rest of the host's files stay visible.

    The new /run is put together elsewhere first, since the state may itself live below /run or /var.
    """
    staging = state / "run"
    staging.mkdir(exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "poolkeeper", staging)
    short = staging / RUNTIME_DIR.name
    for source, name in ((state, "state"), (programs, "bin")):
        (short / name).mkdir(parents=True)
        _run("mount", "--bind", source, short / name)
    (state / "log").mkdir(exist_ok=True)
    _run("mount", "--bind", state / "hosts", "/etc/hosts")
    _run("mount", "--rbind", staging, "/run")
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "poolkeeper", "/var/lib")
    _run("mount", "--bind", _STATE / "log", "/var/log")
    # Last: kubelet hands mounts on to containers, so what it mounts must spread from here on.
    _run("mount", "--make-rshared", "/")
    os.chdir("/")


def _prepare_network() -> None:
    """Wait for our end of the pair that the host makes, and route everything through it."""
    deadline = time.monotonic() + 20
    # /sys still shows the host's interfaces, so ask the kernel.
    while subprocess.run(["ip", "link", "show", INTERFACE], capture_output=True).returncode != 0:
        if time.monotonic() > deadline:
            raise SystemExit(f"the interface {INTERFACE} did not arrive")
        time.sleep(0.02)
    _run("hostname", node.NODE_NAME)
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "address", "add", f"{CLUSTER_ADDRESS}/30", "dev", INTERFACE)
    _run("ip", "link", "set", INTERFACE, "up")
    _run("ip", "route", "add", "default", "via", HOST_ADDRESS)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _raise_file_limit() -> None:
    """Containers inherit containerd's limit: hand on all that this machine allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _start(name: str, argv: list[str]) -> int:
    # Not subprocess.Popen: it would collect ended processes behind our back.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    log = (os.POSIX_SPAWN_OPEN, 1, f"/var/log/{name}.log", flags, 0o644)
    return os.posix_spawnp(argv[0], argv, os.environ, file_actions=[log, (os.POSIX_SPAWN_DUP2, 1, 2)])


def _restart_ended(running: dict[int, str], parts: dict[str, list[str]], flags: int) -> None:
    """Collect ended processes (with flags 0: wait for one); a part of ours that ended is started again."""
    pid, status = os.waitpid(-1, flags)
    name = running.pop(pid, None)
    if name is None:
        return
    print(f"{name} ended with {os.waitstatus_to_exitcode(status)}; starting it again", flush=True)
    time.sleep(_RESTART_DELAY_S)
    running[_start(name, parts[name])] = name


def _run(*argv: str | Path) -> None:
    subprocess.run([str(word) for word in argv], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
