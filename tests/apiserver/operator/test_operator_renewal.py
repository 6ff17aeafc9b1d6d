"""Schema changes and the annotation poolkeeper.io/reconnect under a running operator: a real pooler before a
real PostgreSQL, in a pod that only the API server knows. The test does kubelet's part."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.apiserver.operator.operator_process import Operator
from tests.apiserver.operator.pooler_pod import PoolerPod, quiet
from tests.apiserver.operator.site import Lane, Site, eventually, path
from tests.pgbouncer.processes import Postgres, postgres

QUERY = "SELECT * FROM item WHERE id = %s"
STALE = "cached plan must not change result type"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("upstream")) as made:
        made.create_role("shop_owner", "password")
        for database in ("shop", "other"):
            made.create_database(database)
            made.execute("CREATE TABLE item AS SELECT generate_series(1, 9) AS id", database)
            made.execute("GRANT SELECT ON item TO shop_owner", database)
        yield made


@dataclass
class Apps:
    """Apps that read by prepared statements. Every other one connects anew after an error, as a restarted
    process does; the rest stay connected."""

    pod: PoolerPod
    errors: list[tuple[float, str]] = field(default_factory=list)
    """With the time of each."""
    reads: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def at_work(self, apps: int = 4) -> Iterator[Apps]:
        threads = [threading.Thread(target=self._run, args=(number % 2 == 0,)) for number in range(apps)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _run(self, stays: bool) -> None:
        while not self._over.is_set():
            with self.pod.connect() as client:
                while not self._over.wait(0.005):
                    try:
                        client.execute(QUERY, (1,), prepare=True)
                        self.reads += 1
                    except psycopg.Error as error:
                        self.errors.append((time.monotonic(), str(error)))
                        self._over.wait(0.02)
                        if not stays:
                            break


class Place:
    """A PooledDatabase with one pooler."""

    def __init__(self, lane: Lane, operator: Operator, server: Postgres, directory: Path) -> None:
        self.lane, self.operator, self.server = lane, operator, server
        lane.put_source(username="shop_owner", password="password")
        self.apply("shop")
        lane.synced(1, seconds=20)
        self.pod = PoolerPod(lane, 1, directory / "1")

    def apply(self, name: str, database: str = "shop", **changes: Any) -> None:
        host = {"host": self.server.host, "port": self.server.port, "database": database}
        upstream = {**host, "credentialsSecretRef": {"name": "shop-owner"}, "tls": {"mode": "disable"}}
        self.lane.apply(name, upstream=upstream, consumers=[{"namespace": self.lane.web}], **changes)

    def answers(self) -> bool:
        try:
            with self.pod.connect() as client:
                return client.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False

    def ask(self, value: str | None) -> None:
        """As `kubectl annotate --overwrite` does."""
        patch = {"metadata": {"annotations": {"poolkeeper.io/reconnect": value}}}
        self.lane.api.merge(path("PooledDatabase", self.lane.data, "shop"), patch)

    def renewal(self) -> dict[str, str]:
        found: dict[str, str] = self.lane.resource().get("status", {}).get("renewal", {})
        return found

    def told(self, reason: str = "ServerConnectionsRenewed") -> list[str]:
        return [event["message"] for event in self.lane.events() if event["reason"] == reason]

    def backends(self) -> set[int]:
        """Of the poolers."""
        rows = self.server.execute(
            "SELECT pid FROM pg_stat_activity"
            " WHERE usename = 'shop_owner' AND application_name NOT LIKE 'poolkeeper%'"
        )
        return {pid for (pid,) in rows}

    def change(self, number: int) -> float:
        """A migration of a session that stays; answers when it was committed."""
        self.server.execute(f"ALTER TABLE item ADD COLUMN IF NOT EXISTS c{time.monotonic_ns()} int", "shop")
        return time.monotonic()


@pytest.fixture
def place(site: Site, lane: Lane, server: Postgres, tmp_path: Path) -> Iterator[Place]:
    made = Place(lane, site.operator(lane.namespaces).start(), server, tmp_path)
    with made.pod.pgbouncer():
        eventually(made.answers, 20)
        eventually(lambda: "schema" in made.renewal(), 20)
        yield made
    assert "Traceback" not in made.operator.said(), made.operator.said()[-5000:]


def test_a_schema_change_is_over_within_five_seconds_for_apps_that_stay_and_fresh_ones(place: Place) -> None:
    apps = Apps(place.pod)
    with apps.at_work():
        time.sleep(1)
        for number in range(3):
            before, reads = len(apps.errors), apps.reads
            changed = place.change(number)
            eventually(lambda before=number: len(place.told()) > before, 10)
            failed = [at - changed for at, _ in apps.errors[before:]]
            print(f"{len(failed)} errors, the last {max(failed, default=0):.2f} s after the change")
            assert max(failed, default=0) < 5
            late = len(apps.errors)
            time.sleep(1.5)
            assert len(apps.errors) == late
            assert apps.reads > reads
    assert all(STALE in message for _, message in apps.errors)
    print(place.told())
    assert "at" in place.renewal()


def test_the_annotation_renews_every_server_connection_once_for_each_value(place: Place) -> None:
    for number, token in enumerate(("one", "two"), 1):
        old = place.backends()
        assert old
        place.ask(token)
        eventually(lambda token=token: place.renewal().get("request") == token, 10)
        assert not old & place.backends()
        assert len(place.told()) == number
        assert place.answers()
    place.ask(None)
    place.operator.kill()
    place.operator.reap()
    old = place.backends()
    place.operator.start()
    eventually(lambda: "every PooledDatabase is reconciled once" in place.operator.said(), 20)
    time.sleep(3)
    assert place.backends() == old
    assert len(place.told()) == 2


def test_a_request_names_a_consumer_or_is_refused_with_the_remedy(place: Place) -> None:
    old = place.backends()
    place.ask("nowhere/database now")
    eventually(lambda: len(place.told("ReconnectRefused")) == 1, 10)
    [message] = place.told("ReconnectRefused")
    assert "nowhere/database" in message
    assert place.backends() == old
    place.ask(f"{place.lane.web}/database now")
    eventually(lambda: len(place.told()) == 1, 10)
    assert not old & place.backends()


def test_what_changes_while_no_operator_runs_is_noticed_by_the_next(place: Place) -> None:
    old, before = place.backends(), place.renewal()["schema"]
    place.operator.kill()
    place.operator.reap()
    place.change(0)
    place.operator.start()
    eventually(lambda: place.renewal()["schema"] != before, 20)
    assert not old & place.backends()
    assert len(place.told()) == 1


def test_a_change_of_one_database_leaves_others_on_the_server_alone(place: Place) -> None:
    place.apply("another", "other")
    old, before = place.backends(), place.renewal()
    place.server.execute("ALTER TABLE item ADD COLUMN elsewhere int", "other")
    time.sleep(4)
    assert place.renewal() == before
    assert place.backends() == old


def test_a_settled_operator_writes_nothing_while_the_database_is_written_to(place: Place) -> None:
    with psycopg.connect(
        host=place.server.host,
        port=place.server.port,
        user=place.server.superuser,
        password=place.server.password,
        dbname="shop",
        autocommit=True,
    ) as session:
        time.sleep(10)  # the budget makes room for the session
        over = threading.Event()

        def write() -> None:
            while not over.wait(0.05):
                session.execute("CREATE TEMPORARY TABLE t (a int)")
                session.execute("DROP TABLE t")

        writing = threading.Thread(target=write)
        writing.start()
        try:
            quiet(place.lane, 6)
        finally:
            over.set()
            writing.join()
