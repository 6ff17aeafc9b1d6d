"""Clients that never log in keep no other client out: slots are for those that have proved who they are."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.datapath import stack, wire
from tests.datapath.stack import Tier
from tests.datapath.wire import Connection, Refused, Scram, rows
from tests.pgbouncer import processes
from tests.pgbouncer.processes import inside
from tests.pgbouncer.shop import Shop

SLOTS = 60
FILES = 120
"""How many files a process may open in some tests."""
ELSEWHERE = "127.0.0.2"
"""The address of whoever floods the pooler."""


@pytest.fixture
def flooded(shop: Shop, settings: dict[str, str], tmp_path: Path) -> Iterator[Tier]:
    """A pooler of the test's own."""
    slots = {"max_client_conn": str(SLOTS)}
    with stack.pooler_tier(tmp_path / "pooler", shop, settings, parameters=slots) as made:
        yield made


def begun(tier: Tier, source: str = ELSEWHERE) -> Connection:
    """A connection that has said nothing yet."""
    return Connection(tier.transaction.host, tier.transaction.port, 5, source)


def start(client: Connection, user: str, database: str) -> None:
    client.send(wire.startup([("user", user), ("database", database)]))


def half_a_packet(client: Connection, tier: Tier) -> None:
    client.send(wire.startup([("user", tier.transaction.user)])[:-4])


def tls(client: Connection, _: Tier) -> None:
    client.send(struct.pack("!II", 8, 80877103))


def named(client: Connection, tier: Tier) -> None:
    start(client, tier.transaction.user, tier.transaction.database)


def challenged(client: Connection, tier: Tier) -> None:
    named(client, tier)
    client.receive()
    client.send(Scram("a guess").first())
    client.receive()


BEGINNINGS: dict[str, Callable[[Connection, Tier], None]] = {
    "half a packet": half_a_packet,
    "TLS": tls,
    "a login's name": named,
    "a login's name, and its challenge": challenged,
    "a login's name, for the session entry": lambda client, tier: start(
        client, tier.transaction.user, tier.session.database
    ),
    "the console": lambda client, tier: start(client, "poolkeeper", "pgbouncer"),
}


def served(tier: Tier) -> bool:
    with tier.transaction.connect(timeout=5) as client:
        return rows(client.run("SELECT 1")) == [("1",)]


@pytest.mark.smoke
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_c6_clients_that_only_begin_to_log_in_keep_no_other_out(beginning: str, flooded: Tier) -> None:
    with ExitStack() as held:
        for _ in range(3 * SLOTS):
            BEGINNINGS[beginning](held.enter_context(begun(flooded)), flooded)
        assert served(flooded)
        assert flooded.console.run("SHOW VERSION")


@pytest.mark.smoke
def test_c6_a_login_that_is_in_progress_outlives_a_flood_from_elsewhere(flooded: Tier) -> None:
    route = flooded.transaction
    with begun(flooded, "127.0.0.1") as slow, ExitStack() as held:
        start(slow, route.user, route.database)
        for _ in range(3 * SLOTS):
            held.enter_context(begun(flooded))
        slow.authenticate(route.user, route.password)
        assert rows(slow.run("SELECT 1")) == [("1",)]
        assert served(flooded)


@pytest.mark.smoke
@pytest.mark.parametrize("limit", ["max_client_conn", "max_user_client_connections"])
def test_c6_logins_that_end_together_get_no_more_slots_than_there_are(limit: str, flooded: Tier) -> None:
    """Each of them found a slot free when it began."""
    route = flooded.transaction
    if limit == "max_client_conn":
        bound = 5
        flooded.console.run(f"SET max_client_conn = {bound}")
    else:
        [bound] = [int(row[limit]) for row in flooded.console.run("SHOW USERS") if row["name"] == route.user]
    refused = []
    with ExitStack() as held:
        clients = [held.enter_context(begun(flooded, "127.0.0.1")) for _ in range(bound)]
        clients += [held.enter_context(begun(flooded, ELSEWHERE)) for _ in range(3)]
        if limit == "max_client_conn":
            flooded.console.run("SET max_client_conn = 20")
        for client in clients:
            start(client, route.user, route.database)
        if limit == "max_client_conn":
            flooded.console.run(f"SET max_client_conn = {bound}")
        for client in clients:
            try:
                client.authenticate(route.user, route.password)
            except Refused as refusal:
                refused.append(refusal.message)
        assert len(refused) == 3
        assert all(f"({limit})" in message for message in refused), refused
        clients[0].close()
        clients[0] = held.enter_context(route.connect())
        for client in clients[:bound]:
            assert rows(client.run("SELECT 1")) == [("1",)]
        assert flooded.console.run("SHOW VERSION")


def limit_files(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
    """Processes that start from now on may open so many files."""
    limited = ["prlimit", f"--nofile={soft}:{hard}"]
    monkeypatch.setattr(processes, "inside", lambda *command: [*limited, *inside(*command)])


@pytest.mark.smoke
def test_c6_clients_that_take_every_file_descriptor_keep_no_other_out(
    monkeypatch: pytest.MonkeyPatch, shop: Shop, settings: dict[str, str], tmp_path: Path
) -> None:
    """max_client_conn may be larger than what the process may open."""
    limit_files(monkeypatch, FILES, FILES)
    with stack.pooler_tier(tmp_path / "pooler", shop, settings) as tier, ExitStack() as held:
        for _ in range(FILES + 20):
            named(held.enter_context(begun(tier)), tier)
        assert served(tier)
        assert tier.console.run("SHOW VERSION")


@pytest.mark.smoke
def test_clients_are_accepted_beyond_the_soft_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, shop: Shop, settings: dict[str, str], tmp_path: Path
) -> None:
    """Of a container it is 1,024 on many nodes. None of these clients leaves, and every one is served."""
    limit_files(monkeypatch, FILES, 4 * FILES)
    slots = {"max_client_conn": str(10 * FILES)}
    with stack.pooler_tier(tmp_path / "pooler", shop, settings, parameters=slots) as tier, ExitStack() as held:
        clients = [held.enter_context(tier.transaction.connect()) for _ in range(FILES + 20)]
        for client in clients:
            assert rows(client.run("SELECT 1")) == [("1",)]
