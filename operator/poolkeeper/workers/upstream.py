"""The operator's own logins: to an upstream, and through a pooler pod as one of its consumers.

Uses libpq through psycopg, and says what a failure means for the user. Nothing else connects to PostgreSQL.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg

from poolkeeper.budget.servers import Measured
from poolkeeper.credentials.logins import Login
from poolkeeper.data_path import wedges
from poolkeeper.dns import Names
from poolkeeper.host_port import host_port
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.pgbouncer.console import verified
from poolkeeper.upstream import faults, libpq, resolver
from poolkeeper.upstream.libpq import Limit
from poolkeeper.upstream.target import MAX_SCRAM_PASSWORD_BYTES, Target
from poolkeeper.upstream.tls import ServerTls
from poolkeeper.upstream.wire import Oversized
from poolkeeper.workers import statements
from poolkeeper.workers.boundary import unexpected
from poolkeeper.workers.statements import FEW_ROWS, MEASUREMENT, Implausible, Row

T = TypeVar("T")

REACHABLE = "Reachable"
POOLER_REFUSED = "PoolerRefused"
UNEXPECTED = "UnexpectedError"
"""The operator itself failed."""
MEASURE_SECONDS = 3.0
"""Maximum time for a login that measures a server, and for each of its queries."""
_TRIES = 20
"""How often a canceled statement is tried in that time."""

_POOLER_REFUSALS = (
    "no authentication method is found",
    "SASL authentication failed",
    "no such database",
    "not allowed",
)
"""PgBouncer's errors if a login isn't in its userlist or hba file, or an entry isn't in its [databases]."""

_NO_SLOT = ("client connections exceeded", "no more connections allowed")
"""PgBouncer's errors if it has no room for another client: they prove that it answers."""

_IMPLAUSIBLE = "check that host and port in spec.upstream lead to the server itself"
_REMEDIES = {
    faults.AUTHENTICATION_FAILED: "correct user name and password in the Secret, or the server's pg_hba.conf",
    faults.DATABASE_MISSING: "create the database, or correct its name in spec.upstream",
    faults.TLS_FAILED: "check spec.upstream.tls: its mode, its CA, and the name in the server's certificate",
    faults.DNS_FAILED: "correct the host in spec.upstream or in its URL, or create the Service that it names",
    faults.CONNECTION_REFUSED: "start the server, or correct host and port in spec.upstream",
    faults.TIMEOUT: "check that the server is up and that no firewall or NetworkPolicy drops the packets",
    faults.TOO_MANY_CONNECTIONS: "raise max_connections of the server, or lower what its other clients use",
    faults.OVERSIZED: "check that host and port in spec.upstream lead to a PostgreSQL server",
    faults.UNAVAILABLE: "check the server's log",
}


@dataclass(frozen=True)
class Observation:
    """The outcome of one login. `server_version` is PostgreSQL's number (170011); None without a login."""

    reachable: bool
    reason: str
    message: str
    server_version: int | None = None


async def probe(target: Target, timeout: float, names: Names | None = None) -> Observation:
    """Log in to the upstream and run SELECT 1, in at most `timeout` seconds. `names` are those that the host
    stands for; None: it is complete.

    A fault of the database or of the way to it never raises; no message contains the password.
    """
    end = asyncio.get_running_loop().time() + timeout
    try:
        place = await resolver.parameters(target.host, names, timeout)
        left = end - asyncio.get_running_loop().time()
        version = await _log_in(left, tls=_tls(target), **_parameters(target), **place)
    except Exception as error:
        return _not_logged_in(target, timeout, error)
    where = host_port(target.host, target.port)
    return Observation(True, REACHABLE, f"logged in at {where} as {target.user}", version)


class Unmeasured(Exception):
    """A server's connections could not be measured; the text says why, and what to do."""


class _Refused(Unmeasured):
    """The server refused a statement, and the connection lives."""


class Meter:
    """A standing connection to a server that counts the server's connections, itself included, and reads the
    schema of its database. Its questions raise Unmeasured."""

    def __init__(self, connection: libpq.Connection, target: Target, timeout: float) -> None:
        self._connection = connection
        self._target = target
        self._timeout = timeout
        self._settings: tuple[int, int, int] | None = None
        self.pid: int = connection.pid

    async def identify(self) -> tuple[str, str]:
        """(system, instance) of servers.Identity: they hold as long as the connection does. If the server
        doesn't show its system, the host's address and the port stand for it."""
        instance, self._settings = await self._read(statements.INSTANCE, statements.instance, libpq.ONE_ROW)
        try:
            system = await self._read(statements.SYSTEM, statements.system, libpq.ONE_ROW)
        except _Refused:
            return host_port(self._connection.address, self._target.port), instance
        return system, instance

    async def measure(self) -> Measured:
        """The server's current connections. identify() has to come first."""
        settings = self._settings
        if settings is None:
            raise Unmeasured("the server has not been identified yet")
        return await self._read(
            statements.CONNECTIONS, lambda rows: statements.measured(rows, settings), MEASUREMENT
        )

    async def snapshot(self) -> str:
        """PostgreSQL's current snapshot: the same snapshot sees the same schema."""
        return await self._read(statements.SNAPSHOT, statements.one_value, FEW_ROWS)

    async def schema(self) -> str:
        """A fingerprint of the schema of the connection's database."""
        return await self._read(statements.SCHEMA, statements.fingerprint, FEW_ROWS)

    async def backends(self, pids: Collection[int]) -> dict[int, wedges.Backend]:
        """Those of these backends that belong to the connection's role, by PID."""
        if not pids:
            return {}
        return await self._read(statements.backends_statement(pids), statements.resting, MEASUREMENT)

    async def terminate(self, pid: int, changed: str) -> bool:
        """End a backend of the connection's role if it has rested from `changed` (of backends()) to this
        moment; returns whether it was ended."""
        statement = statements.terminate_statement(pid, changed)
        return await self._read(statement, statements.terminated, FEW_ROWS)

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._connection.closed

    async def _read(self, statement: str, reader: Callable[[list[Row]], T], limit: Limit) -> T:
        """What a reader makes of an answer."""
        rows = await self._ask(statement, limit)
        try:
            return reader(rows)
        except Implausible as error:
            raise Unmeasured(f"no PostgreSQL answers like this server: {error}; {_IMPLAUSIBLE}") from None
        except Exception as error:
            raise Unmeasured(unexpected("reading the server's answer", error, self._target.password)) from None

    async def _execute(self, command: str, limit: Limit) -> libpq.Answer:
        """Run a command; again, if the role's own statement_timeout, a millisecond maybe, ended it before PIN
        changed it. On a busy server that happens now and then."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(psycopg.errors.QueryCanceled):
                return await libpq.execute(self._connection, command, self._timeout, limit)
        return await libpq.execute(self._connection, command, self._timeout, limit)

    async def _ask(self, statement: str, limit: Limit = FEW_ROWS) -> list[Row]:
        command = f"{statements.PIN}; {statement}"
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._execute(command, limit)
            return [statements.texts(row) for row in answer.rows]
        except TimeoutError:
            raise Unmeasured(f"no answer within {self._timeout:.2g} s; {_REMEDIES[faults.TIMEOUT]}") from None
        except Oversized as error:
            raise Unmeasured(f"{error}; {_REMEDIES[faults.OVERSIZED]}") from None
        except (psycopg.Error, OSError) as error:
            kind = Unmeasured if self.closed else _Refused
            raise kind(faults.quoted(str(error), self._target.password)) from None
        except Exception as error:
            raise Unmeasured(unexpected("asking the server", error, self._target.password)) from None


@contextlib.asynccontextmanager
async def measuring(target: Target, timeout: float, names: Names | None = None) -> AsyncIterator[Meter]:
    """Log in to the upstream to measure it; `timeout` (seconds) bounds the lookup of its host, the login and
    each query. `names` as in probe(). Raises Unmeasured."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            place = await resolver.parameters(target.host, names, timeout)
            connection = await stack.enter_async_context(
                libpq.connect(
                    timeout,
                    tls=_tls(target),
                    application_name="poolkeeper-budget",
                    **_parameters(target),
                    **place,
                )
            )
        except Exception as error:
            raise Unmeasured(_not_logged_in(target, timeout, error).message) from None
        yield Meter(connection, target, timeout)


async def trial_login(access: ConsoleAccess, login: Login, entry: str, timeout: float) -> Observation:
    """Log in at a pooler over TLS as a consumer and run SELECT 1, in at most `timeout` seconds.

    Success proves the login's lines in userlist and hba file, its entry, and that the pooler reaches the
    upstream. (A server connection that the pooler holds already may serve the login.) If the pooler itself
    refuses, the reason is PoolerRefused; any other failure has the reason that probe() would give.
    """
    where = host_port(access.ip, access.port)
    try:
        version = await _log_in(timeout, **_consumer(access, login, entry))
    except TimeoutError:
        # PgBouncer lets a login wait while it keeps retrying the upstream.
        message = (
            f"login through the pooler at {where} did not finish within {timeout:.2g} s: the pooler can't log"
            " in to the upstream (its log says why), or can't be reached itself"
        )
        return Observation(False, faults.TIMEOUT, message)
    except Oversized as error:
        return Observation(False, faults.OVERSIZED, f"login through the pooler at {where}: {error}")
    except (psycopg.Error, OSError, UnicodeError) as error:
        text = str(error)
        said = faults.quoted(text, login.password)
        if any(refusal in text for refusal in _POOLER_REFUSALS):
            return Observation(False, POOLER_REFUSED, f"the pooler at {where} refuses {login.name}: {said}")
        reason = faults.reason(text, login.name, entry)
        return Observation(False, reason, f"login through the pooler at {where}: {said}; {_REMEDIES[reason]}")
    except Exception as error:
        said = unexpected(f"the login through the pooler at {where}", error, login.password)
        return Observation(False, UNEXPECTED, said)
    return Observation(True, REACHABLE, f"logged in through the pooler at {where}", version)


@dataclass(frozen=True)
class Echo:
    """The outcome of a probe through a pooler. `said`: what went wrong, empty if the probe was answered;
    `silent`: no answer arrived in time; `failed`: in words, that the operator itself failed, which says nothing
    about the pooler."""

    said: str
    silent: bool = False
    failed: str = ""


async def through_pooler(access: ConsoleAccess, login: Login, entry: str, timeout: float) -> Echo:
    """Log in at a pooler over TLS as a consumer and run SELECT 1, in at most `timeout` seconds."""
    try:
        # The entry's own application_name, since the connection is its consumer's again afterwards.
        await _log_in(timeout, application_name="", **_consumer(access, login, entry))
    except TimeoutError:
        return Echo(f"no answer within {timeout:.2g} s", silent=True)
    except (psycopg.Error, OSError, UnicodeError) as error:
        text = str(error)
        if any(words in text for words in _NO_SLOT):
            return Echo("")
        return Echo(faults.quoted(text, login.password))
    except Exception as error:
        return Echo("", failed=unexpected(f"the probe of the pooler at {access.ip}", error, login.password))
    return Echo("")


def _consumer(access: ConsoleAccess, login: Login, entry: str) -> dict[str, Any]:
    """Parameters of _log_in() for a consumer's login at a pooler. What listens at the address of a pooler that
    has gone gets no password."""
    return {**verified(access), "dbname": entry, "user": login.name, "password": login.password}


def _tls(target: Target) -> ServerTls | None:
    """None in the mode disable."""
    return None if target.sslmode == "disable" else ServerTls(target.sslmode, target.ca or "")


def _parameters(target: Target) -> dict[str, str]:
    return {
        "port": str(target.port),
        "dbname": target.database,
        "user": target.user,
        "password": target.password,
        **({"require_auth": "!scram-sha-256"} if _is_long(target) else {}),
    }


def _is_long(target: Target) -> bool:
    """Whether PgBouncer can't log in with the password if the server asks for SCRAM."""
    return len(target.password.encode()) > MAX_SCRAM_PASSWORD_BYTES


def _not_logged_in(target: Target, timeout: float, error: Exception) -> Observation:
    where = host_port(target.host, target.port)
    if _is_long(target) and "authentication method requirement" in str(error):
        message = (
            f"login at {where}: the server asks for SCRAM, for which PgBouncer takes no password of more than"
            f" {MAX_SCRAM_PASSWORD_BYTES} bytes; set a shorter one"
        )
        return Observation(False, faults.AUTHENTICATION_FAILED, message)
    if isinstance(error, TimeoutError):
        return _unreachable(faults.TIMEOUT, where, f"no answer within {timeout:.2g} s")
    if isinstance(error, Oversized):
        return _unreachable(faults.OVERSIZED, where, str(error))
    if not isinstance(error, psycopg.Error | OSError | ValueError):  # UnicodeError is a ValueError
        return Observation(False, UNEXPECTED, unexpected(f"the login at {where}", error, target.password))
    text = str(error)
    reason = faults.reason(text, target.user, target.database)
    if faults.lacks_tls(text):
        message = (
            f"login at {where}: the server offers no TLS, which every mode of spec.upstream.tls but disable"
            " needs; turn TLS on at the server, or set spec.upstream.tls to {mode: disable}, which leaves"
            " connections unencrypted"
        )
        return Observation(False, reason, message)
    return _unreachable(reason, where, faults.quoted(text, target.password))


def _unreachable(reason: str, where: str, said: str) -> Observation:
    return Observation(False, reason, f"login at {where}: {said}; {_REMEDIES[reason]}")


async def _log_in(timeout: float, *, tls: ServerTls | None, **parameters: str) -> int:
    """Log in and run one query, together within `timeout`; returns the server's version."""
    end = asyncio.get_running_loop().time() + timeout
    async with libpq.connect(timeout, tls=tls, **parameters) as connection:
        left = end - asyncio.get_running_loop().time()
        await libpq.execute(connection, "SELECT 1", left, libpq.ONE_ROW)
        return connection.server_version
