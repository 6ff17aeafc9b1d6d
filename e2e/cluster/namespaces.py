"""The cluster's isolation: one set of kernel namespaces, one cable to the host, and their complete removal.

Nothing is remembered between commands: what runs is found by looking at the processes, so that no stale
file can mislead, whatever was killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from e2e.cluster.node import CGROUP
from e2e.cluster.paths import ROOT
from e2e.cluster.shell import ClusterError, run

HOST_ADDRESS = "172.30.0.1"
CLUSTER_ADDRESS = "172.30.0.2"
HOST_INTERFACE = "poolkeeper0"
INTERFACE = "eth0"
_SUPERVISOR = "e2e.cluster.supervisor"
_END_TIMEOUT_S = 20.0
_CGROUPS = Path("/sys/fs/cgroup")


def start(state: Path, programs: Path) -> int:
    """Start the supervisor in namespaces of its own and connect them. Returns its process id on the host."""
    _make_cgroups()
    own = ["--net", "--mount", "--pid", "--uts", "--ipc"]
    with (state / "supervisor.log").open("ab") as log:
        outer = subprocess.Popen(
            [
                "unshare",
                *own,
                "--fork",
                "--kill-child",
                "--mount-proc",
                sys.executable,
                "-m",
                _SUPERVISOR,
                str(state),
                str(programs),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            start_new_session=True,  # the terminal's Ctrl-C is not for the cluster
        )
    deadline = time.monotonic() + 10
    while (pid := find(state)) is None:
        if outer.poll() is not None or time.monotonic() > deadline:
            words = (state / "supervisor.log").read_text()[-500:]
            raise ClusterError(f"the cluster's namespaces could not be made; root is needed: {words}")
        time.sleep(0.02)
    run(["ip", "link", "add", HOST_INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", str(pid)])
    run(["ip", "address", "add", f"{HOST_ADDRESS}/30", "dev", HOST_INTERFACE])
    run(["ip", "link", "set", HOST_INTERFACE, "up"])
    return pid


def find(state: Path | None = None) -> int | None:
    """The supervisor's process id on the host, if it runs (``state`` None: anybody's cluster)."""
    return next((pid for pid, argv in _supervisors(state) if "unshare" not in argv[0]), None)


def owner() -> Path | None:
    """The state directory of the cluster that runs on this machine, whichever checkout it belongs to."""
    return next((Path(argv[argv.index(_SUPERVISOR) + 1]) for _, argv in _supervisors(None)), None)


def enter_argv(pid: int, argv: Sequence[str], *, mounts: bool = False) -> list[str]:
    """The command line that runs ``argv`` in the cluster's network (``mounts``: and file system)."""
    return ["nsenter", "--target", str(pid), "--net", *(["--mount"] if mounts else []), "--", *argv]


def destroy(state: Path | None = None) -> None:
    """End every process of the cluster and take away what the kernel keeps: interface and cgroups.

    Mounts, routes and packet filter rules exist in the namespaces only and go with the last process.
    """
    deadline = time.monotonic() + _END_TIMEOUT_S
    while found := [pid for pid, _ in _supervisors(state)]:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise ClusterError(f"processes {found} do not end; look at them with ps and run `down` again")
        time.sleep(0.05)
    if find() is None:
        subprocess.run(["ip", "link", "delete", HOST_INTERFACE], capture_output=True)
        _remove_cgroups(deadline)


def leftovers() -> list[str]:
    """What is left of a cluster on this machine, in words; empty after a complete ``destroy``."""
    found = [f"process {pid}" for pid, _ in _supervisors(None)]
    if Path(f"/sys/class/net/{HOST_INTERFACE}").exists():
        found.append(f"interface {HOST_INTERFACE}")
    return found + [f"cgroup {path}" for path in _cgroup_roots() if path.exists()]


def _supervisors(state: Path | None) -> Iterator[tuple[int, list[str]]]:
    """Process ids and command lines of supervisors and of the unshare processes around them."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended while we looked
        if _SUPERVISOR in argv[:-1] and (state is None or argv[argv.index(_SUPERVISOR) + 1] == str(state)):
            yield int(entry.name), argv


def _cgroup_roots() -> list[Path]:
    """Our tree in every hierarchy: one per controller with cgroup v1, a single one with v2."""
    name = CGROUP.removeprefix("/")
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS / name]
    # `cpu,cpuacct` and the like are reached by several names: the links are left out.
    return [entry / name for entry in _CGROUPS.iterdir() if entry.is_dir() and not entry.is_symlink()]


def _make_cgroups() -> None:
    for root in _cgroup_roots():
        if root.parent.name == "unified":
            continue
        root.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # With cgroup v1 a new cpuset has neither, and takes no process until it has both.
            if (root / setting).exists() and not (_CGROUPS / "cgroup.controllers").exists():
                (root / setting).write_text((root.parent / setting).read_text())
    controllers = _CGROUPS / "cgroup.subtree_control"
    if controllers.exists():
        controllers.write_text("+cpu +cpuset +memory +pids")


def _remove_cgroups(deadline: float) -> None:
    """A cgroup can be removed once its last process is collected, which may take a moment."""
    for root in _cgroup_roots():
        while root.exists():
            for directory, _, _ in os.walk(root, topdown=False):
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()
            if root.exists():
                if time.monotonic() > deadline:
                    raise ClusterError(f"{root} is still in use; see its cgroup.procs and run `down` again")
                time.sleep(0.05)
