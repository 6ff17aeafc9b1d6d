"""psycopg and asyncpg as programs use them: pools of connections, prepared statements, COPY, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import psycopg
import pytest

from tests.datapath.stack import CLIENTS, Route, Tier, stuck, unusable
from tests.datapath.test_startup_isolation import ignored

TENANTS = ("t1", "t2", "t3", None)
ROUNDS = 8


def clients(route: Route) -> int:
    """With a server connection each, more would wait for the first ones to leave."""
    return CLIENTS if route.shared else 3


async def at_once(count: int, work: Callable[[int], Awaitable[None]]) -> None:
    await asyncio.wait_for(asyncio.gather(*(work(number) for number in range(count))), 60)


async def test_psycopg_prepares_pipelines_and_copies(route: Route, pooler: Tier, keeper: Tier) -> None:
    async def work(number: int) -> None:
        async with await psycopg.AsyncConnection.connect(
            **route.libpq, autocommit=True, prepare_threshold=1
        ) as app:
            for turn in range(ROUNDS):
                cursor = await app.execute("SELECT %s::int * 1000 + %s::int", (number, turn))
                assert await cursor.fetchone() == (number * 1000 + turn,)
                async with app.transaction(), app.cursor() as scratch:
                    await scratch.execute("CREATE TEMP TABLE mine (a int, b text) ON COMMIT DROP")
                    async with scratch.copy("COPY mine FROM STDIN") as copy:
                        for row in range(50):
                            await copy.write_row((number, f"row {row}"))
                    await scratch.execute("SELECT count(*), min(a), max(a) FROM mine")
                    assert await scratch.fetchone() == (50, number, number)
                async with app.pipeline():
                    answers = [await app.execute("SELECT %s::int", (index,)) for index in range(5)]
                assert [await answer.fetchone() for answer in answers] == [(index,) for index in range(5)]
                with pytest.raises(psycopg.errors.DivisionByZero):
                    await app.execute("SELECT 1 / %s", (0,))

    await at_once(clients(route), work)
    assert stuck([pooler, keeper]) == []
    assert unusable(route) == ""


async def test_psycopg_reads_a_server_side_cursor_inside_a_transaction(route: Route) -> None:
    async def work(_: int) -> None:
        async with (
            await psycopg.AsyncConnection.connect(**route.libpq) as app,
            app.cursor("portions") as cursor,
        ):
            cursor.itersize = 7
            await cursor.execute("SELECT generate_series(1, 100)")
            assert [row[0] async for row in cursor] == list(range(1, 101))

    await at_once(clients(route), work)


async def test_asyncpg_prepares_and_copies(route: Route, pooler: Tier, keeper: Tier) -> None:
    async def work(number: int) -> None:
        app = await asyncpg.connect(**route.asyncpg)
        try:
            for turn in range(ROUNDS):
                assert (
                    await app.fetchval("SELECT $1::int * 1000 + $2::int", number, turn) == number * 1000 + turn
                )
                async with app.transaction():
                    await app.execute("CREATE TEMP TABLE mine (a int, b text) ON COMMIT DROP")
                    await app.copy_records_to_table(
                        "mine", records=[(number, f"row {row}") for row in range(50)]
                    )
                    assert await app.fetchval("SELECT count(*) FROM mine WHERE a = $1", number) == 50
                    assert [
                        row[0] async for row in app.cursor("SELECT generate_series(1, 20)", prefetch=6)
                    ] == list(range(1, 21))
                await app.executemany("SELECT $1::int", [(index,) for index in range(10)])
                with pytest.raises(asyncpg.DivisionByZeroError):
                    await app.fetchval("SELECT 1 / $1::int", 0)
        finally:
            await app.close()

    await at_once(clients(route), work)
    assert stuck([pooler, keeper]) == []
    assert unusable(route) == ""


async def test_c1_asyncpg_and_psycopg_answer_from_their_own_schema(route: Route, tier: Tier) -> None:
    """By the options that each of them has for it."""
    overlooked = bool(ignored(tier) & {"search_path", "options"})
    wrong: list[str] = []

    async def work(number: int) -> None:
        tenant = TENANTS[number % len(TENANTS)]
        expected = {tenant or "public"} | ({"public"} if overlooked else set())
        async with AsyncExitStack() as stack:
            if number % 2:
                settings = {} if tenant is None else {"search_path": tenant}
                app = await asyncpg.connect(**route.asyncpg, server_settings=settings)
                stack.push_async_callback(app.close)
                for _ in range(ROUNDS):
                    wrong.extend({await app.fetchval("SELECT name FROM tenant")} - expected)
            else:
                options: dict[str, Any] = {} if tenant is None else {"options": f"-c search_path={tenant}"}
                other = await psycopg.AsyncConnection.connect(**route.libpq, **options, autocommit=True)
                await stack.enter_async_context(other)
                for _ in range(ROUNDS):
                    cursor = await other.execute("SELECT name FROM tenant", prepare=False)
                    wrong.extend({row[0] for row in await cursor.fetchall()} - expected)

    for start in range(0, CLIENTS, clients(route)):
        await at_once(clients(route), lambda number, start=start: work(start + number))
    assert wrong == []


async def test_a_cancelled_task_of_asyncpg_costs_no_server_connection(tier: Tier, pooler: Tier) -> None:
    async def work(_: int) -> None:
        app = await asyncpg.connect(**tier.transaction.asyncpg)
        try:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await app.fetchval("SELECT pg_sleep(5)", timeout=0.1)
                assert await app.fetchval("SELECT 1", timeout=10) == 1
        finally:
            await app.close(timeout=5)

    await at_once(3, work)
    assert stuck([pooler, tier]) == []
    assert unusable(tier.transaction) == ""
