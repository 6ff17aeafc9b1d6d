"""The load programs that count transactions: each commits through poolers and keepers, and sees what fails."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from e2e.cluster.ports import free_port
from poolkeeper.spec.types import SCRAM
from tests.e2e.clients.programs import PROGRAMS, TABLE
from tests.pgbouncer import keeper_process
from tests.pgbouncer.keeper_process import app_login, keeper_files, resource
from tests.pgbouncer.keepers import APP, DATABASE, PORT, Balancer, keeper
from tests.pgbouncer.processes import ENVIRONMENT, USER, Pooler, Postgres, eventually, inside
from tests.pgbouncer.shop import WEB, Shop

CONNECTIONS = 5
_IMAGE_ENVIRONMENT = {
    "NODE_ENV": "production",
    "PYTHONPATH": "/clients/python/lib",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_WAITING = "FROM pg_stat_activity WHERE usename = 'shop_owner' AND wait_event_type = 'Lock'"


class Program:
    """A load program that runs; its counters come over HTTP."""

    def __init__(self, port: int) -> None:
        self._port = port

    def counters(self, path: str = "/", method: str = "GET") -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        with closing(connection):
            connection.request(method, path)
            found: dict[str, Any] = json.load(connection.getresponse())
        return found

    def reset(self) -> None:
        self.counters("/reset", "POST")

    def has_committed(self, count: int) -> bool:
        try:
            return bool(self.counters()["committed"] >= count)
        except OSError:
            return False


@contextmanager
def programs(directory: Path, url: str) -> Iterator[dict[str, Program]]:
    """Every program out of the image, on this machine's loopback, at work."""
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(_program(name, directory / f"{name}-{directory.name}", url))
            for name in PROGRAMS
        }
        for made in started.values():
            eventually(lambda made=made: made.has_committed(50), 30)
        yield started


@contextmanager
def _program(name: str, directory: Path, url: str) -> Iterator[Program]:
    port = free_port()
    directory.mkdir()
    os.chown(directory, USER, USER)
    environment = {**_IMAGE_ENVIRONMENT, "DATABASE_URL": url, "PORT": str(port), "HOSTNAME": directory.name}
    command = inside("clients", directory, "/usr/bin/env", "-C", "/clients", *PROGRAMS[name])
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT | environment, stdout=log, stderr=log)
    try:
        yield Program(port)
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def table(server: Postgres, shop: Shop) -> None:
    server.execute(TABLE, "shop")
    server.execute("ALTER TABLE accounts OWNER TO shop_owner", "shop")


def through_pooler(pooler: Pooler, shop: Shop) -> str:
    login = shop.login(WEB)
    return f"postgresql://{login.name}:{login.password}@{pooler.host}:{pooler.port}/{shop.entry(WEB)}"


def check_steady(started: dict[str, Program], server: Postgres, where: str) -> None:
    """Two seconds of what each program does when nothing happens to it."""
    for program in started.values():
        program.reset()
    time.sleep(2)
    found = {name: program.counters() for name, program in started.items()}
    for name, counters in found.items():
        assert 60 <= counters["committed"] <= 120, f"{name} is to run 50 a second"
        assert (counters["failed"], counters["uncaught"], counters["errors"]) == (0, 0, {})
        rows = server.execute(_balances(f"{name}-{where}"), "shop")
        assert len(rows) == CONNECTIONS
        assert all(balance > 5 for (balance,) in rows), "each of its workers writes"


@pytest.mark.usefixtures("table")
def test_programs_commit_through_a_pooler_and_count_nothing_as_failed(
    running_pooler: Pooler, shop: Shop, tmp_path: Path, server: Postgres
) -> None:
    with programs(directory(tmp_path, "pooler"), through_pooler(running_pooler, shop)) as started:
        check_steady(started, server, "pooler")


@pytest.mark.usefixtures("table")
def test_programs_commit_through_a_keeper_without_a_password(
    running_pooler: Pooler, shop: Shop, tmp_path: Path, server: Postgres
) -> None:
    service = Balancer(port=running_pooler.port)
    with keeper(1, tmp_path, shop, service, default_pool_size=20) as made:
        url = f"postgresql://{APP}@{made.host}:{PORT}/{DATABASE}?sslmode=disable"
        with programs(directory(tmp_path, "keeper"), url) as started:
            check_steady(started, server, "keeper")


@pytest.mark.usefixtures("table")
def test_programs_commit_through_a_keeper_that_demands_a_password(
    running_pooler: Pooler, shop: Shop, tmp_path: Path, server: Postgres
) -> None:
    whole = keeper_files(shop, resource(keeper={"poolSize": 20}), app=app_login(shop))
    with keeper_process.keeper(tmp_path / "scram", shop, running_pooler.port, whole, SCRAM) as made:
        url = made.environment()["DATABASE_URL"]
        assert app_login(shop).password in url
        with programs(directory(tmp_path, "demanding"), url) as started:
            check_steady(started, server, "demanding")


@pytest.mark.usefixtures("table")
def test_programs_whose_connections_are_cut_in_mid_transaction_count_that_and_go_on(
    server: Postgres, shop: Shop, tmp_path: Path
) -> None:
    password = quote(shop.target.password, safe="")
    url = f"postgresql://{shop.target.user}:{password}@{server.host}:{server.port}/shop"
    everybody = CONNECTIONS * len(PROGRAMS)
    with programs(directory(tmp_path, "cut"), url) as started:
        for program in started.values():
            program.reset()
        with superuser(server) as connection:
            connection.execute("LOCK TABLE accounts")
            eventually(lambda: server.execute(f"SELECT count(*) {_WAITING}") == [(everybody,)])
            server.execute(f"SELECT pg_terminate_backend(pid) {_WAITING}")
        for program in started.values():
            eventually(lambda program=program: program.has_committed(50))
        found = {name: program.counters() for name, program in started.items()}
    for name, counters in found.items():
        print(name, counters)
        assert counters["failed"] >= CONNECTIONS, "each connection was in the middle of something"
        counted = sum(kind["count"] for kind in counters["errors"].values())
        assert counted == counters["failed"] + counters["uncaught"]
        assert shop.target.password not in json.dumps(counters)


def _balances(client: str) -> sql.Composed:
    return sql.SQL("SELECT balance FROM accounts WHERE client = {}").format(sql.Literal(client))


def superuser(server: Postgres) -> psycopg.Connection[Any]:
    """A transaction as the superuser."""
    return psycopg.connect(
        host=server.host, port=server.port, user=server.superuser, password=server.password, dbname="shop"
    )


def directory(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made
