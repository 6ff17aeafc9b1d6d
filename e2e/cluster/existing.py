"""Any cluster of the user's: its kubeconfig is taken as it is, its images get there by the user's command."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster import binaries
from e2e.cluster.adapters import Image
from e2e.cluster.paths import CLUSTER_DIR, KUBECONFIG
from e2e.cluster.shell import ClusterError, run, say

LOAD_VARIABLE = "POOLKEEPER_LOAD_COMMAND"


def flatten_argv(kubectl: Path) -> list[str]:
    """Prints the current context alone, with its certificates inside, so that the copy stands by itself."""
    return [str(kubectl), "config", "view", "--flatten", "--minify"]


def load_argv(command: str, archive: Path) -> list[str]:
    """The user's command with the archive's path where it says {}, or at its end."""
    words = shlex.split(command)
    if any("{}" in word for word in words):
        return [word.replace("{}", str(archive)) for word in words]
    return [*words, str(archive)]


class ExistingCluster:
    """The cluster of $KUBECONFIG. It is never made or removed here, and only tests write to it."""

    def up(self) -> None:
        source = os.environ.get("KUBECONFIG", "")
        if source and Path(source).resolve() == KUBECONFIG.resolve():
            raise ClusterError(f"KUBECONFIG is {KUBECONFIG}, which this command writes: name your own file")
        binaries.link_user_tools()
        CLUSTER_DIR.mkdir(exist_ok=True)
        KUBECONFIG.touch(mode=0o600)
        KUBECONFIG.write_text(run(flatten_argv(binaries.location("kubectl"))))
        problem = self.status()
        if problem is not None:
            raise ClusterError(
                f"the cluster of KUBECONFIG={source or '~/.kube/config'} is not usable: {problem}"
            )
        say(f"using the cluster of {source or '~/.kube/config'}; copy of its kubeconfig: {KUBECONFIG}")

    def down(self) -> None:
        KUBECONFIG.unlink(missing_ok=True)
        say("forgot the cluster; what runs in it was left as it is")

    def status(self) -> str | None:
        if not KUBECONFIG.exists():
            return "its kubeconfig was not taken yet; run `make cluster`"
        try:
            run([binaries.location("kubectl"), "--kubeconfig", KUBECONFIG, "get", "--raw=/readyz"], timeout=15)
        except ClusterError as error:
            return f"its API server does not answer: {error}"
        return None

    def load(self, images: Sequence[Image]) -> list[str]:
        command = os.environ.get(LOAD_VARIABLE)
        if not command:
            raise ClusterError(
                f"{LOAD_VARIABLE} is not set: name the command that brings an image archive into your cluster, "
                f"for example `minikube image load` or `k3s ctr images import` ({{}} stands for the archive)"
            )
        for image in images:
            run(load_argv(command, image.archive), timeout=600)
            say(f"loaded {image.reference}")
        return [image.reference for image in images]
