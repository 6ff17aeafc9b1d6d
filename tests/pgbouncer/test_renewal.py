"""Schema changes under prepared statements that PgBouncer keeps on its server connections: real clients."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolkeeper.pgbouncer import console, retirement
from poolkeeper.pgbouncer.console import ConsoleError
from poolkeeper.workers.upstream import measuring
from tests.pgbouncer.keepers import Balancer, Keeper, Load, keeper
from tests.pgbouncer.processes import Pooler, Postgres, pooler
from tests.pgbouncer.shop import API, WEB, Shop

STALE = "cached plan must not change result type"
QUERY = "SELECT * FROM public.item WHERE id = %s"


@pytest.fixture
def item(server: Postgres, shop: Shop) -> Iterator[Callable[[str], None]]:
    """Runs a statement on a table that the apps read, as somebody's migration does."""

    def change(statement: str) -> None:
        server.execute(statement, "shop")

    change("DROP TABLE IF EXISTS public.item")
    change("CREATE TABLE public.item AS SELECT id, 'name' || id AS name FROM generate_series(1, 100) AS id")
    change("GRANT SELECT ON public.item TO shop_owner")
    yield change
    change("DROP TABLE public.item")


@dataclass
class Place:
    shop: Shop
    pooler: Pooler
    keeper: Keeper

    def connection(self, through: str) -> dict[str, Any]:
        return self.keeper.connection() if through == "keeper" else self.shop.connection(self.pooler, WEB)

    async def renew(self, entries: frozenset[str] | None = None) -> int:
        return await retirement.renew(self.shop.console(self.pooler), entries)

    async def show(self, table: str) -> list[dict[str, str]]:
        async with console.connect(self.shop.console(self.pooler), 3) as opened:
            return [row for row in await opened.show(table) if row.get("database") != "pgbouncer"]

    async def lifetime(self) -> str:
        return next(row["value"] for row in await self.show("CONFIG") if row["key"] == "server_lifetime")


@pytest.fixture
async def place(shop: Shop, tmp_path: Path) -> AsyncIterator[Place]:
    async with Balancer().running() as balancer:
        with contextlib.ExitStack() as stack:
            (tmp_path / "pooler").mkdir()
            configuration = shop.configuration(parameters={"default_pool_size": "6"})
            running = stack.enter_context(pooler(tmp_path / "pooler", configuration))
            balancer.serving = [(running.host, running.port)]
            yield Place(shop, running, stack.enter_context(keeper(0, tmp_path, shop, balancer)))


@dataclass
class Readers:
    """Apps that read by prepared statements, and connect anew after an error, as a restarted process does."""

    reads: int = 0
    errors: Counter[int] = field(default_factory=Counter)
    """By connection."""
    messages: set[str] = field(default_factory=set)
    columns: Counter[int] = field(default_factory=Counter)

    @contextlib.asynccontextmanager
    async def at_work(self, apps: int, **parameters: Any) -> AsyncIterator[Readers]:
        over = asyncio.Event()

        async def app(number: int) -> None:
            while not over.is_set():
                number += apps
                async with await psycopg.AsyncConnection.connect(**parameters) as connection:
                    await self._read(connection, number, over)

        tasks = [asyncio.create_task(app(number)) for number in range(apps)]
        try:
            yield self
        finally:
            over.set()
            await asyncio.gather(*tasks)

    async def _read(self, connection: psycopg.AsyncConnection[Any], number: int, over: asyncio.Event) -> None:
        while not over.is_set():
            try:
                cursor = await connection.execute(QUERY, (number % 100 + 1,), prepare=True)
            except psycopg.Error as error:
                self.errors[number] += 1
                self.messages.add(str(error).splitlines()[0])
                await asyncio.sleep(0.01)
                return
            self.reads += 1
            self.columns[len(cursor.description or ())] += 1
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("through", ["pooler", "keeper"])
async def test_without_it_each_connection_fails_once_and_fresh_ones_work(
    place: Place, item: Callable[[str], None], through: str
) -> None:
    async with Readers().at_work(8, **place.connection(through)) as readers:
        await asyncio.sleep(0.5)
        assert not readers.errors
        item("ALTER TABLE public.item ADD COLUMN price int")
        await asyncio.sleep(1.5)
        assert len(readers.errors) == 8
        assert set(readers.errors.values()) == {1}
        assert len(readers.columns) == 2, "the new column is not seen"
    assert readers.messages == {STALE}


@pytest.mark.parametrize("through", ["pooler", "keeper"])
async def test_with_it_apps_behind_pooler_and_keeper_go_on_and_nobody_else_notices(
    place: Place, item: Callable[[str], None], through: str
) -> None:
    load, readers = Load(), Readers()
    async with readers.at_work(8, **place.connection(through)), load.on(8, **place.connection(through)):
        await asyncio.sleep(0.5)
        for number in range(3):
            old = {row["id"] for row in await place.show("SERVERS")}
            assert old
            item(f"ALTER TABLE public.item ADD COLUMN price_{number} int")
            began = time.monotonic()
            assert await place.renew() == 0
            took = time.monotonic() - began
            print(f"renewed {len(old)} server connections of a busy pool in {took:.2f} s")
            assert took < 2
            assert not old & {row["id"] for row in await place.show("SERVERS")}
            # A connection that knows the old columns is told so when it next uses the statement.
            await asyncio.sleep(0.5)
            failed, done = dict(readers.errors), load.done
            await asyncio.sleep(1)
            assert readers.errors == failed
            assert load.done > done
    assert readers.messages <= {STALE}
    assert set(readers.errors.values()) <= {1}
    assert readers.columns[5], "the new columns are not seen"
    assert load.failures == []
    assert await place.lifetime() != "0"


async def test_a_connection_in_a_long_transaction_is_renewed_after_it(
    place: Place, item: Callable[[str], None]
) -> None:
    async with await psycopg.AsyncConnection.connect(**place.connection("pooler")) as app:
        await app.execute(QUERY, (1,), prepare=True)
        async with app.transaction():
            await app.execute("SELECT 1")
            [held] = [row["id"] for row in await place.show("SERVERS")]
            renewing = asyncio.create_task(place.renew())
            seen = []
            for _ in range(40):
                seen.append(await place.lifetime())
                await asyncio.sleep(0.05)
            assert not renewing.done()
            assert 0 < seen.count("0") < 30, "every transaction of the pooler would take a new connection"
            await app.execute("SELECT 2")
        assert await asyncio.wait_for(renewing, 3) == 0
        item("ALTER TABLE public.item ADD COLUMN price int")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match=STALE):
            await app.execute(QUERY, (1,), prepare=True)
        await app.rollback()
        await app.execute(QUERY, (1,), prepare=True)
        assert held not in {row["id"] for row in await place.show("SERVERS")}


async def test_a_consumer_s_connections_don_t_wait_for_those_of_another(place: Place) -> None:
    api = place.shop.connection(place.pooler, API)
    async with await psycopg.AsyncConnection.connect(**api) as other, other.transaction():
        await other.execute("SELECT 1")
        async with await psycopg.AsyncConnection.connect(**place.connection("pooler")) as app:
            await app.execute("SELECT 1")
        assert await asyncio.wait_for(place.renew(frozenset({place.shop.entry(WEB)})), 2) == 0
        assert {row["database"] for row in await place.show("SERVERS")} == {place.shop.entry(API)}


async def test_a_renewal_that_is_interrupted_sets_the_lifetime_back(place: Place) -> None:
    before = await place.lifetime()
    async with await psycopg.AsyncConnection.connect(**place.connection("pooler")) as app, app.transaction():
        await app.execute("SELECT 1")
        renewing = asyncio.create_task(place.renew())
        await asyncio.sleep(0.2)
        assert await place.lifetime() == "0"
        renewing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await renewing
        assert await place.lifetime() == before


async def test_a_lifetime_that_a_killed_operator_left_is_set_right(place: Place) -> None:
    before = await place.lifetime()
    async with console.connect(place.shop.console(place.pooler), 3) as opened:
        await opened.execute("SET server_lifetime = 0")
    assert await place.renew() == 0
    assert await place.lifetime() == before


async def test_a_pooler_out_of_reach_is_an_error(place: Place) -> None:
    assert place.pooler.process is not None
    place.pooler.process.kill()
    with pytest.raises(ConsoleError):
        await place.renew()


CHANGES = (
    "ALTER TABLE a ADD COLUMN c int",
    "ALTER TABLE a DROP COLUMN b",
    "ALTER TABLE a RENAME COLUMN b TO c",
    "ALTER TABLE a ALTER COLUMN b TYPE varchar(20)",
    'ALTER TABLE a ALTER COLUMN b TYPE text COLLATE "C"',
    "ALTER TABLE a RENAME TO c",
    "ALTER TABLE a SET SCHEMA other",
    "ALTER SCHEMA other RENAME TO another",
    "CREATE OR REPLACE VIEW v AS SELECT 1 AS one, 2 AS two",
    "DROP VIEW v",
    "CREATE TABLE c (a int)",
    "CREATE FUNCTION g() RETURNS text LANGUAGE sql AS 'SELECT 1::text'",
    "DROP FUNCTION f()",
    "ALTER TYPE pair ADD ATTRIBUTE three int",
    "CREATE TYPE mood AS ENUM ('good')",
)
NO_CHANGES = (
    "SELECT txid_current()",
    "INSERT INTO a VALUES (2, 'two')",
    "TRUNCATE a",
    "VACUUM FULL a",
    "ANALYZE a",
    "CLUSTER a USING a_pkey",
    "CREATE INDEX ON a (b)",
    "ALTER TABLE a ALTER COLUMN b SET DEFAULT 'x'",
    "ALTER TABLE a ALTER COLUMN b SET STATISTICS 7",
    "REFRESH MATERIALIZED VIEW m",
    "CREATE TEMPORARY TABLE t (a int)",
    "GRANT SELECT ON a TO public",
)
FIXTURE = """
CREATE SCHEMA other; CREATE TABLE a (id int PRIMARY KEY, b varchar(10)); CREATE VIEW v AS SELECT 1 AS one;
CREATE MATERIALIZED VIEW m AS SELECT 1 AS one; CREATE TYPE pair AS (one int, two int);
CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'
"""


@pytest.fixture
def schema(server: Postgres, shop: Shop) -> Iterator[psycopg.Connection[Any]]:
    """A schema in the shop's database, and a superuser's connection that finds it first."""
    connection = psycopg.connect(
        host=server.host,
        port=server.port,
        user=server.superuser,
        password=server.password,
        dbname="shop",
        autocommit=True,
        options="-c search_path=mine",
    )
    with connection:
        connection.execute("CREATE SCHEMA mine")
        connection.execute(FIXTURE)
        yield connection
        connection.execute("DROP SCHEMA mine, other CASCADE") if _has(
            connection, "other"
        ) else connection.execute("DROP SCHEMA mine, another CASCADE")


def _has(connection: psycopg.Connection[Any], name: str) -> bool:
    return connection.execute("SELECT to_regnamespace(%s)", (name,)).fetchone() != (None,)


@pytest.mark.parametrize("statement", CHANGES)
async def test_what_changes_a_statement_s_columns_changes_the_fingerprint(
    shop: Shop, schema: psycopg.Connection[Any], statement: str
) -> None:
    async with measuring(shop.target, 3) as meter:
        before, snapshot = await meter.schema(), await meter.snapshot()
        assert await meter.schema() == before
        schema.execute(statement)
        assert await meter.snapshot() != snapshot
        assert await meter.schema() != before


@pytest.mark.parametrize("statement", NO_CHANGES)
async def test_what_leaves_the_columns_as_they_are_leaves_the_fingerprint(
    shop: Shop, schema: psycopg.Connection[Any], statement: str
) -> None:
    async with measuring(shop.target, 3) as meter:
        before = await meter.schema()
        schema.execute(statement)
        assert await meter.schema() == before


async def test_a_commit_of_an_earlier_transaction_changes_the_snapshot(
    shop: Shop, schema: psycopg.Connection[Any]
) -> None:
    async with measuring(shop.target, 3) as meter:
        before = await meter.schema()
        with schema.transaction():
            schema.execute("ALTER TABLE a ADD COLUMN c int")
            async with measuring(shop.target, 3) as other:
                await other._ask("SELECT txid_current()")
            open_still = await meter.snapshot()
            assert await meter.schema() == before
        assert await meter.snapshot() != open_still
        assert await meter.schema() != before


async def test_the_role_s_own_search_path_leads_the_fingerprint_nowhere_else(
    server: Postgres, shop: Shop, schema: psycopg.Connection[Any]
) -> None:
    schema.execute("CREATE TABLE mine.pg_class (oid oid); GRANT USAGE ON SCHEMA mine TO shop_owner")
    schema.execute(
        'CREATE FUNCTION mine.concat_ws(text, VARIADIC "any") RETURNS text LANGUAGE internal IMMUTABLE'
        " AS 'text_concat_ws'; CREATE FUNCTION mine.sum(numeric) RETURNS text LANGUAGE sql"
        " AS 'SELECT random()::text'"
    )
    server.execute("ALTER ROLE shop_owner SET search_path = mine, pg_catalog")
    try:
        async with measuring(shop.target, 3) as meter:
            before = await meter.schema()
            assert await meter.schema() == before
            schema.execute("ALTER TABLE a ADD COLUMN c int")
            assert await meter.schema() != before
    finally:
        server.execute("ALTER ROLE shop_owner RESET search_path")
