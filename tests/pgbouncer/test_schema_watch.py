"""How the operator reads schemas of a real server: what becomes news, how often, over which connections."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from poolkeeper.budget.request import BudgetRequest
from poolkeeper.budget.shares import Pooled
from poolkeeper.data_path.schema import GAP_SECONDS
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.observed.refs import Key
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store.store import Store
from poolkeeper.upstream.target import Target
from poolkeeper.workers.servers import schemas
from poolkeeper.workers.servers.meters import Meters
from poolkeeper.workers.servers.schemas import SchemaWatch
from poolkeeper.workers.upstream import Meter, Unmeasured
from tests.pgbouncer.processes import Postgres
from tests.pgbouncer.shop import Shop

KEY, OTHER = Key("data", "shop"), Key("data", "other")
_numbers = itertools.count()


@pytest.fixture
def change(server: Postgres) -> Iterator[Callable[[], None]]:
    """Adds a column to a table of the shop."""
    server.execute("CREATE TABLE watched (id int)", "shop")
    yield lambda: server.execute(f"ALTER TABLE watched ADD COLUMN c{next(_numbers)} int", "shop") and None
    server.execute("DROP TABLE watched", "shop")


class Scene:
    def __init__(self, shop: Shop) -> None:
        async def work(key: Key) -> None:
            raise AssertionError("nobody works here")

        self.store = Store(Settings(namespace="poolkeeper", identity="test"))
        self.meters = Meters()
        self.watch = SchemaWatch(self.store, Queue(work, 1))
        self.orders: dict[Key, BudgetRequest] = {key: order(shop.target) for key in (KEY, OTHER)}
        self.system = self.instance = ""

    def met(self, key: Key, system: str, instance: str) -> None:
        self.system, self.instance = system, instance

    def opened(self, key: Key) -> Any:
        return self.meters.opened(key, self.system, self.orders[key], self.instance, self.met)

    async def start(self) -> None:
        while not self.system:  # a wrong guess tells which server it is
            try:
                await self.opened(KEY)
            except Unmeasured:
                continue

    async def poll(self, seconds: float) -> list[str]:
        """As the look at a server does; answers with the fingerprints that became known."""
        found = [self.store.upstreams.schema(KEY)]
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            self.watch.poll(KEY, partial(self.opened, KEY))
            await asyncio.sleep(0.05)
            now = self.store.upstreams.schema(KEY)
            if now != found[-1]:
                found.append(now)
        return found[1:]


def order(target: Target) -> BudgetRequest:
    pooled = Pooled("data/shop", 100, None, 1, (), replaceable=True)
    return BudgetRequest(pooled, target, {}, "", frozenset(), ConsoleAccess("127.0.0.1", 6432, "", "", ""))


@pytest.fixture
async def scene(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(schemas, "POLL_SECONDS", 0.1)
    made = Scene(shop)
    await made.start()
    yield made
    made.watch.keep(())
    await made.meters.keep(())


async def test_a_change_is_news_and_many_become_news_at_the_pace_of_renewals(
    scene: Scene, change: Callable[[], None]
) -> None:
    assert len(await scene.poll(0.5)) == 1
    assert await scene.poll(0.5) == []
    change()
    assert len(await scene.poll(0.5)) == 1
    for _ in range(4):
        change()
        assert await scene.poll(0.2) == []
    assert len(await scene.poll(GAP_SECONDS)) == 1, "the last of several changes is never news"
    assert await scene.poll(0.5) == []


async def test_without_a_commit_the_schema_is_not_read(
    scene: Scene, change: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    original = Meter.schema

    async def counted(meter: Meter) -> str:
        read.append(meter)
        return await original(meter)

    monkeypatch.setattr(Meter, "schema", counted)
    await scene.poll(1)
    assert len(read) <= 2  # autovacuum may commit something
    known = len(read)
    change()
    await scene.poll(1.5)
    assert len(read) > known


async def test_reading_takes_no_more_than_its_share_of_the_time(
    scene: Scene, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    async def slow(meter: Meter) -> str:
        read.append(meter)
        await asyncio.sleep(0.04)
        return "same"

    monkeypatch.setattr(Meter, "schema", slow)
    began = time.monotonic()
    for _ in range(10):
        server.execute("SELECT txid_current()")
        await scene.poll(0.2)
    assert 2 <= len(read) <= 1 + (time.monotonic() - began) / (0.04 * schemas.COST)


async def test_a_reading_that_a_busy_machine_makes_slow_holds_up_nothing(
    scene: Scene, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    took = [0.0, 0.0, 0.3]
    read: list[Any] = []

    async def slow(meter: Meter) -> str:
        await asyncio.sleep(took[len(read)] if len(read) < len(took) else 0)
        read.append(time.monotonic())
        return "same"

    monkeypatch.setattr(Meter, "schema", slow)
    for _ in range(12):
        server.execute("SELECT txid_current()")
        await scene.poll(0.2)
    assert len(read) > len(took), "the slow reading was taken for the cost of all"


async def test_a_role_that_may_not_read_it_is_asked_rarely_and_stays_connected(
    scene: Scene, server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server.execute("REVOKE SELECT ON pg_catalog.pg_proc FROM public", "shop")
    try:
        assert await scene.poll(1) == []
        meter = await scene.opened(KEY)
        await meter.measure()
    finally:
        server.execute("GRANT SELECT ON pg_catalog.pg_proc TO public", "shop")
    said = [record.getMessage() for record in caplog.records if "reading the schema" in record.getMessage()]
    assert len(said) == 1
    assert "permission denied" in said[0]


async def test_each_one_has_one_connection_which_follows_its_target(scene: Scene, server: Postgres) -> None:
    one, late, early = await asyncio.gather(scene.opened(KEY), scene.opened(OTHER), scene.opened(OTHER))
    assert await scene.opened(KEY) is one
    assert (other := await scene.opened(OTHER)) is late is early
    assert scene.meters.pids() == {one.pid, other.pid}
    counted = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'poolkeeper-budget'"
    await asyncio.sleep(0.2)
    assert server.execute(counted) == [(2,)], "a connection is left open"
    server.create_database("elsewhere")
    scene.orders[OTHER] = order(replace(scene.orders[OTHER].target, database="elsewhere"))
    moved = await scene.opened(OTHER)
    assert moved.pid != other.pid
    assert await moved._ask("SELECT current_database()") == [("elsewhere",)]
    assert scene.meters.pids() == {one.pid, moved.pid}
