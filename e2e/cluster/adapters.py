"""The three ways to a cluster behind one small interface, and the choice between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from e2e.cluster.shell import ClusterError

VARIABLE = "POOLKEEPER_CLUSTER"


@dataclass(frozen=True)
class Image:
    """An image to load: its reference and the archive that holds it."""

    reference: str
    archive: Path


class Cluster(Protocol):
    """What everything above needs: a kubeconfig at ``paths.KUBECONFIG`` and a way to load images."""

    def up(self) -> None:
        """Make the cluster ready for use; quick if it already is."""

    def down(self) -> None:
        """Take the cluster away, whole, whatever state it is in."""

    def status(self) -> str | None:
        """None if the cluster is ready for use, otherwise why not."""

    def load(self, images: Sequence[Image]) -> list[str]:
        """Bring into the cluster what it does not have yet; returns the references that were brought."""


def choose() -> Cluster:
    """The adapter that $POOLKEEPER_CLUSTER names or, without it, the one that this machine can run."""
    from e2e.cluster.existing import ExistingCluster
    from e2e.cluster.kind import KindCluster
    from e2e.cluster.local import LocalCluster

    name = os.environ.get(VARIABLE) or default_name(
        docker=docker_engine_answers(), linux=sys.platform == "linux", root=os.geteuid() == 0
    )
    clusters: dict[str, Cluster] = {
        "local": LocalCluster(),
        "kind": KindCluster(),
        "existing": ExistingCluster(),
    }
    if name not in clusters:
        raise ClusterError(f"{VARIABLE}={name} is not known; use one of {', '.join(clusters)}")
    return clusters[name]


def default_name(*, docker: bool, linux: bool, root: bool) -> str:
    """kind where a Docker engine answers, else our own cluster, which needs root on Linux."""
    if docker:
        return "kind"
    if linux and root:
        return "local"
    raise ClusterError(
        "no cluster can be made here: start a Docker engine (then kind is used), or run as root on Linux, "
        f"or set {VARIABLE}=existing and KUBECONFIG to a cluster of yours"
    )


def docker_engine_answers() -> bool:
    """Whether a Docker engine is there: the docker program alone says nothing."""
    if shutil.which("docker") is None:
        return False
    try:
        asked = subprocess.run(["docker", "version"], capture_output=True, timeout=10)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0
