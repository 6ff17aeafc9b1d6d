"""A keeper's files, as they are, on a real PgBouncer in front of a real pooler: who gets in, and how far."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolkeeper.consumers.entries import entries
from poolkeeper.credentials.certificates import Certificate, issue
from poolkeeper.credentials.mint import authorities
from poolkeeper.pgbouncer import console, keeper_configuration
from poolkeeper.pgbouncer.configuration import POD_FILE, configuration, kept_files
from tests.pgbouncer.keeper_process import Keeper, keeper, keeper_files, resource
from tests.pgbouncer.processes import DIRECTORY, Pooler, Postgres, pooler
from tests.pgbouncer.shop import FULL_NAME, NAME, WEB, Shop


@pytest.fixture
def behind(shop: Shop, tmp_path: Path) -> Iterator[Pooler]:
    (mounted := tmp_path / "pooler").mkdir()
    with pooler(mounted, shop.configuration()) as made:
        yield made


@pytest.fixture
def own(shop: Shop, behind: Pooler, tmp_path: Path) -> Iterator[Keeper]:
    with keeper(tmp_path / "keeper", shop, behind.port, keeper_files(shop)) as made:
        yield made


def test_an_app_connects_on_loopback_without_a_password(own: Keeper, behind: Pooler, shop: Shop) -> None:
    with own.connect() as app:
        assert app.execute("SELECT current_user, current_database()").fetchone() == ("shop_owner", "shop")
    with psycopg.connect(f"postgresql://app@[::1]:{own.port}/shop?sslmode=disable") as app:
        assert app.execute("SELECT 1").fetchone() == (1,)


async def test_the_keeper_speaks_tls_to_the_pooler_and_shows_its_whole_configuration(
    own: Keeper, behind: Pooler, shop: Shop
) -> None:
    with own.connect() as app:
        app.execute("SELECT 1")
        async with console.connect(shop.console(behind), 3) as opened:
            rows = [row for row in await opened.show("CLIENTS") if row["database"] != "pgbouncer"]
        assert [(row["user"], row["database"]) for row in rows] == [(shop.login(WEB).name, shop.entry(WEB))]
        assert rows[0]["tls"].startswith("TLS")
    assert (await console.apply(own.access, own.write(keeper_files(shop)), 3)).problem is None
    words = (" WARNING ", " ERROR ", " FATAL ")
    assert [line for line in own.log().splitlines() if any(word in line for word in words)] == []


def answer(port: int, source: str, user: str, database: str, target: str = "127.0.0.1") -> bytes:
    """The first message to a startup packet that comes from `source`: R for welcome, E for an error."""
    body = struct.pack("!I", 196608) + f"user\0{user}\0database\0{database}\0\0".encode()
    with socket.create_connection((target, port), 5, source_address=(source, 0)) as client:
        client.sendall(struct.pack("!I", len(body) + 4) + body)
        return client.recv(4096)


def test_from_another_address_nobody_uses_the_database(own: Keeper) -> None:
    assert answer(own.port, "127.0.0.1", "app", "shop")[:1] == b"R"
    for source in ("127.0.0.2", "127.0.0.6"):
        for database in ("shop", "shop.session", "pgbouncer"):
            said = answer(own.port, source, "app", database)
            assert said[:1] == b"E", said


def test_other_users_and_databases_are_refused_on_loopback(own: Keeper, shop: Shop) -> None:
    login = shop.login(WEB).name
    for user, database in (
        ("postgres", "shop"),
        (login, "shop"),
        ("poolkeeper", "shop"),
        ("app", "pgbouncer"),
        ("app", shop.entry(WEB)),
        ("poolkeeper", "pgbouncer"),  # without TLS
    ):
        assert answer(own.port, "127.0.0.1", user, database)[:1] == b"E", (user, database)


async def test_the_console_takes_tls_and_its_own_password(own: Keeper, behind: Pooler, shop: Shop) -> None:
    async with console.connect(own.access, 3) as opened:
        assert {row["name"] for row in await opened.show("DATABASES")} == {"pgbouncer", "shop", "shop.session"}
    assert shop.logins.console is not None
    for password in ("wrong", shop.logins.console.password):
        with pytest.raises(console.ConsoleError) as caught:
            async with console.connect(replace(own.access, password=password), 3):
                pass
        assert caught.value.reason == "AuthenticationFailed"
    # The password alone, without TLS, opens neither this console nor the pooler's.
    for port in (own.port, behind.port):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(
                host="127.0.0.1",
                port=port,
                user="poolkeeper",
                password=own.access.password,
                dbname="pgbouncer",
                sslmode="disable",
            )


def another_name(shop: Shop) -> Certificate:
    other = "other-pooler.data.svc"
    return issue(shop.authorities.poolers, other, datetime.now(UTC), f"{other}.cluster.local")


def a_short_name_alone(shop: Shop) -> Certificate:
    return issue(shop.authorities.poolers, NAME, datetime.now(UTC))


def another_authority(shop: Shop) -> Certificate:
    return issue(authorities().poolers, NAME, datetime.now(UTC), FULL_NAME)


def a_keepers_certificate(shop: Shop) -> Certificate:
    return issue(shop.authorities.keepers, NAME, datetime.now(UTC), FULL_NAME)


@pytest.mark.parametrize("forge", [another_name, a_short_name_alone, another_authority, a_keepers_certificate])
def test_a_pooler_with_another_certificate_gets_no_password(forge: Any, shop: Shop, tmp_path: Path) -> None:
    certificate = forge(shop)
    (mounted := tmp_path / "pooler").mkdir()
    rows = entries(shop.target, [WEB], "transaction")
    false = configuration(shop.target, rows, shop.logins, certificate, {}, DIRECTORY)
    with (
        pooler(mounted, false) as impostor,
        keeper(tmp_path / "keeper", shop, impostor.port, keeper_files(shop)) as own,
    ):
        with pytest.raises(psycopg.OperationalError):
            own.connect()
        assert "TLS handshake error" in own.log()
        assert shop.login(WEB).name not in impostor.log()


def test_prepared_statements_go_through_both_tiers_on_any_backend(own: Keeper) -> None:
    clients = [own.connect(prepare_threshold=0) for _ in range(3)]
    try:
        backends = set()
        for number in range(60):
            client, other = clients[number % 3], clients[(number + 1) % 3]
            query = "SELECT %s::int + %s::int, pg_backend_pid()"
            with other.transaction():  # keeps one backend busy, so that the client meets another
                busy = other.execute(query, (0, number)).fetchone()
                row = client.execute(query, (number, 1)).fetchone()
            assert row is not None
            assert busy is not None
            assert (row[0], busy[0]) == (number + 1, number)
            backends |= {row[1], busy[1]}
        assert len(backends) > 1
    finally:
        for client in clients:
            client.close()


async def test_a_cancel_goes_through_both_tiers(own: Keeper) -> None:
    for _ in range(10):
        with own.connect() as client:
            sleeping = asyncio.create_task(asyncio.to_thread(client.execute, "SELECT pg_sleep(30)"))
            await asyncio.sleep(0.2)
            client.cancel_safe(timeout=5)
            with pytest.raises(psycopg.errors.QueryCanceled):
                await sleeping
            assert client.execute("SELECT 1").fetchone() == (1,)


def test_the_session_database_keeps_a_session(own: Keeper) -> None:
    with own.connect("shop.session") as client, own.connect("shop.session") as other:
        client.execute("CREATE TEMPORARY TABLE mine (n int)")
        client.execute("SELECT pg_advisory_lock(7)")
        for _ in range(5):
            assert other.execute("SELECT pg_try_advisory_lock(7)").fetchone() == (False,)
            assert client.execute("SELECT count(*) FROM mine").fetchone() == (0,)
    with own.connect("shop.session") as later:
        assert later.execute("SELECT to_regclass('mine')").fetchone() == (None,)


def test_pg_stat_activity_names_the_consumer_unless_the_client_names_itself(own: Keeper) -> None:
    query = "SELECT current_setting('application_name')"
    with own.connect() as unnamed:
        assert unnamed.execute(query).fetchone() == ("web/database",)
    with own.connect(application_name="report") as named:
        assert named.execute(query).fetchone() == ("report",)


async def test_a_change_arrives_by_reload_and_leaves_port_and_clients_alone(own: Keeper, shop: Shop) -> None:
    before = {path.name: path.read_text() for path in own.directory.iterdir() if path.suffix != ".log"}
    with own.connect() as client:
        with client.transaction():
            backend = client.execute("SELECT pg_backend_pid()").fetchone()
            changed = keeper_files(shop, resource(keeper={"poolSize": 3}, pooler={"drainSeconds": 90}))
            here = own.write(changed, kept_files(before, changed.generation))
            assert (await console.apply(own.access, here, 3)).problem is None
            assert client.execute("SELECT pg_backend_pid()").fetchone() == backend
        assert client.execute("SELECT 1").fetchone() == (1,)
    async with console.connect(own.access, 3) as opened:
        shown = await opened.settings()
    assert (shown["default_pool_size"], shown["server_lifetime"]) == ("3", "60")
    assert shown["listen_port"] == str(own.port)


async def test_a_reload_with_an_empty_pod_file_is_harmless(own: Keeper, shop: Shop) -> None:
    """kubelet writes it so where the annotation is gone."""
    (own.directory / POD_FILE).write_text("")
    async with console.connect(own.access, 3) as opened:
        await opened.reload()
    with own.connect() as client:
        assert client.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("name", ["Shop_2.x", "all", "sameuser", "replication", "my shop/ä", "d" * 63])
def test_databases_of_any_name_are_reached(name: str, server: Postgres, shop: Shop, tmp_path: Path) -> None:
    server.create_database(name)
    named = replace(shop, target=replace(shop.target, database=name))
    main, session = keeper_configuration.database_names(name)
    (mounted := tmp_path / "pooler").mkdir()
    with (
        pooler(mounted, named.configuration()) as running,
        keeper(tmp_path / "keeper", named, running.port, keeper_files(named, name=name)) as own,
    ):
        for database in (main, session):
            with own.connect(database) as client:
                assert client.execute("SELECT current_database()").fetchone() == (name,)
