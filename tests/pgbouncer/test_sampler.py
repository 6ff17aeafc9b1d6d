"""The sampler of the e2e tests at real servers: it has to see what it is there to find."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from poolkeeper.pgbouncer import console
from tests.e2e.agent import Sampler
from tests.e2e.connections import Record, judge, parse, settled_at
from tests.e2e.kit import Place, dsn
from tests.pgbouncer.processes import Pooler, Postgres, eventually
from tests.pgbouncer.shop import WEB, Shop

PERIOD_SECONDS = 0.02
FOREIGN = "somebody_else"
ASLEEP = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


@pytest.fixture
def sampler(server: Postgres) -> Iterator[Sampler]:
    made = Sampler(dsn(server.host, server.superuser, server.password, "postgres", server.port), PERIOD_SECONDS)
    yield made
    made.stop()


def watch(sampler: Sampler, shop: Shop, *poolers: Pooler) -> None:
    """Until each has answered once. They are told apart by address, so each needs one of its own."""
    assert shop.logins.console is not None
    consoles = {}
    for each in poolers:
        address = Place.console_dsn(each.host, shop.logins.console.password)
        consoles[each.host] = address.replace(":6432", f":{each.port}")

    def answered() -> bool:
        sampler.watch(consoles)
        return sampler.caps.keys() == consoles.keys()

    eventually(answered)


async def give_cap(pooler: Pooler, shop: Shop, cap: int) -> None:
    pooler.cap = cap
    pooler.write(shop.configuration())
    async with console.connect(shop.console(pooler), 5) as opened:
        await opened.reload()


@contextlib.contextmanager
def in_transactions(connections: int, **parameters: Any) -> Iterator[list[psycopg.Connection[Any]]]:
    """Clients in the middle of a transaction each."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(connections):
            client = psycopg.connect(**parameters)
            stack.callback(client.close)
            client.execute("BEGIN")
            client.execute("SELECT 1")
            made.append(client)
        yield made


def a_while() -> float:
    time.sleep(25 * PERIOD_SECONDS)
    return time.time()


def record_of(sampler: Sampler) -> Record:
    return parse(sampler.stop())


def test_poolers_connections_and_those_of_others_are_counted_and_held_against_what_is_usable(
    sampler: Sampler, server: Postgres, shop: Shop, running_pooler: Pooler
) -> None:
    server.create_role(FOREIGN, "a password")
    others = {"host": server.host, "port": server.port, "user": FOREIGN, "password": "a password"}
    with in_transactions(5, **shop.connection(running_pooler, WEB)):
        watch(sampler, shop, running_pooler)
        with in_transactions(3, **others, dbname="postgres"):
            began = a_while()
            ended = a_while()
    record = record_of(sampler)
    verdict = judge(record, {shop.target.user}, reserve=50)
    calm = [one for one in verdict.counts if began <= one.at <= ended]
    assert len(calm) >= 5
    assert {(one.held, one.busy, one.others, one.left) for one in calm} == {(5, 5, 3, 0)}
    # 60 - 3 for superusers - 50 = 7, and 8 are held.
    assert {(one.counted, usable) for one, usable in verdict.over} >= {(8, 7)}
    assert judge(record, {shop.target.user}, reserve=49).over == ()
    assert verdict.most == 8
    assert record.limits[0][1].max_connections == 60


def test_a_killed_pooler_s_backends_are_its_own_until_it_is_gone_and_then_left(
    sampler: Sampler, server: Postgres, shop: Shop, running_pooler: Pooler
) -> None:
    with in_transactions(2, **shop.connection(running_pooler, WEB)) as clients:
        watch(sampler, shop, running_pooler)
        for client in clients:
            # As it is the server would see within 500 ms that nobody waits for the answer.
            client.pgconn.send_query(b"SET LOCAL client_connection_check_interval = 0; SELECT pg_sleep(5)")
        a_while()
        assert running_pooler.process is not None
        running_pooler.process.kill()
        killed = a_while()
        silent = a_while()
        sampler.watch({})
        gone = a_while()
        left = a_while()
        eventually(lambda: server.execute(ASLEEP) == [(0,)], 20)
        a_while()
    counts = judge(record_of(sampler), {shop.target.user}, reserve=5).counts
    assert {(one.held, one.left) for one in counts if killed <= one.at <= silent} == {(2, 0)}
    assert {(one.held, one.left) for one in counts if gone <= one.at <= left} == {(0, 2)}
    assert (counts[-1].held, counts[-1].left) == (0, 0)


@contextlib.contextmanager
def load(clients: int, **parameters: Any) -> Iterator[None]:
    """So many clients that never rest."""
    over = threading.Event()

    def work() -> None:
        with psycopg.connect(**parameters) as connection:
            while not over.is_set():
                connection.execute("SELECT pg_sleep(0.002)")

    with ThreadPoolExecutor(clients) as threads:
        working = [threads.submit(work) for _ in range(clients)]
        try:
            yield
        finally:
            over.set()
    for one in working:
        one.result()


@pytest.mark.parametrize(("cap", "over"), [(6, False), (7, True)], ids=["kept", "one too many"])
async def test_connections_that_come_and_go_are_no_reason_to_cry_and_one_too_many_is(
    sampler: Sampler, shop: Shop, running_pooler: Pooler, cap: int, over: bool
) -> None:
    """Connections are closed after each transaction: their backends end a moment after new ones are there."""
    access = shop.console(running_pooler)
    await give_cap(running_pooler, shop, cap)
    watch(sampler, shop, running_pooler)
    async with console.connect(access, 5) as opened:
        with load(12, **shop.connection(running_pooler, WEB)):
            await asyncio.sleep(0.5)
            await opened.execute("SET server_lifetime = 0")
            await asyncio.sleep(1.5)
            await opened.execute("SET server_lifetime = 3600")
            await asyncio.sleep(0.5)
    verdict = judge(record_of(sampler), {shop.target.user}, reserve=60 - 3 - 6)
    assert (verdict.over != ()) == over, str(verdict)
    assert verdict.most == cap
    assert len(verdict.counts) > 40


async def test_changes_of_caps_are_seen_with_their_times(
    sampler: Sampler, shop: Shop, running_pooler: Pooler
) -> None:
    entry, began = shop.entry(WEB), time.time()
    watch(sampler, shop, running_pooler)
    await asyncio.sleep(0.2)
    changed = time.time()
    await give_cap(running_pooler, shop, 6)
    await asyncio.to_thread(eventually, lambda: sampler.caps[running_pooler.host][entry] == 6)
    seen = time.time()
    tables = record_of(sampler).tables
    assert [table.caps[entry] for table in tables] == [20, 6]
    assert changed < settled_at(tables, began, seen) < seen
    assert settled_at(tables, seen, seen + 1) == seen
