"""The process outlives what is known to have ended it, and lets nobody in as another user."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.datapath import stack, wire
from tests.datapath.stack import Tier, stuck, unusable
from tests.datapath.wire import Connection, Refused, Scram, Silence, rows
from tests.pgbouncer.processes import TABLE, Pooler, Postgres
from tests.pgbouncer.shop import WEB, Shop


@pytest.fixture
def attacked(shop: Shop, settings: dict[str, str], tmp_path: Path) -> Iterator[Tier]:
    """A pooler of the test's own: it may die."""
    with stack.pooler_tier(tmp_path / "pooler", shop, settings) as made:
        yield made


def alive(tier: Tier) -> bool:
    """The process runs and serves a new client within two seconds."""
    assert isinstance(tier.process, Pooler)
    assert tier.process.process is not None
    if tier.process.process.poll() is not None:
        return False
    with suppress(OSError, Silence, Refused), closing(tier.transaction.connect(timeout=2)) as client:
        return rows(client.run("SELECT 1")) == [("1",)]
    return False


OPTIONS = [
    "-c =x",
    "-c=x",
    "-c ",
    "-c",
    "--=x",
    "--",
    "-c a",
    "-c a=",
    "=",
    "-c search_path",
    "\\",
    "-c a=\\",
    "-x y=1",
]


@pytest.mark.smoke
@pytest.mark.parametrize("options", OPTIONS)
def test_cve_2026_107349_a_parameter_without_a_name_is_refused_and_stops_nothing(
    options: str, attacked: Tier
) -> None:
    route = attacked.transaction
    for user in (route.user, "a stranger"):
        with Connection(route.host, route.port, 2) as client:
            client.send(wire.startup([("user", user), ("database", route.database), ("options", options)]))
            with suppress(Silence):
                client.receive(1)
    assert alive(attacked)


@pytest.mark.smoke
@pytest.mark.parametrize("victim", ["consumer", "console"])
@pytest.mark.parametrize("first", ["unknown database", "own database"])
def test_cve_2026_107350_a_second_startup_packet_does_not_change_the_user(
    first: str, victim: str, attacked: Tier, shop: Shop
) -> None:
    """The exchange begins with the attacker's own password, and another user is named in the middle of it."""
    login = shop.login(WEB)
    goal = {"consumer": (attacked.transaction.user, attacked.transaction.database)}.get(
        victim, ("poolkeeper", "pgbouncer")
    )
    begin = {"unknown database": "nowhere", "own database": shop.entry(WEB)}[first]
    scram = Scram(login.password)
    with Connection(attacked.transaction.host, attacked.transaction.port, 3) as client:
        client.send(wire.startup([("user", login.name), ("database", begin)]))
        asked = client.receive()
        assert asked is not None
        kinds = [asked.kind]
        if asked.kind == "R":
            client.send(scram.first())
            challenge = client.receive()
            assert challenge is not None
            kinds.append(challenge.kind)
            if challenge.kind == "R":
                client.send(
                    wire.startup([("user", goal[0]), ("database", goal[1])]), scram.final(challenge.body[4:])
                )
        with suppress(Silence):
            while (got := client.receive(2)) is not None:
                kinds.append(got.kind)
                # AuthenticationOk is R with 0.
                assert not (got.kind == "R" and got.body == struct.pack("!I", 0)), f"logged in as {goal[0]}"
        assert "Z" not in kinds
    assert alive(attacked)


@pytest.mark.parametrize("what", ["nothing changes", "entry disappears", "servers are retired"])
def test_reloads_during_logins_and_tls_handshakes_with_the_server(what: str, attacked: Tier) -> None:
    """Clients log in all the time, server connections with TLS are opened all the time, and RELOADs come in."""
    assert isinstance(attacked.process, Pooler)
    table = attacked.process.directory / TABLE
    whole = table.read_text()
    gone = "".join(line for line in whole.splitlines(True) if f"{attacked.transaction.database} =" not in line)
    done = threading.Event()

    def client(_: int) -> int:
        served = 0
        while not done.is_set():
            broken = suppress(OSError, Silence, Refused, RuntimeError)
            with broken, closing(attacked.transaction.connect(timeout=3)) as connection:
                served += rows(connection.run("SELECT 1")) == [("1",)]
        return served

    def operator() -> None:
        for number in range(60):
            with suppress(Exception):
                if what == "entry disappears":
                    table.write_text(gone if number % 2 else whole)
                elif what == "servers are retired":
                    attacked.console.run("SET server_lifetime = 0")
                attacked.console.run("RELOAD")
                attacked.console.run(f'RECONNECT "{attacked.transaction.database}"')
            time.sleep(0.02)
        table.write_text(whole)
        attacked.console.run("RELOAD")
        done.set()

    with ThreadPoolExecutor(9) as pool:
        served = [pool.submit(client, number) for number in range(8)]
        try:
            pool.submit(operator).result(30)
        finally:
            done.set()
        assert sum(one.result() for one in served) > 0
    assert alive(attacked)
    assert stuck([attacked]) == []
    assert unusable(attacked.transaction) == ""


@pytest.mark.smoke
def test_a_reload_that_finds_no_rules_for_logins_locks_no_client_out(attacked: Tier) -> None:
    """kubelet swaps the files of a pod at any moment, also of a RELOAD."""
    assert isinstance(attacked.process, Pooler)
    for rules in attacked.process.directory.glob("*hba*"):
        rules.rename(rules.with_suffix(".gone"))
    with suppress(Exception):
        attacked.console.run("RELOAD")
    assert alive(attacked)


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(struct.pack("!I", 0), id="length 0"),
        pytest.param(struct.pack("!II", 8, 0), id="version 0"),
        pytest.param(struct.pack("!II", 0x7FFFFFFF, wire.VERSION), id="huge"),
        pytest.param(struct.pack("!II", 9, wire.VERSION) + b"\0", id="no user"),
        pytest.param(struct.pack("!II", 13, wire.VERSION) + b"user\0", id="no value"),
        pytest.param(wire.startup([("user", "u" * 5000), ("database", "d" * 5000)]), id="long names"),
        pytest.param(
            wire.startup([("user", "web"), *((f"p{n}", "v") for n in range(500))]), id="many parameters"
        ),
        pytest.param(wire.startup([("user", "web"), ("", "v"), ("database", "x")]), id="empty name"),
        pytest.param(wire.startup([("user", "web"), ("replication", "true")]), id="replication"),
        pytest.param(wire.cancel_request(b""), id="cancel without a key"),
        pytest.param(wire.cancel_request(b"\0" * 8), id="cancel of nobody"),
        pytest.param(wire.cancel_request(b"\0" * 300), id="cancel with a long key"),
    ],
)
def test_a_strange_startup_packet_stops_nothing(packet: bytes, pooler: Tier) -> None:
    for _ in range(3):
        with Connection(pooler.transaction.host, pooler.transaction.port, 2) as client:
            client.send(packet)
            with suppress(Silence):
                client.receive(0.3)
    assert alive(pooler)


def test_messages_before_the_login_is_done_stop_nothing(pooler: Tier) -> None:
    route = pooler.transaction
    for stray in (
        wire.query("SELECT 1"),
        wire.SYNC,
        wire.message("p", b""),
        wire.message("p", b"SCRAM-SHA-256\0"),
    ):
        with Connection(route.host, route.port, 2) as client:
            client.send(wire.startup([("user", route.user), ("database", route.database)]), stray * 3)
            with suppress(Silence):
                while (got := client.receive(0.5)) is not None:
                    assert got.kind in "RE"
    assert alive(pooler)


def test_a_cancel_while_a_replication_client_waits_for_its_login_ends_nothing(
    attacked: Tier, server: Postgres, shop: Shop
) -> None:
    """Its server connection is its own from the start, and still logs in."""
    route = attacked.transaction
    with closing(route.connect()) as plain:
        plain.run("SELECT 1")
    server.execute(f"ALTER ROLE {shop.target.user} REPLICATION")
    server.execute("ALTER SYSTEM SET post_auth_delay = '1s'")
    server.execute("SELECT pg_reload_conf()")
    try:
        attacked.console.run("SET server_connect_timeout = 15")
        with Connection(route.host, route.port, 10) as client:
            client.login(route.user, route.password, route.database, {"replication": "database"})
            client.send(wire.query("SELECT 1"))
            time.sleep(0.4)
            with Connection(route.host, route.port) as another:
                another.send(wire.cancel_request(client.key))
                another.socket.recv(1)
            client.send(wire.query("SELECT 2"))
            assert rows(client.until_ready()) == [("1",)]
            assert rows(client.until_ready()) == [("2",)]
    finally:
        server.execute("ALTER SYSTEM RESET post_auth_delay")
        server.execute("SELECT pg_reload_conf()")
        server.execute(f"ALTER ROLE {shop.target.user} NOREPLICATION")
    assert alive(attacked)
