"""PgBouncer's admin console: commands, tables, and reloads until a process shows a configuration.

The only module that speaks to a pooler's console. The console understands only the simple protocol.
https://www.pgbouncer.org/usage.html#admin-console
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from poolkeeper.host_port import host_port
from poolkeeper.names import CONSOLE_DATABASE, CONSOLE_LOGIN
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.pgbouncer.configuration import Configuration
from poolkeeper.pgbouncer.ini import SLOTS_SETTING
from poolkeeper.upstream import faults, libpq
from poolkeeper.upstream.tls import ServerTls

COMMAND_FAILED = "CommandFailed"
POLL_SECONDS = 0.03
_COMMAND_SECONDS = 5.0
_NAMED_DIFFERENCES = 3
_LONGEST_VERSION = 64
CALM_SECONDS = 1.5
"""Maximum time that a RELOAD waits for logins to servers to end. If the upstream doesn't answer, a login is
always under way, and this very RELOAD may carry the upstream's new address."""
_CALM_POLL_SECONDS = 0.003
_SAFE_MODES = ("disable", "verify-full")

Row = Mapping[str, str]


class ConsoleError(Exception):
    """The console was not reached or stopped answering (a reason of upstream/faults.py), or refused a command
    (CommandFailed)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Console:
    """One connection to a console. Every command has its own time limit."""

    def __init__(self, connection: libpq.Connection, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout

    async def reload(self) -> None:
        """Re-read all files. Raises ConsoleError with PgBouncer's message if it rejects them.

        First waits for a moment without a login to a server. In every RELOAD PgBouncer 1.26 frees what a TLS
        handshake with a server uses, and dies when that handshake ends, unless the server's name is checked.
        """
        if (await self.settings()).get("server_tls_sslmode") not in _SAFE_MODES:
            loop = asyncio.get_running_loop()
            end = loop.time() + CALM_SECONDS
            while await self._logs_in_at_servers() and loop.time() < end:  # noqa: ASYNC110
                await asyncio.sleep(_CALM_POLL_SECONDS)
        await self.execute("RELOAD")

    async def _logs_in_at_servers(self) -> bool:
        """Also to peers, to pass on cancel requests. The longer table comes last, so that the answer is fresh:
        a login that begins after it has to connect and to ask for TLS before its handshake."""
        pools = [*await self.show("PEER_POOLS"), *await self.show("POOLS")]
        return any(row.get("sv_login", "0") != "0" for row in pools)

    async def show(self, table: str) -> list[dict[str, str]]:
        """A table as the console prints it, such as CONFIG or DATABASES; NULL reads as the empty text."""
        return await self.execute(f"SHOW {table}")

    async def settings(self) -> dict[str, str]:
        """The settings in force, by name."""
        return {row["key"]: row["value"] for row in await self.show("CONFIG")}

    async def version(self) -> str:
        """The answer to SHOW VERSION, such as "PgBouncer 1.26.1"; cut, since a keeper may be forged."""
        rows = await self.show("VERSION")
        return next(iter(rows[0].values()), "")[:_LONGEST_VERSION] if rows else ""

    async def execute(self, command: str, timeout: float | None = None) -> list[dict[str, str]]:
        """Run one command; returns its rows, if it has any. `timeout` (seconds) replaces the connection's.

        Raises ConsoleError. If no answer comes in time, the command may continue, but the connection is dead.
        """
        limit = self._timeout if timeout is None else timeout
        try:
            answer = await libpq.execute(self._connection, command, limit)
        except TimeoutError:
            raise ConsoleError(faults.TIMEOUT, f"{command}: no answer within {limit:.2g} s") from None
        except (psycopg.Error, OSError) as error:
            alive = not self._connection.closed
            reason = COMMAND_FAILED if alive else faults.UNAVAILABLE
            raise ConsoleError(reason, f"{command}: {faults.quoted(str(error), '')}") from None
        return [
            {
                name: (value or b"").decode(errors="replace")
                for name, value in zip(answer.names, row, strict=True)
            }
            for row in answer.rows
        ]


def verified(access: ConsoleAccess) -> dict[str, Any]:
    """Parameters of libpq.connect() that lead to one of our own processes. Each has a certificate and SCRAM
    verifiers: a server that lacks them gets neither a password nor a query."""
    return {
        "tls": ServerTls("verify-full", access.authority),
        "require_auth": "scram-sha-256",
        "host": access.name,
        "hostaddr": access.ip,
        "port": str(access.port),
    }


@contextlib.asynccontextmanager
async def connect(access: ConsoleAccess, timeout: float) -> AsyncIterator[Console]:
    """Log in to a console over TLS. `timeout` (seconds) bounds the login and every command.

    Raises ConsoleError; no message holds the password.
    """
    where = f"console at {host_port(access.ip, access.port)}"
    async with contextlib.AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(
                libpq.connect(
                    timeout,
                    dbname=CONSOLE_DATABASE,
                    user=CONSOLE_LOGIN,
                    password=access.password,
                    **verified(access),
                )
            )
        except TimeoutError:
            raise ConsoleError(faults.TIMEOUT, f"{where}: no answer within {timeout:.2g} s") from None
        except (psycopg.Error, OSError, UnicodeError) as error:
            text = str(error)
            reason = faults.reason(text, CONSOLE_LOGIN, CONSOLE_DATABASE)
            raise ConsoleError(reason, f"{where}: {faults.quoted(text, access.password)}") from None
        yield Console(connection, timeout)


@dataclass(frozen=True)
class Answer:
    """The result of apply(): in words what is still missing (None: nothing), and the answer to SHOW VERSION
    (empty if the console gave none)."""

    problem: str | None
    version: str = ""


async def apply(access: ConsoleAccess, configuration: Configuration, timeout: float) -> Answer:
    """Reload a process until it shows `configuration`, and read its version.

    It reloads only if something is missing that a RELOAD can apply. kubelet may deliver the files meanwhile, so
    RELOAD and read-back repeat for at most `timeout` seconds; faults of the console are retried. apply() does
    not wait for what takes a restart.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    answer = Answer("its console was not asked")
    while (left := end - loop.time()) > 0:
        try:
            async with connect(access, min(left, _COMMAND_SECONDS)) as console:
                answer = replace(answer, version=await console.version())
                return replace(answer, problem=await _converge(console, configuration, end))
        except ConsoleError as error:
            answer = replace(answer, problem=error.message)
            await asyncio.sleep(POLL_SECONDS)
    return answer


async def _converge(console: Console, configuration: Configuration, end: float) -> str | None:
    loop = asyncio.get_running_loop()
    missing = await _missing(console, configuration)
    while missing.reloadable and loop.time() < end:
        refusal = ""
        try:
            await console.reload()
        except ConsoleError as error:
            if error.reason != COMMAND_FAILED:
                raise
            refusal = f" ({error.message})"
        missing = await _missing(console, configuration)
        if missing.reloadable:
            missing = replace(missing, remark=refusal)
            await asyncio.sleep(POLL_SECONDS)
    return missing.summary()


async def _missing(console: Console, configuration: Configuration) -> "_Missing":
    """Read the long tables only once the short one is right."""
    settings = await console.show("CONFIG")
    missing = _compare_settings(configuration, settings)
    if missing.reloadable:
        return missing
    databases, users = await console.show("DATABASES"), await console.show("USERS")
    return _compare(configuration, settings, databases, users, await console.show("PEERS"))


def unapplied(
    configuration: Configuration,
    config: Iterable[Row],
    databases: Iterable[Row],
    users: Iterable[Row],
    peers: Iterable[Row],
) -> str | None:
    """In words, what the rows of SHOW CONFIG, DATABASES, USERS and PEERS lack of `configuration`, or None.

    Further entries may be there: they take no logins, and go once no client is left (budget/protocol.py)."""
    return _compare(configuration, config, databases, users, peers).summary()


@dataclass(frozen=True)
class _Missing:
    """Differences between a configuration and a console, by what it takes to remove them."""

    reloadable: tuple[str, ...]
    restart: tuple[str, ...]
    remark: str = ""

    def summary(self) -> str | None:
        named = [*self.reloadable, *self.restart]
        if len(named) > _NAMED_DIFFERENCES:
            named = [*named[:_NAMED_DIFFERENCES], f"and {len(named) - _NAMED_DIFFERENCES} more"]
        return "; ".join(named) + self.remark if named else None


def _compare(
    configuration: Configuration,
    config: Iterable[Row],
    databases: Iterable[Row],
    users: Iterable[Row],
    peers: Iterable[Row],
) -> _Missing:
    settings = _compare_settings(configuration, config)
    shown = {row["name"]: row for row in databases if row["name"] != CONSOLE_DATABASE}
    wrong = []
    for name, columns in configuration.databases.items():
        if name not in shown:
            wrong.append(f"entry {name} is not shown")
        for column, value in columns.items() if name in shown else ():
            if shown[name].get(column) != value:
                wrong.append(f"entry {name} has {column} {shown[name].get(column)!r} instead of {value!r}")
    logins = {row["name"]: row.get(SLOTS_SETTING) for row in users}
    wrong += [f"login {name} is not shown" for name in sorted(configuration.users - logins.keys())]
    wrong += [
        f"login {name} has {SLOTS_SETTING} {logins[name]!r} instead of '{bound}'"
        for name, bound in configuration.slots.items()
        if name in logins and logins[name] != str(bound)
    ]
    known = {row["peer_id"]: (row["host"], row["port"]) for row in peers}
    wrong += [
        f"peer {peer} is not shown at {columns['host']}"
        for peer, columns in configuration.peers.items()
        if known.get(peer) != (columns["host"], columns["port"])
    ]
    return replace(settings, reloadable=(*settings.reloadable, *wrong))


def _compare_settings(configuration: Configuration, config: Iterable[Row]) -> _Missing:
    shown = {row["key"]: row for row in config}
    reloadable, restart = [], []
    for name, value in configuration.settings.items():
        row = shown.get(name)
        if row is None:
            restart.append(f"{name} is unknown to this version of PgBouncer")
        elif row["value"] != value and row["changeable"] == "no":
            restart.append(f"{name} is {row['value']!r} instead of {value!r}, which takes a restart")
        elif row["value"] != value:
            reloadable.append(f"{name} is {row['value']!r} instead of {value!r}")
    return _Missing(tuple(reloadable), tuple(restart))
