"""What every test here stands on: a cluster with the chart installed (`make install`), a PostgreSQL, a client.

The operator always runs from the Helm chart, with in-cluster credentials, as at a user's.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e import kube
from e2e.cluster.pki import Authority
from e2e.cluster.shell import ClusterError
from e2e.images.catalog import recipe
from e2e.install import NAMESPACE, RELEASE
from e2e.kube import kubectl
from tests.e2e import postgres
from tests.e2e.client import Agent
from tests.e2e.kit import Place, Server, dsn, namespaces, restricted_pod

_RUN = secrets.token_hex(2)  # namespaces of an earlier run may still be on their way out
_SERVER = f"e2e-{_RUN}-pg"
_AGENT = f"e2e-agent-{_RUN}"
_CLEAN_UP_SECONDS = 120.0


@pytest.fixture(scope="session")
def installed() -> None:
    """The operator of this checkout, installed and ready."""
    try:
        deployment = kube.get("deployment", NAMESPACE, RELEASE)
    except ClusterError as error:
        pytest.fail(f"the cluster does not answer: {error}; run `make install`", pytrace=False)
    if deployment is None:
        pytest.fail("the operator is not installed; run `make install`", pytrace=False)
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    if image != recipe("operator").reference:
        pytest.fail(
            f"{image} is installed, and this checkout makes {recipe('operator').reference}; run `make install`",
            pytrace=False,
        )
    kubectl("-n", NAMESPACE, "rollout", "status", f"deployment/{RELEASE}", "--timeout=60s", timeout=70)


@pytest.fixture(scope="session")
def clean(installed: None) -> Iterator[None]:
    """Namespaces go when their test ends, but nobody waits for that before all tests are done."""
    selector = "poolkeeper-e2e=true"
    kubectl("delete", "namespaces", "-l", selector, "--wait=false")
    yield
    kubectl("delete", "namespaces", "-l", selector, "--wait=false")
    deadline = time.monotonic() + _CLEAN_UP_SECONDS
    while left := kubectl("get", "namespaces", "-l", selector, "-o", "name").split():
        assert time.monotonic() < deadline, f"{left} do not go away: is a finalizer stuck?"
        time.sleep(0.5)


@pytest.fixture(scope="session")
def agent(clean: None) -> Iterator[Agent]:
    """A database client in the cluster.

    It carries the operator's labels, so that the poolers' NetworkPolicies admit it where they are enforced.
    """
    metadata = {
        "namespace": NAMESPACE,
        "name": _AGENT,
        "labels": {
            "app.kubernetes.io/name": "poolkeeper",
            "app.kubernetes.io/component": "operator",
            "poolkeeper-e2e": "true",
        },
    }
    spec = restricted_pod(recipe("operator").reference, ["sleep", "infinity"])
    kube.apply(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
    kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", f"pod/{_AGENT}", "--timeout=60s", timeout=70)
    client = Agent(NAMESPACE, _AGENT)
    yield client
    client.close()
    kubectl("-n", NAMESPACE, "delete", "pod", "-l", "poolkeeper-e2e=true", "--wait=false")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The certificate authority of the PostgreSQL server."""
    directory: Path = tmp_path_factory.mktemp("pki")
    return Authority(directory, "authority")


@pytest.fixture(scope="session")
def server(agent: Agent, authority: Authority) -> Server:
    """One PostgreSQL for all tests, its certificate made out to its Service's name."""
    namespaces((_SERVER, {}))
    password = secrets.token_urlsafe(16)
    certificate = authority.issue("server", "pg", hosts=[f"DNS:pg.{_SERVER}.svc"])
    host = postgres.start(_SERVER, password, certificate)
    postgres.wait(_SERVER)
    # The Service's address works a moment after the pod is ready.
    agent.query_soon(dsn(host, "postgres", password, "postgres"), "SELECT 1", within=15)
    return Server(agent, host, password)


@pytest.fixture(scope="session")
def _numbers() -> Iterator[int]:
    return iter(range(1, 1000))


@pytest.fixture(scope="session")
def make_place(agent: Agent, server: Server, _numbers: Iterator[int]) -> Callable[..., Place]:
    """Makes a place: a role and a database, two namespaces of which the second accepts the first."""

    def make(role: str = "", password: str = "", at: Server = server) -> Place:
        number = next(_numbers)
        data, web = f"e2e-{_RUN}-{number}-data", f"e2e-{_RUN}-{number}-web"
        namespaces((data, {}), (web, {"poolkeeper.io/accept-from": data}))
        role = f"{role or 'shop'}_{number}"
        place = Place(agent, at, data, web, role, password or secrets.token_urlsafe(16), f"shop_{number}")
        at.create(place.role, place.password, place.database)
        place.write_owner(place.password)
        return place

    return make


@pytest.fixture
def new_place(make_place: Callable[..., Place]) -> Iterator[Callable[..., Place]]:
    """Makes places that are gone after the test."""
    with _disposable(make_place) as make:
        yield make


@pytest.fixture
def place(new_place: Callable[..., Place]) -> Place:
    """A place with nothing but the Secret with the credentials in it."""
    return new_place()


@pytest.fixture(scope="module")
def new_module_place(make_place: Callable[..., Place]) -> Iterator[Callable[..., Place]]:
    """Makes places that the tests of one module share."""
    with _disposable(make_place) as make:
        yield make


@pytest.fixture(scope="module")
def module_place(new_module_place: Callable[..., Place]) -> Place:
    """A place that the tests of one module share."""
    return new_module_place()


@contextmanager
def _disposable(make_place: Callable[..., Place]) -> Iterator[Callable[..., Place]]:
    made: list[str] = []

    def make(**arguments: Any) -> Place:
        place = make_place(**arguments)
        made.extend((place.data, place.web))
        return place

    yield make
    if made:
        kubectl("delete", "namespaces", *made, "--wait=false", "--ignore-not-found")
