"""A primary that moves: its Service leads to another PostgreSQL, and the poolers follow without a restart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from e2e import install, kube
from e2e.install import NAMESPACE, RELEASE
from e2e.kube import kubectl
from tests.e2e import postgres
from tests.e2e.client import Agent, Load, Session
from tests.e2e.kit import Place, Server, timed, wait_until

PASSWORD = "superuser"
SELECTOR = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=operator"
OLD, NEW = "pg-old", "pg-new"
POOLED = "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name LIKE '%/database'"


@pytest.fixture
def servers(place: Place, agent: Agent) -> dict[str, Server]:
    """Two servers, each also under a name of its own."""
    hosts = {name: postgres.start(place.data, PASSWORD, name=name) for name in (OLD, NEW)}
    place.write_owner(PASSWORD, user="postgres")
    for name in hosts:
        postgres.wait(place.data, name)
    return {name: Server(agent, host, PASSWORD) for name, host in hosts.items()}


def primary(place: Place, **spec: Any) -> str:
    """The Service that the PooledDatabase names; it leads to the old server. Returns its host name."""
    body = postgres.service(place.data, "primary", OLD)
    kube.apply(json.dumps({**body, "spec": {**body["spec"], **spec}}))
    return f"primary.{place.data}.svc"


def serve(place: Place, host: str) -> str:
    spec = place.spec()
    spec["upstream"] |= {"host": host, "database": "postgres"}
    return place.serve(spec)


def switch_over(place: Place) -> None:
    change = json.dumps({"spec": {"selector": {"app": NEW}}})
    kubectl("-n", place.data, "patch", "service", "primary", "--type=merge", "-p", change)


def address(place: Place, name: str) -> str:
    [pod] = kube.items("pods", place.data, f"app={name}")
    return str(pod["status"]["podIP"])


def where(app: Session) -> str:
    """The address of the server that answers; behind a Service it is the pod's all the same."""
    return app.execute("SELECT host(inet_server_addr()) AS address")[0]["address"]


def moved(place: Place) -> list[str]:
    events = kube.items("events", place.data)
    return [str(item["message"]) for item in events if item["reason"] == "UpstreamMoved"]


def endpoints(place: Place) -> list[str]:
    found: list[str] = place.resource()["status"].get("upstream", {}).get("endpoints", [])
    return found


@pytest.mark.parametrize(("headless", "within"), [(False, 5.0), (True, 20.0)], ids=["cluster-ip", "headless"])
def test_switchover_behind_a_service_moves_every_connection_without_a_failure(
    place: Place, agent: Agent, servers: dict[str, Server], headless: bool, within: float
) -> None:
    """A headless Service's new address reaches the poolers as fast as the cluster's DNS forgets the old one."""
    url = serve(place, primary(place, **({"clusterIP": "None"} if headless else {})))
    pods = place.identities()
    old, new = address(place, OLD), address(place, NEW)
    wait_until(lambda: endpoints(place) == [old], 10, "the old primary in the status")
    with Session(agent, url) as app, Load(agent, url, workers=6) as load:
        assert where(app) == old
        switch_over(place)
        with timed("the app is answered by the new primary", at_most=within):
            wait_until(lambda: where(app) == new, 30, "an answer from the new primary")
        wait_until(left(servers[OLD]), 15, "every connection to leave the old primary")
        load.more(50)
        assert where(app) == new
    assert load.figures["failed"] == 0, load.figures
    wait_until(lambda: endpoints(place) == [new], 40, "the new primary in the status")
    assert any(f"endpoint {old} became {new}" in message for message in moved(place)), moved(place)
    assert place.identities() == pods
    place.wait_ready()


@pytest.fixture
def operator() -> Iterator[Callable[[int], None]]:
    """Scales the operator; it has its two pods again after the test."""

    def scale(replicas: int) -> None:
        kubectl("-n", NAMESPACE, "scale", f"deployment/{RELEASE}", f"--replicas={replicas}")
        if replicas == 0:
            wait_until(lambda: not kube.items("pods", NAMESPACE, SELECTOR), 60, "no operator pods")

    yield scale
    scale(2)
    install.wait_for_rollout()


def test_switchover_while_the_operator_is_down_is_noticed_at_its_start(
    place: Place, agent: Agent, servers: dict[str, Server], operator: Callable[[int], None]
) -> None:
    url = serve(place, primary(place))
    old, new = address(place, OLD), address(place, NEW)
    wait_until(lambda: endpoints(place) == [old], 10, "the old primary in the status")
    with Session(agent, url) as app:
        assert where(app) == old
        operator(0)
        switch_over(place)
        wait_until(lambda: leads_to(place) == [new], 15, "the endpoints to change")
        assert where(app) == old
        operator(2)
        wait_until(lambda: where(app) == new, 30, "an answer from the new primary")
    wait_until(lambda: endpoints(place) == [new], 20, "the new primary in the status")


def left(server: Server) -> Callable[[], bool]:
    return lambda: server.run(POOLED) == [{"n": "0"}]


def leads_to(place: Place) -> list[str]:
    slices = kube.items("endpointslices", place.data, "kubernetes.io/service-name=primary")
    return [address for item in slices for end in item.get("endpoints") or () for address in end["addresses"]]
