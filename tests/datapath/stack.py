"""What the suite runs: a server, a pooler with few server connections, a keeper before it, and routes through
them. The server itself is the oracle: a route is right if a client can't tell it from the direct one."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg

from poolkeeper.consumers.entries import SESSION_SUFFIX
from poolkeeper.names import CONSOLE_DATABASE, CONSOLE_LOGIN
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.pgbouncer.configuration import INI, Configuration
from tests.datapath.wire import Connection
from tests.pgbouncer import processes
from tests.pgbouncer.keeper_process import Keeper, keeper, keeper_files, resource
from tests.pgbouncer.processes import Pooler, Postgres
from tests.pgbouncer.rootfs import rootfs
from tests.pgbouncer.shop import API, Shop

POOL = 3
"""Server connections of each entry: few, so that every client meets what another one left behind."""
CLIENTS = 12


@dataclass(frozen=True)
class Route:
    """A way to the database, as any client program takes it. `shared` is whether clients share connections
    between transactions."""

    name: str
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str
    shared: bool

    def connect(self, parameters: Mapping[str, str] | None = None, timeout: float = 10.0) -> Connection:
        """A connection that is logged in; raises wire.Refused."""
        connection = Connection(self.host, self.port, timeout)
        try:
            connection.login(self.user, self.password, self.database, parameters or {})
        except BaseException:
            connection.socket.close()
            raise
        return connection

    @property
    def libpq(self) -> dict[str, Any]:
        """Parameters of psycopg.connect()."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "dbname": self.database,
            "sslmode": "disable",
            "connect_timeout": 10,
        }

    @property
    def asyncpg(self) -> dict[str, Any]:
        """Parameters of asyncpg.connect()."""
        own = {key: self.libpq[key] for key in ("host", "port", "user", "password")}
        return {**own, "database": self.database, "ssl": False, "timeout": 10}


@dataclass(frozen=True)
class Console:
    """The admin console of a pooler or keeper, one connection for each command."""

    access: ConsoleAccess

    def run(self, command: str) -> list[dict[str, str]]:
        """Raises psycopg.Error where the console refuses the command."""
        with psycopg.connect(
            host=self.access.ip,
            port=self.access.port,
            user=CONSOLE_LOGIN,
            password=self.access.password,
            dbname=CONSOLE_DATABASE,
            sslmode="require",
            autocommit=True,
            cursor_factory=psycopg.ClientCursor,
            connect_timeout=5,
        ) as connection:
            cursor = connection.execute(command)
            if cursor.description is None:
                return []
            names = [column.name for column in cursor.description]
            return [dict(zip(names, map(str, row), strict=True)) for row in cursor.fetchall()]

    def servers(self) -> list[dict[str, str]]:
        return self.run("SHOW SERVERS")

    def parameter(self, name: str) -> str:
        return next(row["value"] for row in self.run("SHOW CONFIG") if row["key"] == name)


@dataclass(frozen=True)
class Tier:
    """A process that clients connect to: a pooler or a keeper, its console, and both its entries."""

    name: str
    process: Pooler | Keeper
    console: Console
    transaction: Route
    session: Route

    @property
    def routes(self) -> tuple[Route, Route]:
        return self.transaction, self.session


def adapted(configuration: Configuration, settings: Mapping[str, str]) -> Configuration:
    """The product's configuration with other values, and without what the program under test doesn't know:
    it would not start."""
    program = (rootfs("pgbouncer") / "usr/bin/pgbouncer").read_bytes()
    ini = configuration.files[INI]
    for name, value in settings.items():
        line = f"{name} = {value}".rstrip()
        ini, found = re.subn(rf"^{name} =.*$", line.replace("\\", r"\\"), ini, count=1, flags=re.MULTILINE)
        if not found:
            ini = ini.replace("[pgbouncer]\n", f"[pgbouncer]\n{line}\n", 1)
    lines = ini.splitlines(keepends=True)
    names = [re.match(r"([a-z0-9_]+) =", line) for line in lines]
    section = ""
    kept = []
    for line, setting in zip(lines, names, strict=True):
        section = line.strip() if line.startswith("[") else section
        if section != "[pgbouncer]" or setting is None or setting[1].encode() in program:
            kept.append(line)
    return replace(configuration, files={**configuration.files, INI: "".join(kept)})


@contextmanager
def pooler_tier(
    directory: Path,
    shop: Shop,
    settings: Mapping[str, str],
    name: str = "pooler",
    parameters: Mapping[str, str] | None = None,
) -> Iterator[Tier]:
    """A pooler in `directory`; `settings` as adapted(), `parameters` as spec.pooler.parameters.

    Its routes are those of one consumer, a keeper's those of another: a keeper holds on to sessions.
    """
    directory.mkdir()
    whole = adapted(shop.configuration(parameters=parameters), settings)
    with processes.pooler(directory, whole, cap=POOL) as made:
        login = shop.login(API)
        entries = {"transaction": shop.entry(API), "session": shop.session_entry(API)}
        routes = {
            mode: Route(
                f"{name}, {mode} entry",
                made.host,
                made.port,
                login.name,
                login.password,
                entry,
                mode == "transaction",
            )
            for mode, entry in entries.items()
        }
        yield Tier(name, made, Console(shop.console(made)), **routes)


@contextmanager
def keeper_tier(
    directory: Path,
    shop: Shop,
    behind: Tier,
    settings: Mapping[str, str],
    parameters: Mapping[str, str] | None = None,
) -> Iterator[Tier]:
    """A keeper before the pooler `behind`."""
    name = behind.name.replace("pooler", "keeper")
    # A session through a keeper holds one of the pooler for as long as the keeper keeps its connection: more of
    # them than the pooler has server connections would wait for each other.
    keeping = {"poolSize": POOL}
    spelled = {key: int(value) for key, value in (parameters or {}).items()}
    whole = keeper_files(shop, resource(pooler={"parameters": spelled}, keeper=keeping))
    with keeper(directory, shop, behind.transaction.port, adapted(whole, settings)) as made:
        routes = {
            mode: Route(
                f"{name}, {mode} entry", "127.0.0.1", made.port, "app", "", entry, mode == "transaction"
            )
            for mode, entry in {"transaction": "shop", "session": "shop.session"}.items()
        }
        yield Tier(name, made, Console(made.access), **routes)


def direct_route(server: Postgres, shop: Shop) -> Route:
    target = shop.target
    return Route("direct", server.host, server.port, target.user, target.password, target.database, False)


def engine() -> str:
    """What the program under test calls itself."""
    return _first_line("pgbouncer", "pgbouncer")


def server_version() -> str:
    """The server's version, such as 17.6."""
    return _first_line("postgres", "postgres").split()[2]


def _first_line(image: str, program: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        command = processes.inside(image, Path(scratch), program, "--version")
        shown = subprocess.run(command, env=processes.ENVIRONMENT, capture_output=True, check=True)
    return shown.stdout.decode().splitlines()[0]


def stuck(tiers: Iterable[Tier], seconds: float = 5.0) -> list[str]:
    """Server connections that are not idle so many seconds after all clients left.

    In a session entry those stay active that a keeper holds; the keeper's console must call them idle.
    """
    end = time.monotonic() + seconds
    while True:
        found = [
            f"{tier.name}: a server connection of {row['database']} is {row['state']}"
            for tier in tiers
            for row in tier.console.servers()
            if row["database"] != CONSOLE_DATABASE and not _at_rest(row)
        ]
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.05)


def _at_rest(row: Mapping[str, str]) -> bool:
    held = row["state"] == "active" and row["link"]
    return row["state"] in ("idle", "used") or bool(held and row["database"].endswith(SESSION_SUFFIX))


def unusable(route: Route, seconds: float = 8.0) -> str:
    """Hold a transaction on each server connection of the route's pool at once; says what was in the way."""
    clients: list[Connection] = []
    try:
        for number in range(POOL):
            clients.append(route.connect(timeout=seconds))
            answer = "".join(got.kind for got in clients[-1].run("BEGIN; SELECT 1"))
            if answer != "CTDCZ":
                return f"connection {number + 1} of {POOL} through {route.name} answered {answer!r}"
        for client in clients:
            if "".join(got.kind for got in client.run("COMMIT")) != "CZ":
                return f"a transaction through {route.name} did not commit"
    except Exception as error:
        return f"connection {len(clients)} of {POOL} through {route.name}: {error!r}"
    finally:
        for client in clients:
            client.close()
    return ""


def check_logins(route: Route) -> None:
    """Raises AssertionError where clients are not served: every test would find that out in its own time."""
    reason = unusable(route)
    assert not reason, f"the pooler can't be used at all: {reason}"


def renew(*tiers: Tier) -> None:
    """Server connections that no client has used, from here on."""
    for tier in tiers:
        for row in tier.console.run("SHOW DATABASES"):
            if row["name"] != CONSOLE_DATABASE:
                tier.console.run(f'KILL "{row["name"]}"')
                tier.console.run(f'RESUME "{row["name"]}"')
