"""The programs of the cluster, built from pinned Go modules (``gomod/``) and kept in the user's cache.

The pins are the checked-in go.mod and go.sum files; nothing is fetched that they do not name.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.paths import BIN_DIR, cache_dir, lock
from e2e.cluster.shell import ClusterError, run, run_long, say

GOMOD = Path(__file__).parent / "gomod"
OLDEST_GO = (1, 21)  # from 1.21 on, go fetches the toolchain that a go.mod asks for by itself


@dataclass(frozen=True)
class Program:
    """A program: the module directory under ``gomod/`` that pins it, and the package to build there."""

    module: str
    package: str


PROGRAMS: Mapping[str, Program] = {
    **{
        name: Program("kubernetes", f"k8s.io/kubernetes/cmd/{name}")
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
            "kubelet",
            "kubectl",
        )
    },
    "helm": Program("tools", "helm.sh/helm/v3/cmd/helm"),
    "kind": Program("tools", "sigs.k8s.io/kind"),
    "coredns": Program("coredns", "."),
    "pause": Program("pause", "."),
}
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
NODE = ("kubelet", "kube-proxy", "coredns", "pause")
USER_TOOLS = ("kubectl", "helm")


def pinned_version(module: str, dependency: str) -> str:
    """The release of ``dependency`` that ``gomod/<module>/go.mod`` pins, such as v1.34.4."""
    path = GOMOD / module / "go.mod"
    found = re.search(rf"{re.escape(dependency)} (v\d+\.\d+\.\d+)", path.read_text())
    if found is None:
        raise ClusterError(f"{path} names no release of {dependency}")
    return found[1]


def kubernetes_version() -> str:
    """The pinned Kubernetes release."""
    return pinned_version("kubernetes", "k8s.io/kubernetes")


def link_flags(module: str) -> str:
    """Flags for Go's linker: without them Kubernetes says it is v0.0.0 and Helm renders for an old one."""
    major, minor, _ = kubernetes_version().removeprefix("v").split(".")
    values: dict[str, str] = {}
    if module == "kubernetes":
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            values[f"{package}.gitVersion"] = kubernetes_version()
            values[f"{package}.gitMajor"] = major
            values[f"{package}.gitMinor"] = minor
            values[f"{package}.gitTreeState"] = "clean"
    elif module == "tools":
        helm = "helm.sh/helm/v3"
        values[f"{helm}/internal/version.version"] = pinned_version(module, helm)
        for package in (f"{helm}/pkg/chartutil", f"{helm}/pkg/lint/rules"):
            values[f"{package}.k8sVersionMajor"] = major
            values[f"{package}.k8sVersionMinor"] = minor
    return " ".join(["-s -w", *(f"-X {name}={value}" for name, value in values.items())])


def module_key(module: str) -> str:
    """A hash of everything that decides what comes out of building ``module``."""
    digest = hashlib.sha256(f"{link_flags(module)} {platform.machine()}".encode())
    for path in sorted((GOMOD / module).iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def location(name: str) -> Path:
    """Where the built program is, or will be."""
    module = PROGRAMS[name].module
    return cache_dir() / "bin" / f"{module}-{module_key(module)}" / name


def ensure(names: Iterable[str]) -> dict[str, Path]:
    """Build what is missing of ``names`` and return where each is. Minutes the first time, nothing later."""
    wanted = list(dict.fromkeys(names))
    if any(not location(name).exists() for name in wanted):
        with lock("binaries"):
            for module in dict.fromkeys(PROGRAMS[name].module for name in wanted):
                missing = [n for n in wanted if PROGRAMS[n].module == module and not location(n).exists()]
                if missing:
                    _build(module, missing)
    return {name: location(name) for name in wanted}


def link_user_tools(names: Iterable[str] = USER_TOOLS) -> None:
    """Put kubectl and helm on a path that does not change: .cluster/bin."""
    BIN_DIR.mkdir(parents=True, exist_ok=True)
    for name, target in ensure(names).items():
        link = BIN_DIR / name
        if link.is_symlink() and link.readlink() == target:
            continue
        fresh = BIN_DIR / f".{name}.{os.getpid()}"
        fresh.symlink_to(target)
        fresh.replace(link)


def _build(module: str, names: list[str]) -> None:
    _require_go()
    target = location(names[0]).parent
    scratch = target.with_name(target.name + ".building")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    what = f"building {', '.join(names)}"
    say(f"{what} (once; kept in {target.parent})")
    # `-o directory/` names each program after its package's last element; for "." that is the module's.
    run_long(
        ["go", "build", "-trimpath", "-ldflags", link_flags(module), "-o", f"{scratch}/"]
        + [PROGRAMS[name].package for name in names],
        what=what,
        log=cache_dir() / "logs" / f"go-{module}.log",
        cwd=GOMOD / module,
        # No C compiler, and no tie to this machine's C library.
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"},
        timeout=3600,
    )
    target.mkdir(exist_ok=True)
    for name in names:
        (scratch / name).replace(target / name)
    shutil.rmtree(scratch)


def _require_go() -> None:
    if shutil.which("go") is None:
        raise ClusterError(
            f"Go is not installed, and the cluster is built from Go modules: "
            f"install Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer and put it on the PATH"
        )
    found = re.search(r"go(\d+)\.(\d+)", run(["go", "version"]))
    if found is not None and (int(found[1]), int(found[2])) < OLDEST_GO:
        raise ClusterError(
            f"Go {found[1]}.{found[2]} is too old to build Kubernetes {kubernetes_version()}: "
            f"install Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer and put it on the PATH"
        )
