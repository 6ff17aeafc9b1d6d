"""A wedge under a running operator: a real pooler, and a relay before a real PostgreSQL that loses an answer.
The condition DataPath tells it, the one client gets an error, and nothing else happens."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tests.apiserver.operator.pooler_pod import Network, PoolerPod, WaitingPod
from tests.apiserver.operator.site import Lane, Site, eventually, path
from tests.apiserver.operator.test_operator_renewal import Place
from tests.pgbouncer.processes import Postgres, postgres
from tests.pgbouncer.relay import LOSE_ANSWER, Relay, relay

NOTICED_SECONDS = 15.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("upstream")) as made:
        made.create_role("shop_owner", "password")
        made.create_database("shop")
        yield made


@pytest.fixture
def place(site: Site, lane: Lane, server: Postgres, tmp_path: Path) -> Iterator[Place]:
    with relay(server.host, server.port) as way:
        made = Place(lane, site.operator(lane.namespaces).start(), replace(server, port=way.port), tmp_path)
        with made.pod.pgbouncer():
            eventually(made.answers, 20)
            lane.expect("DataPath", "True", "Working", seconds=20)
            yield made
    assert "Traceback" not in made.operator.said(), made.operator.said()[-5000:]


def loses_an_answer(pod: PoolerPod, errors: list[str]) -> None:
    with contextlib.closing(pod.connect()) as client:
        try:
            client.execute(b"SELECT '" + LOSE_ANSWER + b"'")
        except psycopg.Error as error:
            errors.append(str(error))


def test_a_lost_answer_is_told_within_15_seconds_and_ends_that_connection_alone(place: Place) -> None:
    errors: list[str] = []
    losing = threading.Thread(target=loses_an_answer, args=(place.pod, errors))
    with place.pod.connect() as stays:
        stays.execute("BEGIN")
        began = time.monotonic()
        losing.start()
        while place.lane.condition("DataPath")["status"] != "False":
            assert time.monotonic() - began < NOTICED_SECONDS
            assert place.answers()
            time.sleep(0.2)
        noticed = time.monotonic() - began
        losing.join()
        print(f"wedge_noticed_s {noticed:.1f}: {errors}")
        assert len(errors) == 1
        stays.execute("COMMIT")
    message = place.lane.expect("DataPath", "False", "ServerConnectionStuck")
    assert f"pod {place.pod.name}: 1 server connection(s) of consumer {place.lane.web}/database" in message
    eventually(lambda: place.told("ServerConnectionStuck") != [], 5)
    secret = place.lane.secret(place.lane.web, "database")
    assert secret is not None
    assert secret["PGPASSWORD"] not in place.operator.said()
    time.sleep(3)
    assert place.operator.said().count("of a stuck connection") == 1


class Pair:
    """A PooledDatabase with two pods, each with an address of its own: the way from one alone can die."""

    def __init__(self, lane: Lane, server: Postgres, way: Relay, directory: Path) -> None:
        server.create_role("shop_owner", "password")
        server.create_database("shop")
        lane.put_source(username="shop_owner", password="password")
        host = {"host": server.host, "port": way.port, "database": "shop"}
        upstream = {**host, "credentialsSecretRef": {"name": "shop-owner"}, "tls": {"mode": "disable"}}
        lane.apply(upstream=upstream, consumers=[{"namespace": lane.web}], pooler={"replicas": 2})
        lane.synced(1, seconds=30)
        self.lane, self.way = lane, way
        self.pods = [WaitingPod(lane, number, directory / str(number)) for number in (1, 2)]

    def allow_evictions(self) -> None:
        """What the disruption controller does, which doesn't run here."""
        budget = self.lane.get("PodDisruptionBudget", "shop-pooler")
        status = {"observedGeneration": budget["metadata"]["generation"], "disruptionsAllowed": 1}
        status |= {"currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2}
        place = path("PodDisruptionBudget", self.lane.data, "shop-pooler", "status")
        self.lane.api.merge(place, {"status": status})

    def staying(self) -> list[str]:
        """Pods that were not evicted. (One without a node goes at once.)"""
        pods = self.lane.api.get(path("Pod", self.lane.data))["items"]
        return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def answers(pod: PoolerPod) -> bool:
    try:
        with pod.connect() as client:
            return client.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def test_a_pod_through_which_nothing_gets_is_told_and_retired_and_the_other_one_never(
    site: Site, lane: Lane, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        (tmp_path / "server").mkdir()
        own = stack.enter_context(Network.postgres(tmp_path / "server"))
        way = stack.enter_context(relay(own.host, own.port, own.host))
        operator = site.operator(lane.namespaces).start()
        pair = Pair(lane, own, way, tmp_path)
        for pod in pair.pods:
            stack.enter_context(pod.pgbouncer())
        for pod in pair.pods:
            eventually(lambda pod=pod: answers(pod), 30)
            stack.enter_context(pod.connect())
        pair.allow_evictions()
        eventually(lambda: lane.condition("DataPath")["status"] == "True", 20)
        time.sleep(6)
        began = time.monotonic()
        way.dead_from.add(pair.pods[0].address)
        message = lane.expect("DataPath", "False", "ProbeUnanswered", seconds=NOTICED_SECONDS)
        print(f"probe unanswered after {time.monotonic() - began:.1f} s: {message}")
        assert f"pod {pair.pods[0].name}:" in message
        assert len(pair.staying()) == 2
        eventually(lambda: pair.staying() == [pair.pods[1].name], 45, every=0.5)
        print(f"evicted after {time.monotonic() - began:.1f} s")
        eventually(lambda: any(event["reason"] == "PoolerRetired" for event in lane.events()), 5)
        assert answers(pair.pods[1])
        assert "Traceback" not in operator.said(), operator.said()[-5000:]
