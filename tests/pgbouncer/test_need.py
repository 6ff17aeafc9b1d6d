"""What a real PgBouncer's SHOW POOLS says of entries whose clients work, rest and wait."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import psycopg

from poolkeeper.budget.lending import Use, uses
from poolkeeper.pgbouncer import console
from tests.pgbouncer.processes import Pooler, pooler
from tests.pgbouncer.shop import API, WEB, Shop


async def look(shop: Shop, *running: Pooler) -> dict[str, Use]:
    tables = []
    for one in running:
        async with console.connect(shop.console(one), 5) as opened:
            tables.append(await opened.show("POOLS"))
    return uses([shop.entry(WEB), shop.entry(API)], tables)


async def test_clients_that_work_rest_and_wait_are_told_apart_on_two_poolers(
    shop: Shop, tmp_path: Path
) -> None:
    configuration = shop.configuration()
    with contextlib.ExitStack() as stack:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        one, two = (stack.enter_context(pooler(tmp_path / name, configuration, 2)) for name in ("one", "two"))
        idle = {shop.entry(WEB): Use(), shop.entry(API): Use()}
        assert await look(shop, one, two) == idle

        def client(at: Pooler) -> psycopg.Connection[tuple[object, ...]]:
            return stack.enter_context(psycopg.connect(**shop.connection(at, WEB), connect_timeout=5))

        working = [client(at) for at in (one, one, two)]
        for one_client in working:
            one_client.execute("BEGIN")
        assert await look(shop, one, two) == idle | {shop.entry(WEB): Use(active=3)}

        late = client(one)
        waiting = asyncio.create_task(asyncio.to_thread(late.execute, "SELECT 1"))
        end = time.monotonic() + 10
        while (found := (await look(shop, one, two))[shop.entry(WEB)]).seconds < 1.2:
            assert time.monotonic() < end, found
            await asyncio.sleep(0.1)
        assert (found.active, found.waiting) == (3, 1)
        assert found.seconds < 10

        for one_client in working:
            one_client.execute("ROLLBACK")
        await waiting
        assert await look(shop, one, two) == idle
