"""kind, for machines with a Docker engine: thin, since kind does the work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster import binaries
from e2e.cluster.adapters import Image, docker_engine_answers
from e2e.cluster.paths import CLUSTER_DIR, KUBECONFIG
from e2e.cluster.shell import ClusterError, run, run_long, say

NAME = "poolkeeper"
NODE = f"{NAME}-control-plane"


def config() -> str:
    """A kind configuration: one node that takes as many pods as the local cluster's (JSON is YAML)."""
    return json.dumps(
        {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "nodes": [{"role": "control-plane"}],
        },
        indent=2,
    )


def create_argv(config_file: Path, kubeconfig: Path) -> list[str]:
    files = ["--config", str(config_file), "--kubeconfig", str(kubeconfig)]
    return ["create", "cluster", "--name", NAME, *files, "--wait", "120s"]


def delete_argv(kubeconfig: Path) -> list[str]:
    return ["delete", "cluster", "--name", NAME, "--kubeconfig", str(kubeconfig)]


def load_argv(archive: Path) -> list[str]:
    return ["load", "image-archive", str(archive), "--name", NAME]


def list_images_argv() -> list[str]:
    return ["docker", "exec", NODE, "ctr", "-n", "k8s.io", "images", "list", "-q"]


class KindCluster:
    """A kind cluster of our own name; others on the same engine are left alone."""

    def up(self) -> None:
        if not docker_engine_answers():
            raise ClusterError(
                "kind needs a Docker engine and none answers: start it or unset POOLKEEPER_CLUSTER"
            )
        binaries.link_user_tools()
        if self.status() is None:
            say(f"the kind cluster is up; kubeconfig: {KUBECONFIG}")
            return
        self.down()
        CLUSTER_DIR.mkdir(exist_ok=True)
        config_file = CLUSTER_DIR / "kind.json"
        config_file.write_text(config())
        argv = create_argv(config_file, KUBECONFIG)
        run_long([_kind(), *argv], what="kind create cluster", log=CLUSTER_DIR / "kind.log", timeout=900)
        say(f"the kind cluster is up; kubeconfig: {KUBECONFIG}")

    def down(self) -> None:
        run([_kind(), *delete_argv(KUBECONFIG)], timeout=120)
        KUBECONFIG.unlink(missing_ok=True)

    def status(self) -> str | None:
        if NAME not in run([_kind(), "get", "clusters"]).split():
            return "there is no kind cluster of this name"
        run([_kind(), "export", "kubeconfig", "--name", NAME, "--kubeconfig", str(KUBECONFIG)])
        try:
            run([binaries.location("kubectl"), "--kubeconfig", KUBECONFIG, "get", "--raw=/readyz"], timeout=15)
        except ClusterError as error:
            return f"its API server does not answer: {error}"
        return None

    def load(self, images: Sequence[Image]) -> list[str]:
        present = {name.partition("/")[2] for name in run(list_images_argv()).split()}
        absent = [image for image in images if image.reference not in present]
        for image in absent:
            run([_kind(), *load_argv(image.archive)], timeout=300)
            say(f"loaded {image.reference}")
        return [image.reference for image in absent]


def _kind() -> Path:
    return binaries.ensure(["kind"])["kind"]
