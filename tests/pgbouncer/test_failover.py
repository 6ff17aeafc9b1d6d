"""An upstream that moves, by name or behind a Service's address: real clients at work, two real servers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from poolkeeper.observed.upstream import Whereabouts
from poolkeeper.pgbouncer import console
from poolkeeper.plan.addresses import Reconnect
from poolkeeper.workers import failover
from tests.pgbouncer.keepers import Balancer, Load
from tests.pgbouncer.names import Names, serving
from tests.pgbouncer.processes import Pooler, Postgres, pooler, postgres
from tests.pgbouncer.shop import WEB, Shop

HOST = "pg.data.svc"
NEW_ADDRESS = "127.0.0.77"
SERVICE_ADDRESS = "127.1.0.1"
WHERE = "SELECT host(inet_server_addr())"


@pytest.fixture(scope="module")
def old(server: Postgres) -> Postgres:
    return server


@pytest.fixture(scope="module")
def new(old: Postgres, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """The second server: another address, the same port, the same role and database."""
    with postgres(tmp_path_factory.mktemp("second"), NEW_ADDRESS, old.port) as made:
        made.create_role(shop.target.user, shop.target.password)
        made.create_database(shop.target.database)
        yield made


@dataclass
class Place:
    """A pooler whose upstream has a name, which a test moves."""

    shop: Shop
    pooler: Pooler
    names: Names
    old: Postgres
    new: Postgres

    def task(self, lookup_seconds: float = 2.0) -> Reconnect:
        now = Whereabouts(HOST, self.names.resolve(HOST))
        left = frozenset({self.old.host}) - now.addresses
        return Reconnect(
            "uid", "pod", self.shop.console(self.pooler), now, left, False, lookup_seconds, serves=True
        )

    def connection(self, entry: str | None = None) -> dict[str, Any]:
        return self.shop.connection(self.pooler, WEB, entry)

    async def servers(self) -> list[dict[str, str]]:
        return await servers(self.shop, self.pooler)


async def servers(shop: Shop, of: Pooler) -> list[dict[str, str]]:
    async with console.connect(shop.console(of), 3) as opened:
        return [row for row in await opened.show("SERVERS") if row["database"] != "pgbouncer"]


@contextlib.contextmanager
def named(shop: Shop, directory: Path, names: Names, port: int, **parameters: str) -> Iterator[Pooler]:
    target = replace(shop.target, host=HOST, port=port)
    names.etc(directory)
    with pooler(directory, shop.configuration(target=target, parameters=parameters)) as running:
        yield running


@pytest.fixture
def place(shop: Shop, old: Postgres, new: Postgres, tmp_path: Path) -> Iterator[Place]:
    with (
        serving(pg_data_svc=old.host) as names,
        named(shop, tmp_path, names, old.port, default_pool_size="4") as running,
    ):
        yield Place(shop, running, names, old, new)


async def where(connection: psycopg.AsyncConnection[Any]) -> str:
    [row] = await (await connection.execute(WHERE)).fetchall()
    return str(row[0])


@contextlib.asynccontextmanager
async def app(place: Place, entry: str | None = None) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(**place.connection(entry)) as connection:
        yield connection


async def test_without_it_connections_stay_where_the_upstream_was(place: Place) -> None:
    async with app(place) as connection:
        assert await where(connection) == place.old.host
        place.names.addresses[HOST] = (NEW_ADDRESS,)
        await asyncio.sleep(4)
        assert await where(connection) == place.old.host


async def test_connections_under_load_follow_a_name_within_seconds_and_nobody_fails(place: Place) -> None:
    load = Load()
    async with app(place) as connection, load.on(8, **place.connection()):
        await asyncio.sleep(0.5)
        assert {row["addr"] for row in await place.servers()} == {place.old.host}
        place.names.addresses[HOST] = (NEW_ADDRESS,)
        began = time.monotonic()
        following = asyncio.create_task(failover.follow(place.task()))
        while {row["addr"] for row in await place.servers()} != {NEW_ADDRESS}:
            assert time.monotonic() - began < 10
            await asyncio.sleep(0.05)
        print(f"all connections lead to the new address after {time.monotonic() - began:.2f} s")
        assert await following == 0
        print(f"seen after {time.monotonic() - began:.2f} s")
        assert await where(connection) == NEW_ADDRESS
        before = load.done
        await asyncio.sleep(0.5)
        assert load.done > before
    assert load.failures == []


async def test_idle_connections_are_closed_and_the_next_query_goes_to_the_new_address(place: Place) -> None:
    async with app(place) as connection:
        assert await where(connection) == place.old.host
        place.names.addresses[HOST] = (NEW_ADDRESS,)
        began = time.monotonic()
        following = asyncio.create_task(failover.follow(place.task()))
        while await place.servers():
            assert time.monotonic() - began < 2
            await asyncio.sleep(0.05)
        assert await following == 0
        assert time.monotonic() - began < 4
        assert await where(connection) == NEW_ADDRESS


async def test_a_transaction_ends_where_it_began_and_is_not_waited_for(place: Place) -> None:
    async with app(place) as connection:
        async with connection.transaction():
            assert await where(connection) == place.old.host
            place.names.addresses[HOST] = (NEW_ADDRESS,)
            assert await asyncio.wait_for(failover.follow(place.task()), 5) == 0
            assert await where(connection) == place.old.host
        assert await where(connection) == NEW_ADDRESS


async def test_a_session_stays_until_it_ends(place: Place) -> None:
    entry = place.shop.session_entry(WEB)
    async with app(place, entry) as session:
        assert await where(session) == place.old.host
        place.names.addresses[HOST] = (NEW_ADDRESS,)
        assert await asyncio.wait_for(failover.follow(place.task()), 5) == 0
        assert await where(session) == place.old.host
    async with app(place, entry) as session:
        assert await where(session) == NEW_ADDRESS


async def test_a_session_is_closed_after_its_transaction_where_the_parameters_say_so(
    shop: Shop, old: Postgres, new: Postgres, tmp_path: Path
) -> None:
    with (
        serving(pg_data_svc=old.host) as names,
        named(shop, tmp_path, names, old.port, server_fast_close="1") as running,
    ):
        place = Place(shop, running, names, old, new)
        async with app(place, shop.session_entry(WEB)) as session:
            async with session.transaction():
                assert await where(session) == old.host
                names.addresses[HOST] = (NEW_ADDRESS,)
                assert await asyncio.wait_for(failover.follow(place.task()), 5) == 0
                assert await where(session) == old.host
            await asyncio.sleep(1)
            with pytest.raises(psycopg.OperationalError):
                await where(session)


async def test_a_resolver_that_still_tells_the_old_address_is_asked_until_it_does_not(place: Place) -> None:
    """What the operator knows already the poolers' resolver may learn later."""
    load = Load()
    async with load.on(4, **place.connection()):
        await asyncio.sleep(0.3)
        told = place.task()
        early = replace(
            told, whereabouts=Whereabouts(HOST, frozenset({NEW_ADDRESS})), left=frozenset({place.old.host})
        )
        following = asyncio.create_task(failover.follow(early))
        await asyncio.sleep(4)
        assert not following.done()
        place.names.addresses[HOST] = (NEW_ADDRESS,)
        assert await asyncio.wait_for(following, 15) == 0
        assert {row["addr"] for row in await place.servers()} == {NEW_ADDRESS}
    assert load.failures == []


async def test_a_resolver_that_never_learns_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "PATIENCE_SECONDS", 2.0)
    told = place.task()
    wrong = replace(
        told, whereabouts=Whereabouts(HOST, frozenset({NEW_ADDRESS})), left=frozenset({place.old.host})
    )
    load = Load()
    async with load.on(2, **place.connection()):
        await asyncio.sleep(0.3)
        assert await asyncio.wait_for(failover.follow(wrong), 8) > 0
    assert load.failures == []


@pytest.mark.parametrize("late", [0.0, 0.5, 1.8])
async def test_new_endpoints_behind_an_address_that_stays(
    shop: Shop, old: Postgres, new: Postgres, tmp_path: Path, late: float
) -> None:
    """What kube-proxy does: it leads new connections to the new endpoint, so many seconds late on this node."""
    load = Load()
    async with Balancer().running() as service:
        service.serving = [(old.host, old.port)]
        with (
            serving(pg_data_svc=SERVICE_ADDRESS) as names,
            named(shop, tmp_path, names, service.port, default_pool_size="4") as running,
        ):
            place = Place(shop, running, names, old, new)
            async with app(place) as connection, load.on(8, **place.connection()):
                await asyncio.sleep(0.5)
                assert await where(connection) == old.host
                now = Whereabouts(HOST, frozenset({SERVICE_ADDRESS}), frozenset({new.host}))
                task = replace(place.task(), whereabouts=now, left=frozenset({old.host}), behind_service=True)
                following = asyncio.create_task(failover.follow(task))
                await asyncio.sleep(late)
                service.serving = [(new.host, new.port)]
                assert await asyncio.wait_for(following, 6) == 0
                assert backends(old, shop) == 0
                assert backends(new, shop) > 0
                assert await where(connection) == new.host
    assert load.failures == []


def backends(of: Postgres, shop: Shop) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = {}"
    [(count,)] = of.execute(sql.SQL(query).format(sql.Literal(shop.target.user)))
    return int(count)
