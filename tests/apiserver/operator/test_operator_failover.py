"""A Service that gets other endpoints, under a running operator: a real PgBouncer with connections to a real
PostgreSQL, in a pod that only the API server knows. The test does kubelet's part, and that of a switchover."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from poolkeeper import names
from poolkeeper.names import CONFIG_DIRECTORY
from poolkeeper.pgbouncer.configuration import INI, POD_FILE
from tests.apiserver.operator.operator_process import Operator
from tests.apiserver.operator.site import PASSWORD, Lane, Site, eventually, path
from tests.pgbouncer.names import Names, serving
from tests.pgbouncer.processes import USER, Postgres, inside, postgres, running, wait_until_it_listens

FIRST, SECOND, THIRD = "10.1.0.1", "10.1.0.2", "10.1.0.3"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("postgres")) as made:
        made.create_role("o", PASSWORD)
        made.create_database("shop")
        yield made


@dataclass
class Scene:
    """A PooledDatabase whose upstream is a Service, with a pooler that serves and has a connection."""

    site: Site
    lane: Lane
    server: Postgres
    directory: Path
    operator: Operator
    host: str
    address: str = field(
        default_factory=lambda: f"127.{150 + os.getpid() % 50}.{os.getpid() // 50 % 250}.{next(_numbers)}"
    )

    def lead_to(self, *ready: str, others: tuple[str, ...] = ()) -> None:
        """What the endpoints controller writes."""
        endpoints = [{"addresses": [item], "conditions": {"ready": True}} for item in ready]
        endpoints += [{"addresses": [item], "conditions": {"ready": False}} for item in others]
        body = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "pg-x7k2p", "labels": {"kubernetes.io/service-name": "pg"}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"port": self.server.port}],
        }
        self.lane.api.apply(path("EndpointSlice", self.lane.data, "pg-x7k2p"), body)

    def apply(self, **changes: Any) -> None:
        upstream = {**self.lane.spec()["upstream"], "host": self.host, "port": self.server.port}
        # The operator itself can't look a Service up here, so it is told how much the poolers may take.
        consumers, budget = [{"namespace": self.lane.web}], {"maxConnections": 20}
        self.lane.apply(upstream=upstream, consumers=consumers, budget=budget, **changes)

    def files(self) -> dict[str, str]:
        return self.lane.secret(self.lane.data, "shop-pooler-config") or {}

    def own_lines(self) -> str:
        """What the downward API puts beside them: the pod's number, and where its table is."""
        annotations = self.lane.get("Pod", "one")["metadata"].get("annotations", {})
        return str(annotations.get(names.PEER_ANNOTATION, ""))

    def mount(self, pod_file: str = "") -> None:
        """The pooler's files where kubelet puts them. It may listen at its pod's address only: there are others
        on this machine."""
        place = self.directory / CONFIG_DIRECTORY.removeprefix("/")
        place.mkdir(exist_ok=True)
        files = self.files()
        ini = files[INI].replace("\nlisten_addr = *\n", f"\nlisten_addr = {self.address}\n")
        # pgbouncer.ini comes last, since it names the others.
        for name, text in sorted(
            {**files, INI: ini, POD_FILE: f"{pod_file}\n"}.items(), key=lambda item: item[0] == INI
        ):
            new = place / f".{name}"
            new.write_text(text)
            new.rename(place / name)
        for item in (self.directory, *self.directory.rglob("*")):
            os.chown(item, USER, USER)

    @contextmanager
    def serving(self, dns: Names) -> Iterator[None]:
        """Everything is in place and has settled while the block runs."""
        dns.addresses[self.host] = (self.server.host,)
        if not (self.directory / "etc").exists():
            dns.etc(self.directory)
        self.apply()
        eventually(lambda: INI in self.files(), 20)
        self.mount()
        command = inside("pgbouncer", self.directory, "pgbouncer", f"{CONFIG_DIRECTORY}/{INI}")
        with running(command, self.directory / "pgbouncer.log", signal.SIGQUIT) as process:
            wait_until_it_listens(process, self.log)
            self.lane.make_pod("one", self.address)
            # The pod is its own peer, too, and has a table of caps once the budget knows it.
            eventually(lambda: f"host={self.address} " in self.files()[INI], 10)
            eventually(lambda: "%include" in self.own_lines() and "caps-" in "".join(self.files()), 20)
            self.mount(self.own_lines())
            self.lane.expect("UpstreamReachable", "True", "Reachable", seconds=20)
            eventually(self.answers, 10)
            yield
        assert "Traceback" not in self.operator.said(), self.operator.said()[-5000:]

    def answers(self) -> bool:
        try:
            self.query()
        except psycopg.OperationalError:
            return False
        return True

    def log(self) -> str:
        return (self.directory / "pgbouncer.log").read_text()

    def reconnects(self) -> int:
        return self.log().count("RECONNECT command issued")

    def query(self) -> str:
        """What an app does; it leaves a server connection in the pool. Returns the address of the server."""
        secret = self.lane.secret(self.lane.web, "database")
        assert secret is not None
        login: dict[str, Any] = {key: secret[f"PG{key.upper()}"] for key in ("user", "password")}
        with psycopg.connect(
            host=self.address, port=6432, dbname=secret["PGDATABASE"], sslmode="disable", **login
        ) as app:
            [(address,)] = app.execute("SELECT host(inet_server_addr())").fetchall()
            return str(address)

    def backends(self) -> set[int]:
        """Of the poolers: the operator's own logins come and go."""
        name = sql.Literal(f"{self.lane.web}/database")
        query = sql.SQL("SELECT pid FROM pg_stat_activity WHERE application_name = {}")
        rows = self.server.execute(query.format(name))
        return {pid for (pid,) in rows}

    def upstream(self) -> dict[str, Any]:
        found: dict[str, Any] = self.lane.resource().get("status", {}).get("upstream", {})
        return found

    def recorded(self, *endpoints: str, seconds: float = 10) -> None:
        eventually(lambda: self.upstream().get("endpoints") == sorted(endpoints), seconds)


@pytest.fixture
def dns() -> Iterator[Names]:
    with serving() as made:
        yield made


@pytest.fixture
def scene(site: Site, lane: Lane, server: Postgres, dns: Names, tmp_path: Path) -> Iterator[Scene]:
    """With a Service, whose address only the pooler learns."""
    operator = site.operator(lane.namespaces).start()
    made = Scene(site, lane, server, tmp_path, operator, f"pg.{lane.data}.svc")
    made.lead_to(FIRST)
    with made.serving(dns):
        made.recorded(FIRST)
        yield made


@pytest.fixture
def named(site: Site, lane: Lane, server: Postgres, dns: Names, tmp_path: Path) -> Iterator[Scene]:
    """With a name outside of the cluster, which operator and pooler look up at the same server."""
    dns.etc(tmp_path)
    bind = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", bind, str(tmp_path / "etc/resolv.conf"))
    operator = site.operator(lane.namespaces, fresh=True, prefix=prefix).start()
    made = Scene(site, lane, server, tmp_path, operator, "db.example.test")
    with made.serving(dns):
        yield made


def test_connections_leave_at_once_when_the_endpoints_change(scene: Scene) -> None:
    old = scene.backends()
    assert old
    assert scene.reconnects() == 0
    began = time.monotonic()
    scene.lead_to(SECOND)
    eventually(lambda: not scene.backends() & old, 10, every=0.02)
    took = time.monotonic() - began
    print(f"the connections are gone after {took:.2f} s")
    assert took < 2
    scene.recorded(SECOND)
    [event] = [item for item in scene.lane.events() if item["reason"] == "UpstreamMoved"]
    print(event["message"])
    assert f"endpoint {FIRST} became {SECOND}" in event["message"]
    scene.query()


def test_no_endpoint_is_waited_out_and_a_further_one_disturbs_nobody(scene: Scene) -> None:
    old = scene.backends()
    scene.lead_to(FIRST, SECOND)
    scene.recorded(FIRST, SECOND)
    scene.lead_to(others=(FIRST, SECOND))
    time.sleep(1.5)
    assert scene.reconnects() == 0
    assert scene.backends() == old
    assert scene.upstream()["endpoints"] == [FIRST, SECOND]
    scene.lead_to(THIRD)
    eventually(lambda: not scene.backends() & old, 3, every=0.02)
    scene.recorded(THIRD)


def test_a_settled_operator_writes_nothing_and_says_no_reconnect(scene: Scene) -> None:
    scene.lead_to(SECOND)
    scene.recorded(SECOND)
    time.sleep(1)
    before, said = scene.lane.writes(), scene.reconnects()
    time.sleep(8)
    assert scene.lane.writes() == before
    assert scene.reconnects() == said


def test_an_operator_that_was_killed_before_it_saw_the_change_sees_it_at_its_start(scene: Scene) -> None:
    old = scene.backends()
    scene.operator.kill()
    scene.operator.reap()
    scene.lead_to(SECOND)
    time.sleep(1)
    assert scene.backends() == old
    scene.operator.start()
    eventually(lambda: not scene.backends() & old, 10, every=0.02)
    scene.recorded(SECOND)


def test_an_operator_that_is_killed_in_the_middle_is_followed_by_one_that_begins_again(scene: Scene) -> None:
    scene.lead_to(SECOND)
    eventually(lambda: scene.reconnects() >= 1, 5, every=0.01)
    scene.operator.kill()
    scene.operator.reap()
    assert scene.upstream()["endpoints"] == [FIRST]
    said = scene.reconnects()
    scene.operator.start()
    scene.recorded(SECOND, seconds=20)
    assert scene.reconnects() > said
    assert len([item for item in scene.lane.events() if item["reason"] == "UpstreamMoved"]) == 1


def test_with_an_invalid_spec_the_poolers_follow_all_the_same(scene: Scene) -> None:
    expression = {"key": "a\nb", "operator": "Exists"}
    terms = [{"weight": 1, "preference": {"matchExpressions": [expression]}}]
    scene.apply(
        pooler={"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": terms}}}
    )
    scene.lane.expect("SpecValid", "False", "Invalid")
    old = scene.backends()
    scene.lead_to(SECOND)
    eventually(lambda: not scene.backends() & old, 3, every=0.02)
    scene.recorded(SECOND)


def test_a_name_that_leads_elsewhere_is_followed(named: Scene, dns: Names, tmp_path: Path) -> None:
    directory, old, new = tmp_path / "second", named.server.host, "127.0.0.77"
    directory.mkdir()
    eventually(lambda: named.upstream().get("addresses") == [old], 10)
    with postgres(directory, new, named.server.port) as second:
        second.create_role("o", PASSWORD)
        second.create_database("shop")
        connections = named.backends()
        assert named.query() == old
        began = time.monotonic()
        dns.addresses[named.host] = (new,)
        eventually(lambda: not named.backends() & connections, 10, every=0.02)
        print(f"the connections are gone after {time.monotonic() - began:.2f} s")
        eventually(lambda: named.query() == new, 10, every=0.02)
        took = time.monotonic() - began
        print(f"the new server answers after {took:.2f} s")
        assert took < 5
        eventually(lambda: named.upstream().get("addresses") == [new], 10)
        [event] = [item for item in named.lane.events() if item["reason"] == "UpstreamMoved"]
        assert f"address {old} became {new}" in event["message"]
