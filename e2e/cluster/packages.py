"""The Debian packages that the local cluster and the image builds need, installed where they are missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster.paths import cache_dir, lock
from e2e.cluster.shell import ClusterError, run_long, say

# What proves that a package is there -> its name.
CLUSTER_PACKAGES: Mapping[str, str] = {
    "containerd": "containerd",
    "runc": "runc",
    "etcd": "etcd-server",
    "iptables": "iptables",
    "nft": "nftables",
    "ip": "iproute2",
    "openssl": "openssl",
    "nsenter": "util-linux",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
}
CONTROL_PLANE_PACKAGES: Mapping[str, str] = {"etcd": "etcd-server", "openssl": "openssl"}
IMAGE_PACKAGES: Mapping[str, str] = {"debootstrap": "debootstrap", "unshare": "util-linux"}
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"  # not on everybody's PATH


def missing(needed: Mapping[str, str]) -> list[str]:
    """Names of the packages of ``needed`` that are not installed."""
    search = f"{os.environ.get('PATH', '')}:{_SBIN}"
    return sorted(
        {
            package
            for proof, package in needed.items()
            if not (Path(proof).exists() if proof.startswith("/") else shutil.which(proof, path=search))
        }
    )


def ensure(needed: Mapping[str, str]) -> None:
    """Install what is missing with apt-get. Raises ClusterError with the command to run where it can't."""
    absent = missing(needed)
    if not absent:
        return
    remedy = f"apt-get install --no-install-recommends {' '.join(absent)}"
    if shutil.which("apt-get") is None:
        raise ClusterError(f"{', '.join(absent)}: not installed, and there is no apt-get; install them")
    if os.geteuid() != 0:
        raise ClusterError(f"{', '.join(absent)}: not installed; run as root: {remedy}")
    say(f"installing Debian packages: {' '.join(absent)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with lock("apt"), _services_stay_off():
        for words in (["update"], ["install", "-y", "--no-install-recommends", *absent]):
            log = cache_dir() / "logs" / f"apt-{words[0]}.log"
            run_long(["apt-get", *words], what=f"apt-get {words[0]}", log=log, env=env)
    still = missing(needed)
    if still:
        raise ClusterError(f"{', '.join(still)}: still missing after {remedy}")


@contextmanager
def _services_stay_off() -> Iterator[None]:
    """Debian starts a package's services at once; we only want the programs (policy-rc.d is its own way)."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def use_system_path() -> None:
    """Make programs in the sbin directories found by name from here on."""
    path = os.environ.get("PATH", "")
    if not path.endswith(_SBIN):
        os.environ["PATH"] = f"{path}:{_SBIN}"
