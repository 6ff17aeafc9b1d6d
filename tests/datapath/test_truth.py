"""Answers are, byte by byte, those of a direct connection; also while the operator reconfigures the pooler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

import pytest

from tests.datapath import oracle, wire
from tests.datapath.sequences import LAWFUL, Chunk, Sequence, lawful
from tests.datapath.stack import CLIENTS, POOL, Route, Tier, stuck
from tests.datapath.wire import Message, rows
from tests.pgbouncer.processes import TABLE, Pooler, Postgres, eventually

SEEDS = 6
Kind = Callable[..., Iterator[Chunk]]


def transcripts(route: Route, sequences: list[Sequence], timeout: float = 6.0) -> list[oracle.Transcript]:
    """The answers, one after the other on one connection: what is left of one sequence would show in the next.

    Where a route doesn't answer at all, the rest goes over a new connection.
    """
    found = []
    connection = route.connect()
    try:
        for sequence in sequences:
            found.append(oracle.play(connection, sequence, timeout))
            if found[-1] and found[-1][-1][0] in ("silence", "closed"):
                connection.socket.close()
                connection = route.connect()
    finally:
        connection.close()
    return found


def differences(route: Route, direct: Route, kind: Kind, clients: int, seeds: range) -> list[str]:
    """What several clients at once get through `route`, against what one gets directly."""
    sequences = [lawful(seed, kind) for seed in seeds]
    right = transcripts(direct, sequences)
    for sequence, answer in zip(sequences, right, strict=True):
        assert answer[-1][0] == "Z", f"{sequence.name} is not lawful: {answer[-1]}"
    with ThreadPoolExecutor(clients) as pool:
        shares = list(pool.map(lambda _: transcripts(route, sequences), range(clients)))
    return [
        f"{sequence.name}: {found}"
        for share in shares
        for sequence, expected, got in zip(sequences, right, share, strict=True)
        if (found := oracle.difference(expected, got))
    ]


def some(tier: Tier, route: Route) -> int:
    return CLIENTS // 2 if route.shared else POOL


@pytest.mark.smoke
@pytest.mark.parametrize("kind", LAWFUL, ids=lambda kind: kind.__name__)
def test_lawful_sequences_are_answered_as_directly(kind: Kind, pooler: Tier, direct: Route) -> None:
    assert differences(pooler.transaction, direct, kind, 6, range(SEEDS)) == []
    assert stuck([pooler]) == []


@pytest.mark.parametrize("kind", LAWFUL, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("entry", ["transaction", "session"])
def test_lawful_sequences_are_answered_as_directly_everywhere(
    kind: Kind, entry: str, tier: Tier, direct: Route
) -> None:
    route = getattr(tier, entry)
    assert differences(route, direct, kind, some(tier, route), range(SEEDS, 3 * SEEDS)) == []
    assert stuck([tier]) == []


@contextmanager
def meanwhile(act: Callable[[], None], pause: float) -> Iterator[list[int]]:
    """Do it again and again while the block runs; the list counts. An error in it fails the block."""
    done = threading.Event()
    count, errors = [0], []

    def loop() -> None:
        while not done.is_set():
            try:
                act()
            except Exception as error:
                errors.append(error)
                return
            count[0] += 1
            time.sleep(pause)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield count
    finally:
        done.set()
        thread.join()
    assert errors == []


def reconnect(tier: Tier) -> None:
    tier.console.run("RECONNECT")


def retire(tier: Tier) -> None:
    """As the operator has poolers retire their server connections."""
    lifetime = tier.console.parameter("server_lifetime")
    tier.console.run("SET server_lifetime = 0")
    time.sleep(0.05)
    tier.console.run(f"SET server_lifetime = {lifetime if lifetime != '0' else '3600'}")


def pause(tier: Tier) -> None:
    tier.console.run(f'PAUSE "{tier.transaction.database}"')
    time.sleep(0.02)
    tier.console.run(f'RESUME "{tier.transaction.database}"')


def change_caps(tier: Tier) -> None:
    """Another cap through the pod's own table, up and down again."""
    assert isinstance(tier.process, Pooler)
    table = tier.process.directory / TABLE
    before = table.read_text()
    for cap in (POOL - 1, POOL):
        table.write_text(before.replace(f"max_db_connections={POOL}", f"max_db_connections={cap}"))
        tier.console.run("RELOAD")
        time.sleep(0.03)


def reload(tier: Tier) -> None:
    tier.console.run("RELOAD")


EVENTS: dict[str, tuple[Callable[[Tier], None], float]] = {
    "RELOAD": (reload, 0.02),
    # Two at once pass pool sizes and fail waiting clients; the operator keeps them this far apart.
    "RECONNECT": (reconnect, 0.4),
    "server_lifetime": (retire, 0.1),
    "caps": (change_caps, 0.05),
    "PAUSE": (pause, 0.1),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("kinds", [LAWFUL[:4], LAWFUL[4:9], LAWFUL[9:]], ids=["query", "copy", "others"])
def test_answers_stay_the_same_while_the_operator_acts(
    event: str, kinds: tuple[Kind, ...], pooler: Tier, direct: Route
) -> None:
    act, every = EVENTS[event]
    with meanwhile(lambda: act(pooler), every) as count:
        wrong = [
            found
            for kind in kinds
            for found in differences(pooler.transaction, direct, kind, 6, range(SEEDS, 2 * SEEDS))
        ]
    assert count[0] > 1
    assert wrong == []
    assert stuck([pooler]) == []


@pytest.mark.parametrize("event", ["RELOAD", "RECONNECT", "server_lifetime"])
def test_answers_through_a_keeper_stay_the_same_while_the_operator_acts_on_both(
    event: str, keeper: Tier, pooler: Tier, direct: Route
) -> None:
    act, every = EVENTS[event]

    def both() -> None:
        act(pooler)
        act(keeper)

    with meanwhile(both, every) as count:
        wrong = [
            found
            for kind in LAWFUL
            for found in differences(keeper.transaction, direct, kind, 4, range(SEEDS, SEEDS + 2))
        ]
    assert count[0] > 1
    assert wrong == []
    assert stuck([pooler, keeper]) == []


def test_the_parameters_that_a_client_is_told_at_login_are_the_servers(route: Route, direct: Route) -> None:
    with closing(direct.connect({"application_name": "told"})) as plain:
        expected = dict(plain.status)
    with closing(route.connect({"application_name": "told"})) as client:
        got = {name: value for name, value in client.status.items() if not name.startswith("pgbouncer.")}
    # Which login a pooler uses at the server is its own affair.
    assert {**got, "session_authorization": ""} == {**expected, "session_authorization": ""}


CHANGES = {
    "reordered": "DROP COLUMN first, ADD COLUMN first text DEFAULT 'first'",
    "more": "ADD COLUMN extra text DEFAULT 'new'",
    "fewer": "DROP COLUMN first",
    "another type": "ALTER COLUMN first TYPE varchar(9)",
}
EXECUTE = (wire.bind("", "kept"), wire.describe("P", ""), wire.execute(), wire.SYNC)


def replace_servers(tier: Tier) -> None:
    """As the operator does after a schema change; PgBouncer closes idle connections three times a second."""
    lifetime = tier.console.parameter("server_lifetime")
    tier.console.run("SET server_lifetime = 0")
    eventually(lambda: all(row["state"] == "active" for row in tier.console.servers()))
    tier.console.run(f"SET server_lifetime = {lifetime}")


def refused(answer: list[Message]) -> bool:
    codes = wire.error_codes(answer)
    assert codes in ([], ["0A000"])
    return bool(codes)


@pytest.mark.smoke
@pytest.mark.parametrize("columns", CHANGES)
@pytest.mark.parametrize("connections", ["kept", "renewed"])
def test_a_statement_whose_columns_changed_is_refused_to_those_that_know_the_others(
    columns: str, connections: str, server: Postgres, direct: Route, tier: Tier, pooler: Tier
) -> None:
    """Such a client would take one column for another. Who describes each result is told once."""
    for route in (direct, tier.transaction):
        server.execute("DROP TABLE IF EXISTS changing", "shop")
        replace_servers(pooler)
        server.execute("CREATE TABLE changing AS SELECT 1 AS id, 'first' AS first, 'one' AS name", "shop")
        server.execute("GRANT SELECT ON changing TO shop_owner", "shop")
        prepare = wire.parse("kept", "TABLE changing")
        with route.connect() as trusting, route.connect() as asking:
            trusting.send(prepare, wire.describe("S", "kept"), wire.SYNC)
            assert [one.kind for one in trusting.until_ready()] == ["1", "t", "T", "Z"]
            asking.send(prepare, wire.SYNC)
            asking.until_ready()
            for client in (trusting, asking):
                client.send(*EXECUTE)
                assert not refused(client.until_ready())
            server.execute(f"ALTER TABLE changing {CHANGES[columns]}", "shop")
            if connections == "renewed":
                replace_servers(pooler)
            for client in (trusting, asking):
                client.send(*EXECUTE)
                assert refused(client.until_ready()), route.name
                client.send(*EXECUTE)
                assert refused(client.until_ready()) or (client is asking and route is not direct)
            trusting.send(wire.close("S", "kept"), prepare, *EXECUTE)
            assert [one.kind for one in trusting.until_ready()] == ["3", "1", "2", "T", "D", "C", "Z"]
            with route.connect() as late:
                late.send(prepare, *EXECUTE)
                assert [one.kind for one in late.until_ready()] == ["1", "2", "T", "D", "C", "Z"]
    assert stuck([pooler, tier]) == []


def backend(client: wire.Connection) -> str:
    """The process of the server connection that the client's new transaction holds."""
    client.run("BEGIN")
    ((process,),) = rows(client.run("SELECT pg_backend_pid()"))
    assert process is not None
    return process


@pytest.mark.smoke
def test_what_one_server_connection_refused_is_prepared_again_on_the_others(
    server: Postgres, pooler: Tier
) -> None:
    """So a client is refused once after a change, and not once by each server connection."""
    server.execute("DROP TABLE IF EXISTS changing", "shop")
    server.execute("CREATE TABLE changing AS SELECT 1 AS id", "shop")
    server.execute("GRANT SELECT ON changing TO shop_owner", "shop")
    replace_servers(pooler)
    with ExitStack() as stack:
        asking, *holders = [stack.enter_context(pooler.transaction.connect()) for _ in range(1 + POOL)]
        asking.send(wire.parse("kept", "TABLE changing"), wire.SYNC)
        asking.until_ready()
        processes = [backend(holder) for holder in holders]
        for holder in holders:
            holder.send(wire.parse("kept", "TABLE changing"), *EXECUTE)
            assert not refused(holder.until_ready())
            holder.run("COMMIT")
        asking.send(*EXECUTE)
        assert not refused(asking.until_ready())
        server.execute("ALTER TABLE changing ADD COLUMN more int", "shop")
        refusals = []
        for free in processes:
            held = {backend(holder): holder for holder in holders}
            held.pop(free).run("COMMIT")
            asking.send(*EXECUTE)
            refusals.append(refused(asking.until_ready()))
            for holder in held.values():
                holder.run("COMMIT")
    assert refusals == [True] + [False] * (POOL - 1)
    assert stuck([pooler]) == []


def test_a_refused_statement_ends_the_transaction_that_it_is_in(server: Postgres, pooler: Tier) -> None:
    """And nothing behind it in its batch is carried out, as after any other error."""
    server.execute("DROP TABLE IF EXISTS changing", "shop")
    server.execute("CREATE TABLE changing AS SELECT 1 AS id", "shop")
    server.execute("GRANT ALL ON changing TO shop_owner", "shop")
    with pooler.transaction.connect() as client:
        client.send(wire.parse("kept", "TABLE changing"), wire.describe("S", "kept"), wire.SYNC)
        client.until_ready()
        server.execute("ALTER TABLE changing ADD COLUMN more int", "shop")
        replace_servers(pooler)
        rows(client.run("BEGIN; INSERT INTO changing VALUES (2)"))
        client.send(
            wire.parse("", "INSERT INTO changing VALUES (3)") + wire.bind("", "") + wire.execute(),
            wire.bind("", "kept") + wire.execute(),
            wire.parse("", "INSERT INTO changing VALUES (4)") + wire.bind("", "") + wire.execute(),
            wire.SYNC,
        )
        answer = client.until_ready()
        assert "".join(one.kind for one in answer) == "12CEZ"
        assert answer[-1].body == b"E"
        assert client.run("COMMIT")[0].body == b"ROLLBACK\0"
        assert rows(client.run("SELECT id FROM changing")) == [("1",)]


@pytest.mark.parametrize("command", ["DEALLOCATE ALL", "DISCARD ALL"])
def test_statements_that_are_prepared_right_behind_deallocate_all_are_there(command: str, tier: Tier) -> None:
    """For their client, and for others that have the same statement on that server connection."""
    statement = f"SELECT 'behind {command}'"
    with ExitStack() as stack:
        others = [stack.enter_context(closing(tier.transaction.connect())) for _ in range(2 * POOL)]
        for client in others[:2]:
            client.send(wire.parse("kept", statement), wire.SYNC)
            client.until_ready()
        for _ in range(POOL):
            client = stack.enter_context(closing(tier.transaction.connect()))
            client.send(wire.query(command), wire.parse("kept", statement), wire.SYNC)
            assert [one.kind for one in client.until_ready(2)] == ["C", "Z", "1", "Z"]
            client.send(wire.bind("", "kept"), wire.execute(), wire.SYNC)
            assert rows(client.until_ready()) == [(f"behind {command}",)]
        for number, client in enumerate(others):
            if number >= 2:
                client.send(wire.parse("kept", statement), wire.SYNC)
                assert [one.kind for one in client.until_ready()] == ["1", "Z"]
            client.send(wire.bind("", "kept"), wire.execute(), wire.SYNC)
            assert rows(client.until_ready()) == [(f"behind {command}",)]


@pytest.mark.smoke
def test_the_encoding_of_one_client_changes_no_parameter_of_another(tier: Tier) -> None:
    """In SJIS a backslash may be the second half of a character, and other bytes are none at all."""
    names = ("gro\u00df", "caf\u00e9", "\u8868", "it's \\ \u2713")
    route = tier.transaction
    with ExitStack() as stack:
        for encoding in ("SJIS", "LATIN1"):
            for _ in range(POOL):
                client = stack.enter_context(closing(route.connect({"client_encoding": encoding})))
                assert rows(client.run("SELECT 1")) == [("1",)]
            for name in names * POOL:
                with closing(route.connect({"search_path": f'"{name}"'})) as client:
                    assert rows(client.run("SHOW search_path")) == [(f'"{name}"',)]
