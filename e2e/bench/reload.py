"""`reload`: an edit of spec.pooler.parameters, until the last of 10 pooler pods shows it on its console.

On the current cluster, with the operator that `make install` left there. The observer is a pod beside the
poolers: one connection to every console, asked in turn, so that it takes little from them.
"""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import time
from collections.abc import Iterator
from typing import Any

from kubernetes import client, config

from e2e import kube
from e2e.bench.figures import Figure, percentile
from e2e.cluster.paths import KUBECONFIG
from e2e.cluster.shell import ClusterError, say
from e2e.images.catalog import recipe
from e2e.install import NAMESPACE, RELEASE
from e2e.kube import kubectl
from tests.e2e import postgres
from tests.e2e.client import Agent
from tests.e2e.kit import Place, Server, dsn, namespaces, restricted_pod

PODS = 10
EDITS = 40
DATABASE_NAMESPACE, DATA, APPS = "bench-postgres", "bench-data", "bench-apps"
OBSERVER = "bench-observer"
PARAMETER = "default_pool_size"
LIMIT_SECONDS = 30.0
READY_SECONDS = 180.0


def run() -> list[Figure]:
    """Everything; takes about two minutes once the images are loaded."""
    image = _installed_image()
    _remove()
    try:
        with _observer(image) as agent:
            place = _place(agent)
            place.apply(place.spec(replicas=PODS, resources={"requests": {"cpu": "10m", "memory": "16Mi"}}))
            say(f"waiting for {PODS} pooler pods")
            place.wait_ready(READY_SECONDS)
            place.wait_settled(READY_SECONDS)
            took = _measure(place)
    finally:
        _remove()
    return [
        Figure("reload_p50_s", percentile(took, 50), "s", 0.8),
        Figure("reload_p99_s", percentile(took, 99), "s", 1.5),
        Figure("reload_max_s", max(took), "s"),
        Figure("reload_edits", len(took), f"edits over {PODS} pods"),
    ]


def _installed_image() -> str:
    """The operator's image, which has to be the one of this checkout."""
    deployment = kube.get("deployment", NAMESPACE, RELEASE)
    if deployment is None:
        raise ClusterError("the operator is not installed; run `make install`")
    image = str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])
    if image != recipe("operator").reference:
        raise ClusterError(f"{image} is installed, and this checkout makes another; run `make install`")
    return image


def _measure(place: Place) -> list[float]:
    """Seconds from just before each edit's request until the last console has shown it."""
    resources = client.CustomObjectsApi(config.new_client_from_config(str(KUBECONFIG)))
    before = place.identities()
    took = []
    with place.consoles() as consoles:
        names = [console.name for console in consoles]
        if len(names) != PODS:
            raise ClusterError(f"{len(names)} pooler pods instead of {PODS}")
        for number in range(EDITS):
            value = 21 + number
            # Not in step with anything that the cluster does every second.
            time.sleep(0.5 + random.random())  # noqa: S311
            shown = place.agent.start(
                "await_setting", sessions=names, name=PARAMETER, value=str(value), seconds=LIMIT_SECONDS
            )
            began = time.monotonic()
            _edit(resources, {PARAMETER: value})
            shown.result(2 * LIMIT_SECONDS)
            took.append(time.monotonic() - began)
    if place.identities() != before:
        raise ClusterError("pooler pods were restarted meanwhile")
    return took


def _edit(resources: client.CustomObjectsApi, parameters: dict[str, Any]) -> None:
    resources.patch_namespaced_custom_object(
        "poolkeeper.io",
        "v1alpha1",
        DATA,
        "pooleddatabases",
        "shop",
        {"spec": {"pooler": {"parameters": parameters}}},
    )


@contextlib.contextmanager
def _observer(image: str) -> Iterator[Agent]:
    """A database client in the cluster, with the operator's labels, so that the poolers admit it."""
    labels = {"app.kubernetes.io/name": "poolkeeper", "app.kubernetes.io/component": "operator"}
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": NAMESPACE, "name": OBSERVER, "labels": labels},
        "spec": restricted_pod(image, ["sleep", "infinity"]),
    }
    kube.apply(json.dumps(body))
    kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", f"pod/{OBSERVER}", "--timeout=60s", timeout=70)
    agent = Agent(NAMESPACE, OBSERVER)
    try:
        yield agent
    finally:
        agent.close()


def _place(agent: Agent) -> Place:
    """PostgreSQL with a role and a database, and the namespaces of the PooledDatabase and its consumer."""
    namespaces((DATABASE_NAMESPACE, {}), (DATA, {}), (APPS, {"poolkeeper.io/accept-from": DATA}))
    password = secrets.token_urlsafe(16)
    host = postgres.start(DATABASE_NAMESPACE, password)
    postgres.wait(DATABASE_NAMESPACE)
    agent.query_soon(dsn(host, "postgres", password, "postgres"), "SELECT 1", within=15)
    server = Server(agent, host, password)
    place = Place(agent, server, DATA, APPS, "shop", secrets.token_urlsafe(16), "shop")
    server.create(place.role, place.password, place.database)
    place.write_owner(place.password)
    return place


def _remove() -> None:
    """Take away what a run makes, or what one that was killed left behind."""
    kubectl("-n", DATA, "delete", "pooldb", "--all", "--ignore-not-found", "--timeout=60s", timeout=70)
    kubectl("-n", NAMESPACE, "delete", "pod", OBSERVER, "--ignore-not-found", timeout=70)
    words = ("delete", "namespaces", DATABASE_NAMESPACE, DATA, APPS, "--ignore-not-found", "--timeout=120s")
    kubectl(*words, timeout=130)
