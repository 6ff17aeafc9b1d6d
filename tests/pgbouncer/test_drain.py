"""Poolers that go while keepers and direct clients are at work: nobody behind a keeper notices."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.clients import KeeperConsole
from poolkeeper.workers import drain
from poolkeeper.workers.drain import Departure, Drained, Keepers
from tests.pgbouncer.keepers import SESSION, Balancer, Keeper, Load, clients, keeper
from tests.pgbouncer.processes import Pooler, pooler
from tests.pgbouncer.shop import WEB, Shop


@dataclass
class Fleet:
    """Two poolers behind a Service, and keepers that use it."""

    shop: Shop
    balancer: Balancer
    poolers: list[Pooler]
    keepers: list[Keeper]

    def serve(self, *poolers: Pooler) -> None:
        self.balancer.serving = [(item.host, item.port) for item in poolers]

    async def leave(self, going: Pooler, *, grace: float = 15.0, pre_stop: float = 5.0) -> Drained:
        """What Kubernetes and the operator do about a pod that is deleted: it leaves the endpoints, the
        operator drains it, the process gets its SIGTERM after preStop and SIGKILL at the end of its grace."""
        loop = asyncio.get_running_loop()
        self.serve(*(item for item in self.poolers if item is not going))
        now = loop.time()
        departure = Departure(self.shop.console(going), now, now + grace)
        draining = asyncio.create_task(Keepers().drain(departure, lambda: [item.seen for item in self.keepers]))
        assert going.process is not None
        loop.call_later(pre_stop, going.process.send_signal, signal.SIGTERM)
        return await draining


@pytest.fixture
async def fleet(shop: Shop, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with make_fleet(shop, tmp_path, keepers=2) as made:
        yield made


@asynccontextmanager
async def make_fleet(shop: Shop, directory: Path, keepers: int) -> AsyncIterator[Fleet]:
    async with Balancer().running() as balancer:
        with contextlib.ExitStack() as stack:
            poolers = []
            for name in ("one", "two"):
                (directory / name).mkdir()
                poolers.append(stack.enter_context(pooler(directory / name, shop.configuration())))
            made = Fleet(shop, balancer, poolers, [])
            made.serve(*poolers)
            made.keepers += [
                stack.enter_context(keeper(number, directory, shop, balancer)) for number in range(keepers)
            ]
            yield made


async def ended(process_of: Pooler, seconds: float) -> int:
    """Its exit code. Fails if the process still runs after so many seconds."""
    assert process_of.process is not None
    return await asyncio.to_thread(process_of.process.wait, seconds)


async def lifetime(of: Keeper) -> str:
    async with console.connect(of.access, 3) as opened:
        return (await opened.settings())["server_lifetime"]


async def test_keepers_leave_a_pooler_in_the_middle_of_their_work_without_one_failed_transaction(
    fleet: Fleet,
) -> None:
    load = Load()
    first, second = fleet.poolers
    async with contextlib.AsyncExitStack() as stack:
        for item in fleet.keepers:
            await stack.enter_async_context(load.on(6, **item.connection()))
        await asyncio.sleep(1)
        assert await clients(first, fleet.shop)
        assert await fleet.leave(first) == Drained(True, {})
        assert await ended(first, 1) == 0
        assert len({row["addr"] for row in await clients(second, fleet.shop)}) == len(fleet.keepers)
        before = load.done
        await asyncio.sleep(0.5)
        assert load.done > before
    assert load.failures == []
    assert [await lifetime(item) for item in fleet.keepers] == ["20", "20"]


async def test_keepers_retire_again_and_again_without_one_failed_transaction(fleet: Fleet) -> None:
    load, keepers, [one, two] = Load(), Keepers(), fleet.keepers
    async with load.on(6, **one.connection()), load.on(6, **two.connection()):
        for turn in range(20):
            staying, going = fleet.poolers[turn % 2], fleet.poolers[1 - turn % 2]
            fleet.serve(staying)
            assert await asyncio.gather(*(keepers.retire(item.seen) for item in (one, two))) == [None, None]
            assert await clients(going, fleet.shop) == []
    assert load.failures == []
    assert load.done > 100


async def test_an_idle_keeper_leaves_within_a_second(fleet: Fleet) -> None:
    first, second = fleet.poolers
    fleet.serve(first)
    async with await psycopg.AsyncConnection.connect(**fleet.keepers[0].connection()) as app:
        await app.execute("SELECT 1")
        assert await clients(first, fleet.shop)
        fleet.serve(second)
        begun = time.monotonic()
        assert await Keepers().retire(fleet.keepers[0].seen) is None
        assert time.monotonic() - begun < 1
        assert await clients(first, fleet.shop) == []
        await app.execute("SELECT 1")


async def test_a_transaction_is_waited_for(fleet: Fleet) -> None:
    first, _ = fleet.poolers
    fleet.serve(first)
    async with await psycopg.AsyncConnection.connect(**fleet.keepers[0].connection()) as app:
        await app.execute("BEGIN")
        await app.execute("SELECT 1")
        draining = asyncio.create_task(fleet.leave(first, grace=30))
        await asyncio.sleep(7)
        assert not draining.done()
        assert await lifetime(fleet.keepers[0]) == "20", "not all the time: other transactions pay for it"
        await app.execute("SELECT 1")
        await app.execute("COMMIT")
        assert await asyncio.wait_for(draining, 5) == Drained(True, {})
        await app.execute("SELECT 1")
    assert await ended(first, 1) == 0


async def test_a_keeper_out_of_reach_is_named_and_keeps_nobody_from_leaving(fleet: Fleet) -> None:
    reachable, lost = fleet.keepers
    wrong = replace(
        lost.seen, access=replace(lost.access, authority=fleet.shop.authorities.poolers.certificate)
    )
    first, _ = fleet.poolers
    fleet.serve(first)
    load = Load()
    async with load.on(2, **reachable.connection()), load.on(2, **lost.connection()):
        await asyncio.sleep(0.5)
        fleet.serve(fleet.poolers[1])
        now = asyncio.get_running_loop().time()
        departure = Departure(fleet.shop.console(first), now, now + 3)
        outcome = await Keepers().drain(departure, lambda: [reachable.seen, wrong])
    assert not outcome.empty
    assert outcome.unreached.keys() == {wrong}
    assert "certificate verify failed" in outcome.unreached[wrong]


async def test_the_configuration_alone_empties_a_pooler_while_no_operator_runs(
    shop: Shop, tmp_path: Path
) -> None:
    load = Load()
    async with make_fleet(shop, tmp_path, keepers=0) as fleet:
        with keeper(7, tmp_path, shop, fleet.balancer, server_lifetime=3) as alone:
            async with load.on(6, 0.01, **alone.connection()):
                await asyncio.sleep(0.5)
                first, second = fleet.poolers
                fleet.serve(second)
                await asyncio.sleep(1)
                assert first.process is not None
                first.process.send_signal(signal.SIGTERM)
                assert await ended(first, 8) == 0
    assert load.failures == []


async def test_direct_clients_stay_until_shortly_before_the_end_then_the_longest_idle_goes_first(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "CLOSING_SECONDS", 3.0)
    first, _ = fleet.poolers
    connections = [await psycopg.AsyncConnection.connect(**fleet.shop.connection(first, WEB)) for _ in range(4)]
    busy, *idle = connections
    await busy.execute("BEGIN")
    await busy.execute("SELECT 1")
    for connection in reversed(idle):
        await connection.execute("SELECT 1")
        await asyncio.sleep(1.1)
    lost: list[psycopg.AsyncConnection[Any]] = []
    draining = asyncio.create_task(fleet.leave(first, grace=9, pre_stop=3))
    begun = time.monotonic()
    while len(lost) < len(idle):
        for connection in idle:
            if connection not in lost and await is_closed(connection):
                lost.append(connection)
                assert time.monotonic() - begun > 5.5
        await asyncio.sleep(0.01)
    assert lost == idle[::-1]
    await busy.execute("SELECT 1")
    await busy.execute("COMMIT")
    await busy.close()
    assert await draining == Drained(True, {})
    assert await ended(first, 1) == 0
    assert time.monotonic() - begun < 9


async def is_closed(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether the other end has closed it; nothing is sent."""
    pgconn = connection.pgconn
    with contextlib.suppress(psycopg.OperationalError):
        pgconn.consume_input()
        return pgconn.status != psycopg.pq.ConnStatus.OK
    return True


async def test_the_process_ends_by_itself_although_a_session_stays(fleet: Fleet) -> None:
    first, _ = fleet.poolers
    entry = fleet.shop.session_entry(WEB)
    session = await psycopg.AsyncConnection.connect(**fleet.shop.connection(first, WEB, entry))
    await session.execute("SELECT 1")
    begun = time.monotonic()
    outcome = await fleet.leave(first, grace=4, pre_stop=1)
    assert not outcome.empty
    assert await ended(first, 1) == 0
    assert 3 < time.monotonic() - begun < 4
    await session.close()


async def test_a_session_through_a_keeper_does_not_hold_up_the_others(fleet: Fleet) -> None:
    first, second = fleet.poolers
    [one, _] = fleet.keepers
    fleet.serve(first)
    async with await psycopg.AsyncConnection.connect(**one.connection(SESSION)) as session:
        await session.execute("SELECT 1")
        fleet.serve(second)
        begun = time.monotonic()
        assert await Keepers().retire(one.seen) is None
        assert time.monotonic() - begun < 1
        await session.execute("SELECT 1")


async def test_a_pooler_that_is_shutting_down_already_has_every_keeper_retire(fleet: Fleet) -> None:
    """An operator that starts in the middle of a drain can't ask it any more."""
    first, second = fleet.poolers
    load = Load()
    async with load.on(4, 0.01, **fleet.keepers[0].connection()):
        await asyncio.sleep(0.5)
        fleet.serve(second)
        await asyncio.sleep(1)  # preStop: who is in the middle of a login ends it before the SIGTERM
        assert first.process is not None
        first.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        now = asyncio.get_running_loop().time()
        departure = Departure(fleet.shop.console(first), now - 6, now + 20)
        outcome = await Keepers().drain(departure, lambda: [item.seen for item in fleet.keepers])
        assert outcome.unreached == {}
        assert await ended(first, 1) == 0
        assert asyncio.get_running_loop().time() - now < 10, "their lifetime of 20 s would have done it"
    assert load.failures == []


async def test_a_lifetime_that_a_killed_operator_left_at_zero_is_restored(fleet: Fleet) -> None:
    one = fleet.keepers[0]
    async with console.connect(one.access, 3) as opened:
        await opened.execute("SET server_lifetime = 0")
    assert await Keepers().retire(one.seen) is None
    assert await lifetime(one) == "20"


async def test_a_drain_that_is_cancelled_leaves_no_keeper_with_a_lifetime_of_zero(fleet: Fleet) -> None:
    one = fleet.keepers[0]
    async with await psycopg.AsyncConnection.connect(**one.connection()) as app:
        await app.execute("BEGIN")
        await app.execute("SELECT 1")
        retiring = asyncio.create_task(Keepers().retire(one.seen))
        while await lifetime(one) != "0":
            await asyncio.sleep(0.01)
        retiring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await retiring
        assert await lifetime(one) == "20"
        await app.execute("COMMIT")


async def test_keepers_that_the_network_hides_are_found_by_their_login(fleet: Fleet) -> None:
    """Some networks replace the source address: here the operator believes the keeper elsewhere."""
    first, _ = fleet.poolers
    one = fleet.keepers[0]
    hidden = KeeperConsole("hidden", "web", "hidden", one.seen.login, replace(one.access, ip="127.0.0.1"))
    retired: list[str] = []

    class Recording(Keepers):
        async def retire(self, keeper: KeeperConsole) -> str | None:
            retired.append(keeper.access.ip)
            return await super().retire(one.seen)

    fleet.serve(first)
    async with await psycopg.AsyncConnection.connect(**one.connection()) as app:
        await app.execute("SELECT 1")
        fleet.serve(fleet.poolers[1])
        now = asyncio.get_running_loop().time()
        outcome = await Recording().drain(
            Departure(fleet.shop.console(first), now - 6, now + 10), lambda: [hidden]
        )
        assert outcome == Drained(True, {})
        await app.execute("SELECT 1")
    assert retired == ["127.0.0.1"]
