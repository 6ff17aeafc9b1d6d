"""A place on the current cluster for benchmarks: PostgreSQL, namespaces, a client beside the poolers."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator

from e2e import kube
from e2e.cluster.shell import ClusterError
from e2e.images.catalog import recipe
from e2e.install import NAMESPACE, RELEASE
from e2e.kube import kubectl
from tests.e2e import postgres
from tests.e2e.client import Agent
from tests.e2e.kit import Place, Server, dsn, namespaces, restricted_pod

DATABASE_NAMESPACE, DATA, APPS = "bench-postgres", "bench-data", "bench-apps"
OBSERVER = "bench-observer"


@contextlib.contextmanager
def site(max_connections: int = 200) -> Iterator[Place]:
    """A place without a PooledDatabase yet; gone afterwards. Needs the operator of this checkout."""
    image = _installed_image()
    _remove()
    try:
        with _observer(image) as agent:
            yield _place(agent, max_connections)
    finally:
        _remove()


def _installed_image() -> str:
    """The operator's image, which has to be the one of this checkout."""
    deployment = kube.get("deployment", NAMESPACE, RELEASE)
    if deployment is None:
        raise ClusterError("the operator is not installed; run `make install`")
    image = str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])
    if image != recipe("operator").reference:
        raise ClusterError(f"{image} is installed, and this checkout makes another; run `make install`")
    return image


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


def server(agent: Agent, max_connections: int, name: str = postgres.NAME) -> Server:
    """A PostgreSQL, as soon as it answers."""
    password = secrets.token_urlsafe(16)
    host = postgres.start(DATABASE_NAMESPACE, password, name=name, max_connections=max_connections)
    postgres.wait(DATABASE_NAMESPACE, name)
    agent.query_soon(dsn(host, "postgres", password, "postgres"), "SELECT 1", within=15)
    return Server(agent, host, password)


def _place(agent: Agent, max_connections: int) -> Place:
    """PostgreSQL with a role and a database, and the namespaces of the PooledDatabase and its consumer."""
    namespaces((DATABASE_NAMESPACE, {}), (DATA, {}), (APPS, {"poolkeeper.io/accept-from": DATA}))
    made = server(agent, max_connections)
    place = Place(agent, made, DATA, APPS, "shop", secrets.token_urlsafe(16), "shop")
    made.create(place.role, place.password, place.database)
    place.write_owner(place.password)
    return place


def _remove() -> None:
    """Take away what a run makes, or what one that was killed left behind."""
    kubectl("-n", DATA, "delete", "pooldb", "--all", "--ignore-not-found", "--timeout=60s", timeout=70)
    kubectl("-n", NAMESPACE, "delete", "pod", OBSERVER, "--ignore-not-found", timeout=70)
    words = ("delete", "namespaces", DATABASE_NAMESPACE, DATA, APPS, "--ignore-not-found", "--timeout=120s")
    kubectl(*words, timeout=130)
