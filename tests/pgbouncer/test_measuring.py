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
from psycopg import sql

from poolkeeper.budget.servers import Backend, Measured
from poolkeeper.upstream import libpq
from poolkeeper.upstream.target import Target
from poolkeeper.workers import statements
from poolkeeper.workers.upstream import Unmeasured, measuring, probe
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


# Encodings and names

ENCODINGS = ("SQL_ASCII", "LATIN1", "EUC_TW", "EUC_JIS_2004", "MULE_INTERNAL", "KOI8R", "WIN1258")
"""Python has no codec for some of them, and a conversion to UTF-8 exists for most."""


def execute_bytes(server: Postgres, statement: bytes, database: str) -> None:
    with connected(server, "postgres", server.password, database) as connection:
        result = connection.pgconn.exec_(statement)
        assert not result.error_message, result.error_message


async def seen(where: Target) -> tuple[tuple[str, str], Measured, str]:
    """Everything that is read of a server; of its backends, how many there are."""
    async with measuring(where, SECONDS) as meter:
        identity = await meter.identify()
        measured = await meter.measure()
        [own] = [item for item in measured.backends if item.pid == meter.pid]
        assert (own.user, own.database) == (where.user, where.database)
        assert await meter.snapshot()
        fingerprint = await meter.schema()
        assert set(await meter.backends([meter.pid, 1])) == {meter.pid}
        return identity, replace(measured, backends=()), fingerprint


async def test_databases_of_any_encoding_show_the_same_server_and_the_same_names_f3_f4(own: Postgres) -> None:
    for encoding in ENCODINGS:
        own.execute(f"CREATE DATABASE {encoding} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    names = {
        b"caf\xe9": "caf\udce9",
        b"\xff": "\udcff",
        b' a ""quote"" \' and \\ % ': ' a "quote" \' and \\ % ',
        b"x" * 63: "x" * 63,
        "ïé 東京".encode(): "ïé 東京",
    }
    for number, name in enumerate(names):
        execute_bytes(own, b'CREATE ROLE "%s" CONNECTION LIMIT %d' % (name, number), "sql_ascii")
        quoted = b'CREATE DATABASE "%s" TEMPLATE template0 CONNECTION LIMIT %d' % (name, number)
        execute_bytes(own, quoted, "sql_ascii")
    plain = await seen(target(own))
    limits = {name: number for number, name in enumerate(names.values())}
    assert (plain[1].role_limits, plain[1].database_limits) == (limits, limits)
    for encoding in ENCODINGS:
        where = replace(target(own), database=encoding.lower())
        assert (await probe(where, SECONDS)).reachable
        assert await seen(where) == plain, encoding


async def test_a_login_with_an_odd_name_at_a_database_with_an_odd_name_is_measured(hostile: Postgres) -> None:
    for name in ("b\"c'd\\ %$ ", "y" * 63, "ïé 東京"):
        hostile.create_role(name, "secret")
        hostile.create_database(name)
        await seen(replace(target(hostile), user=name, database=name))


async def test_a_refusal_in_a_foreign_encoding_is_told(hostile: Postgres) -> None:
    hostile.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    async with measuring(replace(target(hostile), database="latin"), SECONDS) as meter:
        with pytest.raises(Unmeasured, match="does not exist"):
            await meter._ask('SELECT "caf\udce9"'.encode(errors="surrogateescape").decode("latin1"))
        await meter.identify()


# Settings and objects of a hostile role

EVIL = """
CREATE SCHEMA evil AUTHORIZATION shop_owner;
CREATE FUNCTION evil.current_setting(text) RETURNS text LANGUAGE sql AS $$ SELECT '100000' $$;
CREATE FUNCTION evil.current_setting(text, boolean) RETURNS text LANGUAGE sql AS $$ SELECT '0' $$;
CREATE FUNCTION evil.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS $$ SELECT '' $$;
CREATE FUNCTION evil.pg_postmaster_start_time() RETURNS timestamptz LANGUAGE sql AS $$ SELECT now() $$;
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT now() $$;
CREATE FUNCTION evil.pg_control_system(OUT system_identifier bigint) LANGUAGE sql AS $$ SELECT 1::bigint $$;
CREATE FUNCTION evil.txid_current_snapshot() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$;
CREATE FUNCTION evil.hashtextextended(text, bigint) RETURNS bigint LANGUAGE sql AS $$ SELECT 1::bigint $$;
CREATE FUNCTION evil.host(inet) RETURNS text LANGUAGE sql AS $$ SELECT '6.6.6.6' $$;
CREATE FUNCTION evil.pg_terminate_backend(int) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
CREATE FUNCTION evil.starts_with(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
CREATE FUNCTION evil.never(name, text) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$;
CREATE FUNCTION evil.never(name, name) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$;
CREATE FUNCTION evil.never(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$;
CREATE FUNCTION evil.never(int, int) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$;
CREATE FUNCTION evil.never(oid, int) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$;
CREATE FUNCTION evil.never(oid, oid) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$;
CREATE FUNCTION evil.never("char", "char") RETURNS boolean LANGUAGE sql AS $$ SELECT false $$;
CREATE FUNCTION evil.zero(timestamptz, timestamptz) RETURNS interval LANGUAGE sql AS $$ SELECT interval '0' $$;
CREATE FUNCTION evil.zero(numeric, int) RETURNS numeric LANGUAGE sql AS $$ SELECT 0::numeric $$;
CREATE OPERATOR evil.- (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = evil.zero);
CREATE OPERATOR evil.* (LEFTARG = numeric, RIGHTARG = int, FUNCTION = evil.zero);
CREATE VIEW evil.pg_stat_activity AS SELECT * FROM pg_catalog.pg_stat_activity WHERE false;
CREATE VIEW evil.pg_settings AS SELECT * FROM pg_catalog.pg_settings WHERE false;
CREATE VIEW evil.pg_roles AS SELECT * FROM pg_catalog.pg_roles WHERE false;
CREATE VIEW evil.pg_database AS SELECT * FROM pg_catalog.pg_database WHERE false;
CREATE VIEW evil.pg_class AS SELECT * FROM pg_catalog.pg_class WHERE false;
CREATE VIEW evil.pg_proc AS SELECT * FROM pg_catalog.pg_proc WHERE false;
CREATE DOMAIN evil.text AS pg_catalog.text CHECK (VALUE IS NULL);
CREATE DOMAIN evil.int8 AS bigint CHECK (VALUE IS NULL)
"""
"""What a role without any right but CREATE in its database can make of the names that a measurement uses."""
_COMPARED = ("name, text", "name, name", "text, text", "int, int", "oid, int", "oid, oid", '"char", "char"')


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server where the role has made a schema of its own, which no setting leads to yet."""
    with postgres(tmp_path_factory.mktemp("hostile")) as made:
        made.create_role("shop_owner", "secret", "LOGIN CONNECTION LIMIT 30")
        made.create_role("other", "secret", "NOLOGIN")
        made.create_database("shop")
        made.execute("GRANT other TO shop_owner")
        made.execute("CREATE TABLE stock (id int, name text)", "shop")
        made.execute(EVIL, "shop")
        for operator in ("=", "<>", ">="):
            for types in _COMPARED:
                left, right = types.split(", ")
                made.execute(
                    f"CREATE OPERATOR evil.{operator}"
                    f" (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = evil.never)",
                    "shop",
                )
        yield made


@pytest.fixture
def evil(hostile: Postgres) -> Iterator[Postgres]:
    yield hostile
    for of in SET_FOR:
        hostile.execute(f"ALTER {of} RESET ALL")


SET_FOR = ("ROLE shop_owner", "ROLE shop_owner IN DATABASE shop", "DATABASE shop")
SETTINGS = {
    "search_path": "evil, pg_catalog, public",
    "role": "other",
    "statement_timeout": "'1ms'",
    "default_transaction_read_only": "on",
    "DateStyle": "'SQL, DMY'",
    "bytea_output": "escape",
    "row_security": "off",
    "client_encoding": "EUC_TW",
    "extra_float_digits": "-15",
    "exit_on_error": "on",
    "session_authorization": "postgres",
}


@pytest.mark.parametrize("of", SET_FOR)
async def test_what_a_hostile_role_sets_changes_no_number(of: str, evil: Postgres) -> None:
    before = await seen(target(evil))
    assert (before[1].max_connections, before[1].role_limits) == (60, {"shop_owner": 30})
    for name, value in SETTINGS.items():
        evil.execute(f"ALTER {of} SET {name} = {value}")
        assert await seen(target(evil)) == before, name
        if name == "statement_timeout":  # with exit_on_error, a busy machine would end a session now and then
            evil.execute(f"ALTER {of} RESET {name}")
    evil.execute(f"ALTER {of} RESET ALL")
    evil.execute(f"ALTER {of} SET search_path = {SETTINGS['search_path']}")
    with connected(evil, "shop_owner", "secret", "shop") as victim:
        deceived = victim.execute("SELECT current_setting('max_connections')").fetchone()
        assert deceived == ("100000",), "the attack is none"


async def test_names_and_operators_are_postgresqls_own_whatever_the_search_path(
    evil: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second wall, behind the search_path that precedes every statement."""
    before = await seen(target(evil))
    evil.execute("ALTER ROLE shop_owner SET search_path = evil, pg_catalog, public")
    monkeypatch.setattr(statements, "PIN", "SELECT 1")
    assert await seen(target(evil)) == before
    with connected(evil, "shop_owner", "secret", "shop") as idle:
        idle.execute("SELECT 1")
        async with measuring(target(evil), SECONDS) as meter:
            pid = idle.info.backend_pid
            changed = (await meter.backends([pid]))[pid].changed
            assert not await meter.terminate(pid, str(int(changed) + 1))
            assert await meter.terminate(pid, changed)
        eventually(lambda: (pid,) not in evil.execute("SELECT pid FROM pg_stat_activity"))


async def test_every_setting_that_a_role_may_change_at_all_its_values_changes_no_number(evil: Postgres) -> None:
    """Nothing here is a list of dangerous settings: the server names all that there are."""
    before = await seen(target(evil))
    rows = evil.execute(
        "SELECT name, vartype, min_val, max_val, enumvals, boot_val FROM pg_settings WHERE context = 'user'"
        # No login succeeds without the library that it names.
        " AND name <> 'local_preload_libraries'"
    )
    assert len(rows) > 100
    with connected(evil, "postgres", evil.password, "postgres") as superuser:
        for turn in range(4):
            for name, kind, least, most, values, usual in rows:
                value = {
                    "bool": "off" if usual == "on" else "on",
                    "enum": (values or [""])[turn % len(values or [""])],
                    "string": ("evil", "", "x'y", usual or "")[turn],
                }.get(kind, (least, most, least, most)[turn])
                statement = sql.SQL("ALTER ROLE shop_owner SET {} = {}")
                with contextlib.suppress(psycopg.Error):  # a string that is none of its values
                    superuser.execute(statement.format(sql.Identifier(name), sql.Literal(value)))
            assert await seen(target(evil)) == before, turn


async def test_a_measurement_leaves_nothing_behind_in_its_session(evil: Postgres) -> None:
    """The upstream may be a pooler, which hands the session on to another client."""
    async with measuring(target(evil), SECONDS) as meter:
        asked = "SELECT pg_catalog.sum(pg_catalog.hashtextextended(pg_catalog.concat(name, setting), 0))"
        asked += " FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.<>) 'transaction_isolation'"
        before = (await libpq.execute(meter._connection, asked, SECONDS)).rows
        await meter.identify()
        await meter.measure()
        await meter.schema()
        await meter.backends([meter.pid])
        with pytest.raises(Unmeasured):
            await meter._ask("SELECT 1 / 0")
        assert (await libpq.execute(meter._connection, asked, SECONDS)).rows == before


async def test_a_trigger_at_login_changes_no_number(evil: Postgres) -> None:
    if int(evil.execute("SHOW server_version_num")[0][0]) < 170000:
        pytest.skip("there are such triggers since PostgreSQL 17")
    function = """
        CREATE FUNCTION evil.login() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_catalog.set_config('search_path', 'evil, pg_catalog', false);
            PERFORM pg_catalog.set_config('statement_timeout', '1ms', false);
            PERFORM pg_catalog.set_config('default_transaction_isolation', 'serializable', false);
        END $$
        """
    evil.execute(function, "shop")
    before = await seen(target(evil))
    evil.execute("CREATE EVENT TRIGGER evil ON login EXECUTE FUNCTION evil.login()", "shop")
    evil.execute("ALTER EVENT TRIGGER evil ENABLE ALWAYS", "shop")
    try:
        assert await seen(target(evil)) == before
    finally:
        evil.execute("DROP EVENT TRIGGER evil", "shop")
