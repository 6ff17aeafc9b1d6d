"""A server measured by a plain role: settings, connections, limits; and what is said where it can't be."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from poolkeeper.budget.servers import Backend
from poolkeeper.upstream.target import Target
from poolkeeper.workers.upstream import Unmeasured, measuring
from tests.pgbouncer.processes import Postgres, eventually, postgres
from tests.pgbouncer.shop import Shop

SECONDS = 3.0


@contextlib.contextmanager
def connected(server: Postgres, user: str, password: str, database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(
        host=server.host, port=server.port, user=user, password=password, dbname=database, autocommit=True
    ) as connection:
        yield connection


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Postgres]:
    """A server of the test's own."""
    with postgres(tmp_path) as made:
        made.create_role("shop_owner", "secret")
        made.create_database("shop")
        yield made


def target(server: Postgres) -> Target:
    return Target(server.host, server.port, "shop", "shop_owner", "secret", "disable", None)


async def test_a_plain_role_reads_the_settings_and_who_it_is(shop: Shop, server: Postgres) -> None:
    assert server.execute("SELECT pg_has_role('shop_owner', 'pg_monitor', 'member')") == [(False,)]
    [(system,)] = server.execute("SELECT system_identifier FROM pg_control_system()")
    async with measuring(shop.target, SECONDS) as meter:
        first = await meter.identify()
        assert first[0] == str(system)
        measured = await meter.measure()
    shown = [
        int(server.execute(f"SHOW {name}")[0][0])
        for name in ("max_connections", "superuser_reserved_connections", "reserved_connections")
    ]
    assert [measured.max_connections, measured.superuser_reserved, measured.reserved] == shown == [60, 3, 0]
    async with measuring(replace(shop.target, sslmode="disable"), SECONDS) as again:
        assert await again.identify() == first


async def test_every_client_is_counted_and_nothing_else(own: Postgres) -> None:
    with contextlib.ExitStack() as stack:
        others = [
            stack.enter_context(connected(own, "postgres", own.password, "postgres")),
            stack.enter_context(connected(own, "shop_owner", "secret", "shop")),
        ]
        pids = [other.info.backend_pid for other in others]
        async with measuring(target(own), SECONDS) as meter:
            await meter.identify()
            backends = {backend.pid: backend for backend in (await meter.measure()).backends}
            assert set(backends) == {*pids, meter.pid}
            # Of other users' backends a plain role sees no address.
            assert backends[pids[0]] == Backend(pids[0], "postgres", "postgres", "")
            assert backends[pids[1]] == Backend(pids[1], "shop_owner", "shop", "127.0.0.1")
            assert backends[meter.pid] == Backend(meter.pid, "shop_owner", "shop", "127.0.0.1")
            others[0].close()
            eventually(lambda: (pids[0],) not in own.execute("SELECT pid FROM pg_stat_activity"))
            assert pids[0] not in {backend.pid for backend in (await meter.measure()).backends}


async def test_limits_of_roles_and_databases_are_seen(own: Postgres) -> None:
    own.execute("ALTER ROLE shop_owner CONNECTION LIMIT 12")
    own.execute("ALTER ROLE postgres CONNECTION LIMIT 5")
    own.create_role("nobody", "x", "LOGIN CONNECTION LIMIT 0")
    own.execute("ALTER DATABASE shop CONNECTION LIMIT 20")
    async with measuring(target(own), SECONDS) as meter:
        await meter.identify()
        measured = await meter.measure()
    # Superusers are above limits.
    assert measured.role_limits == {"shop_owner": 12, "nobody": 0}
    assert measured.database_limits == {"shop": 20}


async def test_where_the_system_is_not_told_the_address_is_all_that_is_known(own: Postgres) -> None:
    own.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC", "shop")
    async with measuring(target(own), SECONDS) as meter:
        system, instance = await meter.identify()
        assert system == f"127.0.0.1:{own.port}"
        assert instance.endswith(f" {own.port}")
        assert (await meter.measure()).max_connections == 60


async def test_a_server_that_is_gone_says_so_in_time(tmp_path: Path) -> None:
    with postgres(tmp_path) as made:
        made.create_role("shop_owner", "secret")
        made.create_database("shop")
        async with measuring(target(made), 1.0) as meter:
            await meter.identify()
            made.execute(f"SELECT pg_terminate_backend({meter.pid})")
            with pytest.raises(Unmeasured):
                await meter.measure()
        async with measuring(target(made), 1.0) as meter:
            await meter.identify()
            began = time.monotonic()
            # In a chroot, but in no namespace of pids of its own: the numbers are the same.
            os.kill(meter.pid, signal.SIGSTOP)
            try:
                with pytest.raises(Unmeasured, match="no answer within 1 s"):
                    await meter.measure()
                assert time.monotonic() - began < 1.6
            finally:
                os.kill(meter.pid, signal.SIGCONT)
    with pytest.raises(Unmeasured, match="start the server") as caught:
        async with measuring(target(made), 1.0):
            raise AssertionError("nobody is there")
    assert "secret" not in str(caught.value)


async def test_a_server_without_a_free_slot_says_so_with_a_remedy(own: Postgres) -> None:
    own.execute("ALTER ROLE shop_owner CONNECTION LIMIT 0")
    with pytest.raises(Unmeasured, match="raise max_connections"):
        async with measuring(target(own), SECONDS):
            raise AssertionError("it is full")
