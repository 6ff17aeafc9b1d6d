"""Clients that copy without waiting for the server's consent, more of them than server connections."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial

import pytest

from tests.datapath import wire
from tests.datapath.oracle import attack, witnesses
from tests.datapath.sequences import COPY_IN, disorderly
from tests.datapath.stack import POOL, Route, Tier, stuck, unusable
from tests.datapath.wire import COPY_DONE, SYNC, Connection, rows
from tests.pgbouncer.processes import Postgres

CLIENTS = 10
ROWS = 100


def copy_rows(client: Connection, number: int, statement: str, size: int) -> int:
    """As pgx's CopyFrom does it: learn the columns' types, then the COPY, and the data right behind it."""
    columns = "SELECT client, number, note FROM copied"
    client.send(wire.parse("columns", columns), wire.describe("S", "columns"), SYNC)
    client.until_ready()
    whole = b"".join(b"%d\t%d\tnote\n" % (number, row) for row in range(ROWS))
    client.send(wire.query(statement))
    for start in range(0, len(whole), size):
        client.send(wire.copy_data(whole[start : start + size]))
    client.send(COPY_DONE)
    answer = client.until_ready(timeout=8)
    client.send(wire.close("S", "columns"), SYNC)
    client.until_ready()
    return sum(got.kind == "C" and got.body == b"COPY %d\0" % ROWS for got in answer)


@pytest.mark.smoke
@pytest.mark.parametrize("size", [40, 800, 65536])
def test_c2_early_copy_data_of_many_clients_leaves_no_server_connection_stuck(
    size: int, route: Route, pooler: Tier, keeper: Tier, server: Postgres
) -> None:
    server.execute("TRUNCATE copied", "shop")

    def client(number: int) -> int:
        with closing(route.connect(timeout=20)) as connection:
            rounds = 5 if route.shared else 1
            return sum(
                copy_rows(connection, number, "COPY copied (client, number, note) FROM STDIN", size)
                for _ in range(rounds)
            )

    with ThreadPoolExecutor(CLIENTS) as pool:
        done = sum(pool.map(client, range(CLIENTS)))
    rounds = 5 if route.shared else 1
    assert done == CLIENTS * rounds
    assert server.execute("SELECT count(*) FROM copied", "shop") == [(CLIENTS * rounds * ROWS,)]
    assert stuck([pooler, keeper]) == []
    assert unusable(route) == ""


REFUSED = {
    "no such table": "COPY nowhere FROM STDIN",
    "a wrong column": "COPY copied (nothing) FROM STDIN",
    "a syntax error": "COPY copied FROM STDIM",
    "inside a failed transaction": "SELECT 1/0; COPY copied FROM STDIN",
}


@pytest.mark.parametrize("reason", REFUSED)
@pytest.mark.parametrize("extended", [False, True], ids=["simple", "extended"])
def test_early_data_for_a_copy_that_the_server_refuses_disturbs_nothing(
    reason: str, extended: bool, route: Route, pooler: Tier, keeper: Tier
) -> None:
    statement = REFUSED[reason]
    begin = (
        wire.parse("", statement) + wire.bind("", "") + wire.execute() if extended else wire.query(statement)
    )
    data = wire.copy_data(b"1\t1\tnote\n") * 50

    def client(_: int) -> list[str]:
        with closing(route.connect(timeout=20)) as connection:
            seen = []
            for _ in range(5):
                connection.send(begin)
                connection.send(data)
                connection.send(COPY_DONE + (SYNC if extended else b""))
                seen.append("".join(got.kind for got in connection.until_ready(timeout=8)).lstrip("TDC12"))
                seen.append("".join(got.kind for got in connection.run("SELECT 1", 8)))
            return seen

    with ThreadPoolExecutor(CLIENTS) as pool:
        for seen in pool.map(client, range(CLIENTS if route.shared else 3)):
            assert seen == ["EZ", "TDCZ"] * 5
    assert stuck([pooler, keeper]) == []
    assert unusable(route) == ""


def extended(statement: str) -> bytes:
    return wire.parse("", statement) + wire.bind("", "") + wire.execute()


BAD_DATA = wire.copy_data(b"not three columns\n")
LATER = extended("SELECT pg_sleep(0.5)") + extended("SELECT 1 / 0") + SYNC
"""Its answers come when another client has had the time to ask."""
DISORDERLY = {
    "a Sync between the data": extended(COPY_IN) + BAD_DATA + SYNC + LATER + COPY_DONE + SYNC,
    "a statement between the data": extended(COPY_IN)
    + BAD_DATA
    + extended("SELECT 3")
    + SYNC
    + LATER
    + COPY_DONE
    + SYNC,
    "a statement instead of data": extended(COPY_IN) + extended("SELECT 3") + SYNC + LATER + COPY_DONE + SYNC,
    "a Sync behind it in a simple query": wire.query(COPY_IN)
    + BAD_DATA
    + SYNC
    + wire.copy_fail("given up")
    + LATER,
    "no end": extended(COPY_IN) + SYNC + BAD_DATA + SYNC + LATER,
    "two ends": extended(COPY_IN) + SYNC + BAD_DATA + COPY_DONE + wire.copy_fail("given up") + SYNC + LATER,
}


@pytest.mark.smoke
@pytest.mark.parametrize("order", DISORDERLY)
def test_what_comes_behind_the_data_of_a_failed_copy_is_answered_to_no_other_client(
    order: str, tier: Tier
) -> None:
    """The server goes on with it, or ignores it, depending on where in the stream the COPY failed."""
    with ExitStack() as held:
        guilty, other, *busy = (held.enter_context(tier.transaction.connect()) for _ in range(POOL + 1))
        for client in busy:
            client.run("BEGIN")
        guilty.send(DISORDERLY[order])
        time.sleep(0.2)
        for _ in range(3):
            assert rows(other.run("SELECT 'mine'")) == [("mine",)]
    assert stuck([tier]) == []
    assert unusable(tier.transaction) == ""


@pytest.mark.smoke
def test_copies_in_any_disorder_reach_no_other_client(tier: Tier) -> None:
    with witnesses(tier.transaction, POOL) as found, ThreadPoolExecutor(8) as pool:
        list(pool.map(partial(attack, tier.transaction), map(disorderly, range(100))))
    assert found == []
    assert stuck([tier]) == []
    assert unusable(tier.transaction) == ""
