"""Planned pauses of real poolers, with real clients that wait, and then go on as if nothing had happened."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolkeeper.observed.consoles import PauseSeen
from poolkeeper.observed.refs import Key
from poolkeeper.pgbouncer import console
from poolkeeper.plan.pause_orders import HeldPooler, Pausing
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store.store import Store
from poolkeeper.upstream.target import Target
from poolkeeper.workers import pause as pauser
from poolkeeper.workers.drain import Departure, Keepers
from poolkeeper.workers.pause import Pauser
from tests.pgbouncer.keepers import Balancer, Keeper, Load, keeper
from tests.pgbouncer.processes import (
    DIRECTORY,
    Pooler,
    Postgres,
    in_thread,
    initialised,
    inside,
    pooler,
    running,
    serving,
    wait_until_it_listens,
)
from tests.pgbouncer.shop import API, WEB, Shop

KEY = Key("data", "shop")
HELD = PauseSeen(held=True)
RESUMED = PauseSeen(resumed=True)


class Database:
    """A PostgreSQL server that can be stopped and started again."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.cluster: Postgres = initialised(directory)
        self._stack = stack
        self._serving = contextlib.ExitStack()
        stack.callback(lambda: self._serving.close())
        self.start()

    def start(self) -> None:
        self.cluster = self._serving.enter_context(serving(self.cluster))

    def stop(self) -> None:
        self._serving.close()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with contextlib.ExitStack() as stack:
        yield Database(tmp_path_factory.mktemp("restartable"), stack)


@pytest.fixture(scope="module")
def own_shop(database: Database) -> Shop:
    cluster = database.cluster
    cluster.create_role("shop_owner", "password")
    cluster.create_database("shop")
    return Shop(Target(cluster.host, cluster.port, "shop", "shop_owner", "password", "require", None))


@dataclass
class Operator:
    """What an operator's process holds of a pause, in small."""

    fleet: Fleet
    store: Store = field(default_factory=lambda: Store(Settings(namespace="poolkeeper", identity="test")))
    leaving: list[Pooler] = field(default_factory=list)
    fits: bool = True
    """Whether the server, once measured, gives as many connections as the poolers may hold."""

    def __post_init__(self) -> None:
        async def work(_: Key) -> None: ...

        self.pauser = Pauser(self.store, Queue(work, 1), self.measure)

    def measure(self, key: Key) -> None:
        if self.fits:
            self.store.budgets.fit(key, time.monotonic())

    def order(self, *, hold: bool, seconds: float = 60.0, begin: bool = True) -> None:
        shop = self.fleet.shop
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        held = tuple(
            HeldPooler(
                f"uid-{item.port}", f"pooler-{item.port}", shop.console(item), until, item in self.leaving
            )
            for item in self.fleet.poolers
        )
        logins = {shop.entry(consumer): shop.login(consumer) for consumer in (WEB, API)}
        self.pauser.order(KEY, Pausing(hold, begin, held, logins))

    def seen(self) -> list[PauseSeen]:
        known = self.store.processes.paused
        return [known.get(f"uid-{item.port}", PauseSeen(problem="not seen")) for item in self.fleet.poolers]

    async def until(self, check: Callable[[list[PauseSeen]], bool], seconds: float = 10) -> list[PauseSeen]:
        end = asyncio.get_running_loop().time() + seconds
        while not check(self.seen()):
            assert asyncio.get_running_loop().time() < end, self.seen()
            await asyncio.sleep(0.02)
        return self.seen()

    async def pause(self, seconds: float = 60.0) -> None:
        self.order(hold=True, seconds=seconds)
        await self.until(lambda seen: seen == [HELD] * len(seen))

    async def resume(self) -> None:
        self.order(hold=False)
        await self.until(lambda seen: seen == [RESUMED] * len(seen))

    def end(self) -> None:
        """As a process ends: nothing is undone."""
        self.pauser.order(KEY, None)


@dataclass
class Fleet:
    shop: Shop
    balancer: Balancer
    poolers: list[Pooler]
    keepers: list[Keeper]
    operator: Operator = field(init=False)

    def __post_init__(self) -> None:
        self.operator = Operator(self)

    @asynccontextmanager
    async def load(self) -> AsyncIterator[Load]:
        """Clients through both keepers, and some without."""
        load = Load()
        async with contextlib.AsyncExitStack() as stack:
            for item in self.keepers:
                await stack.enter_async_context(load.on(6, 0.005, **item.connection()))
            for one in self.poolers:
                await stack.enter_async_context(load.on(2, 0.005, **self.shop.connection(one, API)))
            await asyncio.sleep(0.7)
            try:
                yield load
            except BaseException:  # or they would wait for ever
                for one in self.poolers:
                    assert one.process is not None
                    one.process.kill()
                raise
            before = load.done
            await asyncio.sleep(0.7)
            assert load.done > before + 50, "they did not go on"


@pytest.fixture
async def fleet(own_shop: Shop, tmp_path: Path) -> AsyncIterator[Fleet]:
    """Two poolers behind a Service, and two keepers that use it."""
    async with Balancer().running() as balancer:
        with contextlib.ExitStack() as stack:
            poolers = []
            for name in ("one", "two"):
                (tmp_path / name).mkdir()
                poolers.append(stack.enter_context(pooler(tmp_path / name, own_shop.configuration())))
            balancer.serving = [(item.host, item.port) for item in poolers]
            patience = {"server_connect_timeout": 2, "server_lifetime": 1}
            keepers = [
                stack.enter_context(keeper(number, tmp_path, own_shop, balancer, **patience))
                for number in (0, 1)
            ]
            made = Fleet(own_shop, balancer, poolers, keepers)
            try:
                yield made
            finally:
                made.operator.end()


async def connected(parameters: dict[str, Any]) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(**parameters)


async def test_clients_wait_for_three_seconds_and_none_fails(fleet: Fleet) -> None:
    async with fleet.load() as load:
        await fleet.operator.pause()
        before = load.done
        await asyncio.sleep(3)
        assert load.done == before, "a transaction was let through"
        await fleet.operator.resume()
    assert load.failures == []


async def test_the_database_restarts_and_none_fails(fleet: Fleet, database: Database) -> None:
    async with fleet.load() as load:
        await fleet.operator.pause()
        assert backends(database) == []
        await in_thread(database.stop)
        await asyncio.sleep(2.5)
        await in_thread(database.start)
        await fleet.operator.resume()
    assert load.failures == []


async def test_nobody_goes_on_before_the_caps_fit_the_server(fleet: Fleet) -> None:
    """It may have been restarted with fewer connections. A measurement of before the pause proves nothing."""
    operator = fleet.operator
    async with fleet.load() as load:
        operator.measure(KEY)
        await operator.pause()
        operator.fits = False
        before = load.done
        operator.order(hold=False)
        await asyncio.sleep(1.5)
        assert load.done == before, "a transaction was let through"
        operator.fits = True
        operator.measure(KEY)
        await operator.until(lambda seen: seen == [RESUMED] * 2, 2)
    assert load.failures == []


async def test_a_server_that_cannot_be_measured_does_not_prolong_a_pause_for_long(fleet: Fleet) -> None:
    fleet.operator.fits = False
    async with fleet.load() as load:
        await fleet.operator.pause()
        begun = time.monotonic()
        fleet.operator.order(hold=False)
        await fleet.operator.until(lambda seen: seen == [RESUMED] * 2, pauser.FIT_SECONDS + 3)
        assert time.monotonic() - begun >= pauser.FIT_SECONDS
    assert load.failures == []


async def test_a_limit_ends_a_pause_whether_or_not_the_caps_fit(fleet: Fleet) -> None:
    fleet.operator.fits = False
    async with fleet.load() as load:
        await fleet.operator.pause(seconds=3)
        begun = time.monotonic()
        fleet.operator.order(hold=False, seconds=0)
        await fleet.operator.until(lambda seen: seen == [RESUMED] * 2, pauser.FIT_SECONDS - 1)
        assert time.monotonic() - begun < pauser.FIT_SECONDS - 1
    assert load.failures == []


def backends(database: Database) -> list[tuple[Any, ...]]:
    return database.cluster.execute("SELECT pid FROM pg_stat_activity WHERE usename = 'shop_owner'")


async def test_a_long_transaction_is_named_and_at_the_deadline_everybody_goes_on(fleet: Fleet) -> None:
    first = fleet.poolers[0]
    long = await connected(fleet.shop.connection(first, API))
    async with fleet.load() as load:
        await long.execute("BEGIN")
        await long.execute("SELECT 1")
        fleet.operator.order(hold=True, seconds=3)
        waiting = PauseSeen(waits_for=fleet.shop.entry(API))
        assert await fleet.operator.until(lambda seen: seen[0] == waiting and seen[1] == HELD, 2) == [
            waiting,
            HELD,
        ]
        await asyncio.sleep(1)
        before = load.done
        # No further order comes: whoever pauses knows when it has to end.
        await fleet.operator.until(lambda seen: seen == [RESUMED] * 2, 5)
        assert load.done > before
        await long.execute("SELECT 1")
        await long.execute("COMMIT")
    assert load.failures == []
    await long.close()


async def test_a_transaction_that_ends_in_time_lets_the_pause_come_about(fleet: Fleet) -> None:
    one = await connected(fleet.shop.connection(fleet.poolers[0], API))
    await one.execute("BEGIN")
    await one.execute("SELECT 1")
    fleet.operator.order(hold=True)
    await fleet.operator.until(lambda seen: seen[1] == HELD)
    assert fleet.operator.seen()[0] != HELD
    await one.execute("COMMIT")
    await fleet.operator.until(lambda seen: seen == [HELD] * 2)
    await one.close()


async def test_nothing_is_paused_before_it_may_begin(fleet: Fleet) -> None:
    fleet.operator.order(hold=True, begin=False)
    await fleet.operator.until(lambda seen: all(one.waits_for for one in seen))
    async with fleet.load() as load:
        pass
    assert load.failures == []
    fleet.operator.order(hold=True, begin=True)
    fleet.operator.order(hold=True, begin=False)
    await fleet.operator.until(lambda seen: seen == [HELD] * 2)


async def test_a_pooler_that_starts_anew_is_paused_again(fleet: Fleet) -> None:
    await fleet.operator.pause()
    again = fleet.poolers[1]
    assert again.process is not None
    again.process.kill()
    await fleet.operator.until(lambda seen: bool(seen[1].problem))
    command = inside("pgbouncer", again.directory, "pgbouncer", f"{DIRECTORY}/pgbouncer.ini")
    log = again.directory / "again.log"
    with running(command, log, signal.SIGQUIT) as process:
        wait_until_it_listens(process, log.read_text)
        await fleet.operator.until(lambda seen: seen == [HELD] * 2)
        waiting = asyncio.create_task(ask(fleet.shop.connection(again, WEB)))
        await asyncio.sleep(1)
        assert not waiting.done()
        await fleet.operator.resume()
        assert await asyncio.wait_for(waiting, 2) == (1,)


async def ask(parameters: dict[str, Any]) -> Any:
    """One client from its login to its end."""
    async with await connected(parameters) as client:
        return await (await client.execute("SELECT 1")).fetchone()


async def test_new_clients_can_log_in_where_nobody_had_logged_in_before_the_pause(fleet: Fleet) -> None:
    """Of itself a paused entry lets a login wait until a server has told it what to answer."""
    await fleet.operator.pause()
    clients = [
        await connected({**parameters, "connect_timeout": 2})
        for parameters in (
            *(item.connection() for item in fleet.keepers),
            *(fleet.shop.connection(one, who) for one in fleet.poolers for who in (WEB, API)),
        )
    ]
    waiting = [asyncio.create_task(client.execute("SELECT 1")) for client in clients]
    await asyncio.sleep(1)
    assert [task for task in waiting if task.done()] == []
    await fleet.operator.resume()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    for client in clients:
        await client.close()


async def test_sessions_go_on(fleet: Fleet) -> None:
    entry = fleet.shop.session_entry(WEB)
    async with await connected(fleet.shop.connection(fleet.poolers[0], WEB, entry)) as session:
        await session.execute("SELECT 1")
        await fleet.operator.pause()
        await session.execute("SELECT 1")
        assert await ask(fleet.shop.connection(fleet.poolers[1], WEB, entry)) == (1,)


async def test_an_entry_that_a_reload_brings_is_paused_too(fleet: Fleet) -> None:
    shop, first = fleet.shop, fleet.poolers[0]
    assert await first.apply(first.write(shop.configuration([WEB])), shop.console(first)) is None
    await fleet.operator.pause()
    assert await first.apply(first.write(shop.configuration([WEB, API])), shop.console(first)) is None
    async with console.connect(shop.console(first), 3) as opened:

        async def paused() -> set[str]:
            return {row["name"] for row in await opened.show("DATABASES") if row["paused"] == "1"}

        while await paused() != {shop.entry(WEB), shop.entry(API)}:
            await asyncio.sleep(0.05)


async def test_who_waits_at_a_pooler_that_is_told_to_end_is_served_after_all(fleet: Fleet) -> None:
    """It lets nobody in any more then, and a RESUME of everything is refused."""
    going = fleet.poolers[0]
    await fleet.operator.pause()
    client = await connected(fleet.shop.connection(going, WEB))
    waiting = asyncio.create_task(client.execute("SELECT 1"))
    await asyncio.sleep(0.3)
    fleet.operator.leaving.append(going)
    fleet.operator.order(hold=True)
    assert going.process is not None
    going.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(1)
    assert not waiting.done()
    fleet.operator.order(hold=False)
    await asyncio.wait_for(waiting, 2)
    await client.close()
    assert await in_thread(lambda: going.process and going.process.wait(5)) == 0


async def test_a_pooler_that_goes_in_the_middle_of_a_pause_costs_keepers_nothing(fleet: Fleet) -> None:
    going, staying = fleet.poolers
    load = Load()
    async with contextlib.AsyncExitStack() as stack:
        for item in fleet.keepers:
            await stack.enter_async_context(load.on(6, 0.005, **item.connection()))
        await asyncio.sleep(0.7)
        await fleet.operator.pause()
        before = load.done
        fleet.balancer.serving = [(staying.host, staying.port)]
        fleet.operator.leaving.append(going)
        fleet.operator.order(hold=True)
        now = asyncio.get_running_loop().time()
        departure = Departure(fleet.shop.console(going), now, now + 25)
        draining = asyncio.create_task(
            Keepers().drain(departure, lambda: [item.seen for item in fleet.keepers])
        )
        await asyncio.sleep(2)
        assert going.process is not None
        going.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(1.5)
        assert load.done == before
        fleet.operator.order(hold=False)
        await fleet.operator.until(lambda seen: seen[1] == RESUMED)
        assert (await draining).empty
        assert await in_thread(lambda: going.process and going.process.wait(5)) == 0
        assert load.done > before + 50
    assert load.failures == []


async def test_another_operator_ends_what_one_has_begun(fleet: Fleet) -> None:
    async with fleet.load() as load:
        await fleet.operator.pause()
        fleet.operator.end()
        before = load.done
        await asyncio.sleep(1)
        assert load.done == before
        fleet.operator = Operator(fleet)
        await fleet.operator.resume()
    assert load.failures == []


async def test_many_busy_entries_are_paused_at_once(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose transactions last does not hold up the next."""
    monkeypatch.setattr(pauser, "CONCURRENCY", 1)
    busy = [await connected(fleet.shop.connection(fleet.poolers[0], who)) for who in (WEB, API)]
    for client in busy:
        await client.execute("BEGIN")
        await client.execute("SELECT 1")
    fleet.operator.order(hold=True)
    async with console.connect(fleet.shop.console(fleet.poolers[0]), 3) as opened, asyncio.timeout(2):
        while sum(row["paused"] == "1" for row in await opened.show("DATABASES")) < len(busy):
            await asyncio.sleep(0.02)
    for client in busy:
        await client.execute("COMMIT")
    await fleet.operator.until(lambda seen: seen == [HELD] * 2)
    for client in busy:
        await client.close()
