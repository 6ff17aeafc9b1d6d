"""Planned pauses under a running operator: real poolers before a real PostgreSQL, in pods that only the API
server knows. The test does kubelet's part."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolkeeper.pgbouncer.configuration import INI
from tests.apiserver.operator.api_proxy import Answer
from tests.apiserver.operator.operator_process import Operator
from tests.apiserver.operator.pooler_pod import PoolerPod
from tests.apiserver.operator.site import Lane, Site, eventually
from tests.pgbouncer.processes import Postgres, initialised, postgres, serving

FEWER = 20
"""max_connections after a restart, instead of 60."""
MANY = 50
UNAVAILABLE = Answer(503, "ServiceUnavailable", "refused by the test")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("upstream")) as made:
        made.create_role("shop_owner", "password")
        made.create_database("shop")
        yield made


class Place:
    """A PooledDatabase with two poolers, and clients that ask each of them."""

    def __init__(self, lane: Lane, operator: Operator, server: Postgres, directory: Path) -> None:
        self.lane, self.operator, self.server = lane, operator, server
        lane.put_source(username="shop_owner", password="password")
        self.apply()
        lane.synced(1, seconds=20)
        self.pods = [PoolerPod(lane, number, directory / str(number)) for number in (1, 2)]

    def apply(self, **changes: Any) -> None:
        host = {"host": self.server.host, "port": self.server.port, "database": "shop"}
        upstream = {**host, "credentialsSecretRef": {"name": "shop-owner"}, "tls": {"mode": "disable"}}
        self.lane.apply(upstream=upstream, consumers=[{"namespace": self.lane.web}], **changes)

    def served(self) -> None:
        """Wait until every pooler has its share of the server's connections."""
        for pod in self.pods:
            eventually(lambda pod=pod: self._answers(pod), 20)

    def _answers(self, pod: PoolerPod) -> bool:
        try:
            return bool(self.ask(pod) == (1,))
        except psycopg.OperationalError:
            return False

    def ask(self, pod: PoolerPod) -> Any:
        with pod.connect() as client:
            return client.execute("SELECT 1").fetchone()

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.lane.resource()["status"].get("pause", {})
        return found

    def expect(self, status: str, reason: str, seconds: float = 10) -> str:
        return self.lane.expect("Paused", status, reason, seconds=seconds)

    def over(self) -> None:
        """Wait until nothing is said of a pause any more."""
        eventually(lambda: not self.status() and not self.lane.condition("Paused")["status"], 15)


@pytest.fixture
def place(site: Site, lane: Lane, server: Postgres, tmp_path: Path) -> Iterator[Place]:
    made = Place(lane, site.operator(lane.namespaces).start(), server, tmp_path)
    with ExitStack() as stack:
        for pod in made.pods:
            stack.enter_context(pod.pgbouncer())
        made.served()
        yield made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def waiting(pool: ThreadPoolExecutor, place: Place) -> list[Future[Any]]:
    """A client at each pooler, seen to wait."""
    asked = [pool.submit(place.ask, pod) for pod in place.pods]
    time.sleep(1)
    assert not any(task.done() for task in asked)
    return asked


def test_clients_wait_from_when_it_is_asked_for_until_it_is_taken_back(
    place: Place, pool: ThreadPoolExecutor
) -> None:
    place.apply(paused=True)
    message = place.expect("True", "Paused")
    assert "2 poolers" in message
    assert place.lane.condition("Ready")["reason"] != "Paused"
    asked = waiting(pool, place)
    assert place.status().keys() == {"since", "until"}
    time.sleep(1)
    before = place.lane.writes()
    time.sleep(3)
    assert [write for write in place.lane.writes()[len(before) :] if "pooleddatabases/status" in write] == []
    place.apply(paused=False)
    assert [task.result(5) for task in asked] == [(1,), (1,)]
    place.expect("False", "Resumed")
    place.over()
    assert [pod.commands().count("PAUSE") for pod in place.pods] == [1, 1]
    told = {event["reason"] for event in place.lane.events()}
    assert {"Paused", "Resuming"} <= told


def test_nothing_is_paused_that_the_status_does_not_record(place: Place, pool: ThreadPoolExecutor) -> None:
    place.operator.gate.fault = lambda call: UNAVAILABLE if call.path.endswith("/shop/status") else None
    place.apply(paused=True)
    time.sleep(3)
    assert [place.ask(pod) for pod in place.pods] == [(1,), (1,)]
    assert all("PAUSE" not in pod.commands() for pod in place.pods)
    place.operator.gate.fault = lambda call: None
    place.expect("True", "Paused", 20)
    asked = waiting(pool, place)
    place.apply(paused=False)
    assert [task.result(5) for task in asked] == [(1,), (1,)]


def test_an_operator_that_was_killed_leaves_a_pause_that_the_next_one_upholds(
    place: Place, pool: ThreadPoolExecutor
) -> None:
    place.apply(paused=True)
    place.expect("True", "Paused")
    recorded = place.status()
    place.operator.kill()
    place.operator.reap()
    asked = waiting(pool, place)
    place.operator.start()
    eventually(lambda: "every PooledDatabase is reconciled once" in place.operator.said(), 20)
    time.sleep(2)
    assert not any(task.done() for task in asked), "a new operator has ended it"
    assert place.status() == recorded
    place.apply(paused=False)
    assert [task.result(5) for task in asked] == [(1,), (1,)]
    place.over()


def test_a_pooler_that_restarts_is_paused_again_also_if_no_operator_ran_meanwhile(
    site: Site, lane: Lane, server: Postgres, tmp_path: Path
) -> None:
    place = Place(lane, site.operator(lane.namespaces).start(), server, tmp_path)
    one, two = place.pods
    with one.pgbouncer(), ThreadPoolExecutor(2) as pool:
        with two.pgbouncer():
            place.served()
            place.apply(paused=True)
            place.expect("True", "Paused", 20)
        assert "pooler-2" in place.expect("False", "Pausing", 20)
        with two.pgbouncer():
            place.expect("True", "Paused", 20)
            place.operator.kill()
            place.operator.reap()
        with two.pgbouncer():
            assert place.ask(two) == (1,), "while no operator runs a new process serves"
            place.operator.start()
            eventually(lambda: two.commands().count("PAUSE") == 3, 20)
            asked = waiting(pool, place)
            place.apply(paused=False)
            assert [task.result(5) for task in asked] == [(1,), (1,)]


def test_what_is_overdue_is_ended_by_the_next_operator(place: Place, pool: ThreadPoolExecutor) -> None:
    place.apply(paused=True, pauseTimeoutSeconds=12)
    place.expect("True", "Paused")
    place.operator.kill()
    place.operator.reap()
    asked = waiting(pool, place)
    time.sleep(12)
    assert not any(task.done() for task in asked), "the pause outlives who asked for it"
    place.operator.start()
    assert [task.result(20) for task in asked] == [(1,), (1,)]
    assert "set spec.paused to false" in place.expect("False", "TimedOut")
    assert place.status()["timedOut"] is True
    place.apply(paused=False)
    place.over()
    place.apply(paused=True)
    place.expect("True", "Paused")
    place.apply(paused=False)
    place.over()


def test_a_long_transaction_is_named_and_the_limit_lets_everybody_go_on(
    place: Place, pool: ThreadPoolExecutor
) -> None:
    with place.pods[0].connect() as long:
        long.execute("BEGIN")
        long.execute("SELECT 1")
        place.apply(paused=True, pauseTimeoutSeconds=15)
        begun = time.monotonic()
        message = place.expect("False", "Pausing", 10)
        eventually(lambda: f"{place.lane.web}/database" in place.lane.condition("Paused")["message"], 10)
        eventually(lambda: all("PAUSE" in pod.commands() for pod in place.pods), 10)
        asked = waiting(pool, place)
        assert [task.result(30) for task in asked] == [(1,), (1,)]
        assert time.monotonic() - begun > 13
        place.expect("False", "TimedOut")
        assert long.execute("SELECT 2").fetchone() == (2,)
        long.execute("COMMIT")
    assert "given up" in message
    assert ("Warning", "TimedOut") in {(event["type"], event["reason"]) for event in place.lane.events()}


def test_limits_on_waiting_are_raised_before_and_lowered_after(place: Place, pool: ThreadPoolExecutor) -> None:
    place.apply(paused=True, pauseTimeoutSeconds=300, pooler={"parameters": {"query_wait_timeout": 3}})
    place.expect("True", "Paused", 20)
    for pod in place.pods:
        assert "PAUSE" in pod.commands()[pod.commands().index("RELOAD") :]
    assert "query_wait_timeout = 330\n" in (place.pods[0].place / INI).read_text()
    asked = waiting(pool, place)
    time.sleep(4)
    assert not any(task.done() for task in asked), "longer than the spec's own limit"
    place.apply(paused=False, pooler={"parameters": {"query_wait_timeout": 3}})
    assert [task.result(5) for task in asked] == [(1,), (1,)]
    place.over()
    eventually(lambda: "query_wait_timeout = 3\n" in (place.pods[0].place / INI).read_text(), 5)


def test_a_server_that_came_back_smaller_refuses_nobody(site: Site, lane: Lane, tmp_path: Path) -> None:
    """As many clients wait as the poolers could serve before. They go on once the caps fit the server."""
    (tmp_path / "upstream").mkdir()
    cluster = initialised(tmp_path / "upstream")
    with ExitStack() as stack, ThreadPoolExecutor(MANY) as pool:
        with serving(cluster) as server:
            server.create_role("shop_owner", "password")
            server.create_database("shop")
            place = Place(lane, site.operator(lane.namespaces).start(), server, tmp_path)
            for pod in place.pods:
                stack.enter_context(pod.pgbouncer())
            place.served()
            place.apply(paused=True)
            place.expect("True", "Paused", 20)
            server.execute(f"ALTER SYSTEM SET max_connections = {FEWER}")
        asked = [pool.submit(hold, place.pods[number % 2]) for number in range(MANY)]
        with serving(cluster):
            place.apply(paused=False)
            assert [task.result(20) for task in asked] == [None] * MANY
    log = (tmp_path / "upstream/postgres.log").read_text()
    assert "FATAL:  remaining connection slots" not in log
    assert "FATAL:  sorry, too many clients" not in log


def hold(pod: PoolerPod) -> None:
    """One transaction that keeps its connection to the server for a moment."""
    with pod.connect() as client:
        client.execute("SELECT pg_sleep(0.2)")


def test_deletion_lets_clients_go_on(place: Place, pool: ThreadPoolExecutor) -> None:
    place.apply(paused=True)
    place.expect("True", "Paused")
    asked = waiting(pool, place)
    place.lane.delete()
    assert [task.result(10) for task in asked] == [(1,), (1,)]
    for pod in place.pods:
        place.lane.remove_pod(pod.name)
