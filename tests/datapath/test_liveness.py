"""No client, whatever it sends and wherever it stops, holds up a server connection or another client."""

from __future__ import annotations

import signal
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path

import pytest

from poolkeeper.pgbouncer.configuration import INI, POD_FILE
from poolkeeper.plan import peers
from tests.datapath import wire
from tests.datapath.oracle import attack, witnesses
from tests.datapath.sequences import hostile
from tests.datapath.stack import POOL, Route, Tier, pooler_tier, stuck, unusable
from tests.datapath.wire import COPY_DONE, SYNC, Connection, Refused, cancel_request, error_codes, rows
from tests.pgbouncer.processes import DIRECTORY, TABLE, Pooler, eventually
from tests.pgbouncer.shop import Shop

BATCH = 40
AT_ONCE = 8


@pytest.mark.parametrize(
    "batch", [pytest.param(number, marks=[pytest.mark.smoke] if number < 2 else []) for number in range(12)]
)
def test_hostile_sequences_leave_every_server_connection_usable(batch: int, tier: Tier, pooler: Tier) -> None:
    """And no other client gets an answer that is not its own."""
    seeds = range(batch * BATCH, (batch + 1) * BATCH)
    for route in tier.routes:
        with witnesses(route, POOL if route.shared else 0) as found, ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(partial(attack, route), map(hostile, seeds)))
        assert found == [], f"after {seeds}"
        assert stuck({pooler.name: pooler, tier.name: tier}.values()) == [], f"after {seeds}, {route.name}"
        assert unusable(route) == "", f"after {seeds}"


def test_a_client_that_disconnects_at_any_byte_of_its_session_disturbs_nothing(
    tier: Tier, pooler: Tier
) -> None:
    session = (
        wire.query("BEGIN")
        + wire.parse("s", "COPY copied FROM STDIN")
        + wire.bind("p", "s")
        + wire.execute("p")
        + wire.copy_data(b"1\t1\tnote\n")
        + wire.COPY_DONE
        + SYNC
        + wire.query("COMMIT")
    )
    for length in range(len(session)):
        client = tier.transaction.connect()
        client.send(session[:length])
        client.socket.close()
    assert stuck([pooler, tier]) == []
    assert unusable(tier.transaction) == ""


def test_a_login_that_stops_at_any_byte_disturbs_nothing(tier: Tier) -> None:
    packet = wire.startup([("user", tier.transaction.user), ("database", tier.transaction.database)])
    for length in range(len(packet) + 1):
        with Connection(tier.transaction.host, tier.transaction.port) as client:
            client.send(packet[:length])
    assert unusable(tier.transaction) == ""


@pytest.mark.parametrize("delay", [0, 0.001, 0.01, 0.05, 0.2])
def test_a_cancel_ends_its_own_query_and_no_other(delay: float, tier: Tier, pooler: Tier) -> None:
    """More clients than server connections; every other one is cancelled while it runs, waits or is done."""
    route = tier.transaction

    def client(number: int) -> list[str]:
        seen = []
        with closing(route.connect(timeout=20)) as connection:
            for _ in range(4):
                connection.send(wire.query("SELECT pg_sleep(0.03)"))
                if number % 2:
                    time.sleep(delay)
                    with Connection(route.host, route.port) as another:
                        another.send(cancel_request(connection.key))
                        another.socket.settimeout(5)
                        another.socket.recv(1)  # closed once the request has been passed on
                answer = connection.until_ready(timeout=15)
                seen += error_codes(answer)
                assert not answer or answer[-1].kind == "Z"
                if not answer or answer[-1].kind != "Z":
                    break
        return seen

    with ThreadPoolExecutor(AT_ONCE) as pool:
        seen = list(pool.map(client, range(AT_ONCE)))
    assert [codes for number, codes in enumerate(seen) if number % 2 == 0 and codes] == []
    assert {code for codes in seen for code in codes} <= {"57014"}
    assert stuck([pooler, tier]) == []
    assert unusable(route) == ""


EXTENDED = wire.parse("", "SELECT 1") + wire.bind("", "") + wire.execute() + SYNC
WAITING: dict[str, tuple[bytes, str, str]] = {
    "query": (wire.query("SELECT 1"), "EZ", ""),
    "function call": (wire.message("F", struct.pack("!IHHH", 89, 0, 0, 0)), "EZ", ""),
    "batch": (wire.parse("kept", "SELECT 1") + EXTENDED, "EZ", ""),
    "batch with a query in it": (wire.parse("", "SELECT 1") + wire.query("SELECT 1") + SYNC, "EZ", ""),
    "two batches": (EXTENDED * 2, "EZ", "12DCZ"),
    "Sync": (SYNC + EXTENDED, "Z", "12DCZ"),
    "copy": (wire.query("COPY copied FROM STDIN") + wire.copy_data(b"1\t1\tx\n") * 9 + COPY_DONE, "EZ", ""),
    "large message": (wire.query(f"SELECT '{'x' * 1_000_000}'") + EXTENDED, "EZ", "12DCZ"),
}
"""What a client sends, and the messages that a cancel brings at once, and those that come later, by kind."""


@pytest.mark.smoke
@pytest.mark.parametrize("name", WAITING)
def test_a_cancel_ends_what_waits_for_a_server_connection(name: str, tier: Tier, pooler: Tier) -> None:
    sent, at_once, later = WAITING[name]
    route = tier.transaction
    with ExitStack() as stack:
        holders = [stack.enter_context(closing(route.connect())) for _ in range(POOL)]
        for holder in holders:
            rows(holder.run("BEGIN; SELECT 1"))
        with closing(route.connect(timeout=5)) as client:
            client.send(sent)
            eventually(lambda: "waiting" in {row["state"] for row in tier.console.run("SHOW CLIENTS")})
            cancel(route, client)
            answer = client.until_ready()
            assert "".join(got.kind for got in answer) == at_once
            assert error_codes(answer) == ["57014"] * at_once.count("E")
            for holder in holders:
                holder.run("ROLLBACK")
            assert "".join(got.kind for got in (client.until_ready() if later else ())) == later
            assert rows(client.run("SELECT 'free again'")) == [("free again",)]
            client.send(wire.parse("kept", "SELECT 2"), wire.bind("", "kept"), wire.execute(), SYNC)
            assert rows(client.until_ready()) == [("2",)]
    assert stuck([pooler, tier]) == []


def test_a_cancel_that_follows_at_once_is_in_time(tier: Tier, pooler: Tier) -> None:
    """Also while the pooler sets a client's parameters on its server connection.

    On a busy machine PostgreSQL itself ignores one in a hundred: it comes before the query has been read.
    """
    route = tier.transaction
    late = 0
    with ExitStack() as stack:
        wishes = ({"search_path": f"t{number}"} for number in (1, 2, 3))
        clients = [stack.enter_context(closing(route.connect(wish, timeout=5))) for wish in wishes]
        for number in range(30):
            client = clients[number % len(clients)]
            client.send(wire.query("SELECT pg_sleep(1)"))
            cancel(route, client)
            late += error_codes(client.until_ready()) != ["57014"]
    assert late <= 3
    assert stuck([pooler, tier]) == []


@pytest.mark.smoke
def test_a_flush_of_nothing_holds_no_server_connection(tier: Tier, pooler: Tier) -> None:
    with closing(tier.transaction.connect(timeout=5)) as client:
        client.run("SELECT 1")
        client.send(wire.FLUSH)
        assert stuck([pooler, tier]) == []
        assert rows(client.run("SELECT 'served'")) == [("served",)]


@pytest.mark.smoke
def test_a_cancel_ends_what_a_pause_waits_for(tier: Tier, pooler: Tier) -> None:
    route = tier.transaction
    with ThreadPoolExecutor(1) as pool:
        try:
            with closing(route.connect(timeout=5)) as client:
                client.send(wire.query("SELECT pg_sleep(20)"))
                eventually(lambda: not_idle(tier), 5)
                pause = pool.submit(tier.console.run, f'PAUSE "{route.database}"')
                time.sleep(0.3)
                cancel(route, client)
                answer = client.until_ready()
                pause.result(5)
        finally:
            pause.exception(30)
            tier.console.run(f'RESUME "{route.database}"')
    assert error_codes(answer) == ["57014"]
    assert stuck([pooler, tier]) == []
    assert unusable(route) == ""


@pytest.mark.smoke
def test_a_process_that_waits_for_its_clients_takes_cancels_and_no_clients(
    shop: Shop, settings: dict[str, str], tmp_path: Path
) -> None:
    with pooler_tier(tmp_path / "pooler", shop, settings) as ending:
        assert isinstance(ending.process, Pooler)
        process, route = ending.process.process, ending.transaction
        assert process is not None
        with closing(route.connect(timeout=5)) as client:
            client.send(wire.query("SELECT pg_sleep(20)"))
            eventually(lambda: not_idle(ending), 5)
            process.send_signal(signal.SIGTERM)
            eventually(lambda: "waiting for all clients" in ending.process.log(), 5)
            with pytest.raises(Refused, match="57P03"):
                route.connect(timeout=5)
            cancel(route, client)
            assert error_codes(client.until_ready()) == ["57014"]
            assert rows(client.run("SELECT 'still served'")) == [("still served",)]
            with Connection(route.host, route.port):
                client.socket.close()
                assert process.wait(5) == 0, "somebody who says nothing holds it up"


@pytest.mark.smoke
def test_every_cancel_that_comes_to_a_peer_is_passed_on(
    shop: Shop, settings: dict[str, str], tmp_path: Path
) -> None:
    """A Service leads cancels anywhere, and several at once when an app gives up."""
    with (
        pooler_tier(tmp_path / "one", shop, settings) as one,
        pooler_tier(tmp_path / "other", shop, settings) as other,
        ExitStack() as opened,
    ):
        tiers = {1: one, 2: other}
        places = [f"{peer} = host=127.0.0.1 port={tier.transaction.port}\n" for peer, tier in tiers.items()]
        for peer, tier in tiers.items():
            assert isinstance(tier.process, Pooler)
            (tier.process.directory / POD_FILE).write_text(peers.lines(peer, f"{DIRECTORY}/{TABLE}"))
            with (tier.process.directory / INI).open("a") as ini:
                ini.writelines(places)
            tier.console.run("RELOAD")
        clients = [opened.enter_context(closing(one.transaction.connect(timeout=5))) for _ in range(POOL)]
        for client in clients:
            client.send(wire.query("SELECT pg_sleep(20)"))
        eventually(lambda: len(not_idle(one)) == POOL, 5)
        requests = [
            opened.enter_context(Connection(other.transaction.host, other.transaction.port)) for _ in clients
        ]
        for client, request in zip(clients, requests, strict=True):
            request.send(cancel_request(client.key))
        for client in clients:
            assert error_codes(client.until_ready()) == ["57014"]


def not_idle(tier: Tier) -> list[dict[str, str]]:
    """Server connections at work."""
    return [row for row in tier.console.servers() if row["state"] == "active"]


def cancel(route: Route, client: Connection) -> None:
    with Connection(route.host, route.port) as another:
        another.send(cancel_request(client.key))
        another.socket.recv(1)  # closed once the request has been passed on


def test_thousands_of_prepared_statements_of_many_clients(route: Route, pooler: Tier, keeper: Tier) -> None:
    def client(number: int) -> None:
        with closing(route.connect(timeout=30)) as connection:
            for start in range(0, 1000, 100):
                names = [f"n{index}" for index in range(start, start + 100)]
                connection.send(*(wire.parse(name, f"SELECT '{name} of {number}'") for name in names), SYNC)
                assert all(got.kind in "1Z" for got in connection.until_ready())
                connection.send(
                    *(wire.bind("", name) + wire.execute() for name in names if name.endswith("7")), SYNC
                )
                assert [row[0] for row in rows(connection.until_ready())] == [
                    f"{name} of {number}" for name in names if name.endswith("7")
                ]
            for index in range(0, 1000, 61):
                connection.send(wire.bind("", f"n{index}"), wire.execute(), SYNC)
                assert rows(connection.until_ready()) == [(f"n{index} of {number}",)]

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(client, range(6 if route.shared else 3)))
    assert stuck([pooler, keeper]) == []
    assert unusable(route) == ""


def test_an_answer_that_its_client_does_not_read_holds_up_that_client_alone(tier: Tier, pooler: Tier) -> None:
    route = tier.transaction
    with closing(route.connect()) as lazy:
        lazy.send(wire.query("SELECT repeat('x', 1000000) FROM generate_series(1, 40)"))
        for _ in range(5):
            with closing(route.connect(timeout=5)) as another:
                assert rows(another.run("SELECT 1")) == [("1",)]
        lazy.socket.close()
    assert stuck([pooler, tier]) == []
    assert unusable(route) == ""


@pytest.mark.smoke
@pytest.mark.parametrize("size", [300, 1000, 3700])
def test_a_parameter_that_the_server_refuses_ends_its_client_alone_however_long_it_is(
    size: int, tier: Tier, pooler: Tier
) -> None:
    """The error repeats the value, and may be longer than the pooler's buffer."""
    route = tier.transaction
    for _ in range(2 * POOL):
        with closing(route.connect({"IntervalStyle": "x" * size}, timeout=5)) as client:
            (error,) = client.run("SELECT 1")
            assert error.kind == "E"
            assert error.fields()["M"].startswith("invalid value for parameter")
    assert stuck([pooler, tier]) == []
    assert unusable(route) == ""


def session_parameters(**values: str) -> str:
    """What a keeper sends its pooler when another client gets the connection."""
    settings = (f"SELECT pg_catalog.set_config(E'{name}',E'{value}',false);" for name, value in values.items())
    return "/* pgbouncer session parameters */" + "".join(settings)


@pytest.mark.smoke
@pytest.mark.parametrize("padding", ["", "x" * 3000, "x" * 9000])
def test_session_parameters_of_any_moment_go_with_their_connection(padding: str, pooler: Tier) -> None:
    """A keeper may send them while the pooler takes its connection for one in use."""
    route = pooler.transaction
    sent = session_parameters(search_path="t1", application_name=padding)
    with closing(route.connect(timeout=5)) as client, closing(route.connect()) as another:
        client.run("BEGIN")
        client.run(sent)
        client.run("COMMIT")
        another.run("BEGIN")  # the server connection that was free last
        assert rows(client.run("SHOW search_path")) == [("t1",)]
        another.run("ROLLBACK")
        assert rows(another.run("SHOW search_path")) != [("t1",)]


@pytest.mark.parametrize("size", [17_000, 20_000_000])
def test_session_parameters_of_any_length_cost_no_other_client_its_server_connection(
    size: int, pooler: Tier
) -> None:
    """Such a query is a pooler's; a client that makes one up gains nothing."""
    route = pooler.transaction
    forged = session_parameters(TimeZone="x" * size)
    with closing(route.connect()) as another:
        [(backend,)] = rows(another.run("SELECT pg_backend_pid()"))
        for _ in range(3):
            with closing(route.connect(timeout=5)) as client:
                with suppress(OSError):
                    client.send(wire.query(forged))
                with suppress(OSError):
                    assert [got.kind for got in client.until_ready()] == ["E"]
            assert rows(another.run("SELECT pg_backend_pid()")) == [(backend,)]
    assert unusable(route) == ""


@pytest.mark.smoke
@pytest.mark.parametrize("end", [COPY_DONE, wire.copy_fail("of nothing")], ids=["CopyDone", "CopyFail"])
def test_the_end_of_a_copy_in_the_middle_of_a_batch_is_ignored(end: bytes, tier: Tier, pooler: Tier) -> None:
    with closing(tier.transaction.connect(timeout=5)) as client:
        for _ in range(2):
            client.send(wire.parse("", "SELECT pg_sleep(0.1)"), end, wire.bind("", ""), wire.execute(), SYNC)
            assert "".join(got.kind for got in client.until_ready()) == "12DCZ"
            assert stuck([pooler, tier]) == []
            client.send(wire.parse("", "SELECT 1"), SYNC)
            assert "".join(got.kind for got in client.until_ready()) == "1Z"


def test_syncs_during_a_copy_leave_no_prepared_statement_in_doubt(pooler: Tier) -> None:
    route = pooler.transaction

    def parses() -> int:
        return sum(int(row["total_server_parse_count"]) for row in pooler.console.run("SHOW STATS"))

    with ExitStack() as stack:
        clients = [stack.enter_context(closing(route.connect())) for _ in range(POOL)]
        for client in clients:
            client.send(wire.query("BEGIN; COPY copied FROM STDIN"), SYNC * 1000, COPY_DONE)
            client.until_ready()
        for client in clients:
            client.run("ROLLBACK")
            client.send(wire.parse("kept", "SELECT 'in doubt'"), SYNC)
            client.until_ready()
        before = parses()
        for client in clients * 20:
            client.send(wire.bind("", "kept"), wire.execute(), SYNC)
            assert rows(client.until_ready()) == [("in doubt",)]
        assert parses() - before <= POOL


def test_a_client_with_many_statements_makes_no_more_work_by_failing(pooler: Tier) -> None:
    """Batches that fail take their statements back: that must not cost a walk through all there are."""

    def seconds(statements: int) -> float:
        with closing(pooler.transaction.connect(timeout=60)) as client:
            for start in range(0, statements, 5000):
                names = range(start, min(start + 5000, statements))
                client.send(*(wire.parse(f"n{number}", "SELECT 1") for number in names), SYNC)
                client.until_ready()
            began = time.monotonic()
            client.send((wire.parse("", "bad") + wire.parse("a", "SELECT 1") + SYNC) * 1500)
            client.until_ready(1500)
            return time.monotonic() - began

    assert seconds(200_000) < 4 * seconds(0) + 0.2
