"""A login at the server that fails decides over no client that can wait; a lost server costs one error."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql

from tests.datapath.stack import Route, Tier
from tests.datapath.wire import Refused, query, rows
from tests.pgbouncer.processes import Postgres, eventually
from tests.pgbouncer.shop import Shop

pytestmark = pytest.mark.smoke
CLIENTS = 8
OUTAGE_SECONDS = 3.0


@contextmanager
def another_password(server: Postgres, shop: Shop) -> Iterator[None]:
    """The role's password is not the poolers' meanwhile, and nobody is logged in any more."""
    role = shop.target.user
    server.create_role(role, "another password")
    end_sessions(server, role)
    try:
        yield
    finally:
        server.create_role(role, shop.target.password)


@contextmanager
def connection_limit(server: Postgres, shop: Shop) -> Iterator[None]:
    """The server refuses the role meanwhile, as one that is full does."""
    role = sql.Identifier(shop.target.user)
    server.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT 0").format(role))
    end_sessions(server, shop.target.user)
    try:
        yield
    finally:
        server.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT -1").format(role))


def end_sessions(server: Postgres, role: str) -> None:
    """And see them gone: a query that still reached one would fail of that."""
    sessions = sql.SQL("FROM pg_stat_activity WHERE usename = {}").format(sql.Literal(role))
    server.execute(sql.SQL("SELECT pg_terminate_backend(pid) {}").format(sessions))
    eventually(lambda: server.execute(sql.SQL("SELECT count(*) {}").format(sessions)) == [(0,)])


OUTAGES = {"password": another_password, "connection limit": connection_limit}


@pytest.mark.parametrize("outage", OUTAGES)
def test_c13_clients_wait_while_logins_at_the_server_fail_and_then_are_served(
    outage: str, tier: Tier, server: Postgres, shop: Shop
) -> None:
    route = tier.transaction
    ready, refused = threading.Barrier(CLIENTS + 1), threading.Event()

    def client(number: int) -> int:
        with psycopg.connect(**route.libpq, autocommit=True) as connection:
            connection.execute("SELECT 1")
            ready.wait()
            refused.wait()
            # One after the other, so that some come when a login has failed already.
            time.sleep(number * OUTAGE_SECONDS / CLIENTS)
            return int(connection.execute("SELECT 1 + 1").fetchone()[0])  # type: ignore[index]

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pool.submit(client, number) for number in range(CLIENTS)]
        ready.wait()
        with OUTAGES[outage](server, shop):
            refused.set()
            time.sleep(OUTAGE_SECONDS)
        assert [answer.result(30) for answer in answers] == [2] * CLIENTS


def test_c14_a_pause_that_meets_a_login_at_the_server_fails_no_client(tier: Tier, server: Postgres) -> None:
    route, console = tier.transaction, tier.console
    stop = threading.Event()

    def client() -> int:
        done = 0
        with psycopg.connect(**route.libpq, autocommit=True) as connection:
            while not stop.is_set():
                connection.execute("SELECT 1")
                done += 1
        return done

    with ThreadPoolExecutor(CLIENTS) as pool:
        counts = [pool.submit(client) for _ in range(CLIENTS)]
        for round_ in range(12):
            # Connections are opened anew all the time, so that pauses meet logins.
            console.run("RECONNECT")
            time.sleep(0.002 * round_)
            console.run(f'PAUSE "{route.database}"')
            time.sleep(0.2)
            console.run(f'RESUME "{route.database}"')
            time.sleep(0.2)
        stop.set()
        assert all(count.result(30) > 0 for count in counts)


def test_c13_a_statement_whose_server_is_lost_gets_one_error(route: Route, server: Postgres) -> None:
    with closing(route.connect()) as connection:
        connection.run("BEGIN")
        [(pid,)] = rows(connection.run("SELECT pg_backend_pid()"))
        connection.send(query("SELECT pg_sleep(20)"))
        time.sleep(0.3)
        server.execute(f"SELECT pg_terminate_backend({pid})")
        errors = 0
        while (got := connection.receive(10)) is not None:
            errors += got.kind == "E"
        assert errors == 1


def test_c10_a_login_at_another_database_is_sent_to_its_own(pooler: Tier) -> None:
    elsewhere = replace(pooler.transaction, database="postgres")
    with pytest.raises(Refused, match=r'for database "postgres": use the one in this user\'s URL'):
        elsewhere.connect()
