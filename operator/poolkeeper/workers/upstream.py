"""The operator's own logins: to an upstream, and through a pooler pod as one of its consumers.

Uses libpq through psycopg, and says what a failure means for the user. Nothing else connects to PostgreSQL.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from poolkeeper.budget.servers import Backend, Measured
from poolkeeper.credentials.logins import Login
from poolkeeper.data_path import wedges
from poolkeeper.dns import Names
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.upstream import faults, libpq, resolver
from poolkeeper.upstream.target import MAX_SCRAM_PASSWORD_BYTES, Target

REACHABLE = "Reachable"
POOLER_REFUSED = "PoolerRefused"
MEASURE_SECONDS = 3.0
"""Maximum time for a login that measures a server, and for each of its queries."""

_POOLER_REFUSALS = (
    "no authentication method is found",
    "SASL authentication failed",
    "no such database",
    "not allowed",
)
"""PgBouncer's errors if a login isn't in its userlist or hba file, or an entry isn't in its [databases]."""

_NO_SLOT = ("client connections exceeded", "no more connections allowed")
"""PgBouncer's errors if it has no room for another client: they prove that it answers."""

_REMEDIES = {
    faults.AUTHENTICATION_FAILED: "correct user name and password in the Secret, or the server's pg_hba.conf",
    faults.DATABASE_MISSING: "create the database, or correct its name in spec.upstream",
    faults.TLS_FAILED: "check spec.upstream.tls: its mode, its CA, and the name in the server's certificate",
    faults.DNS_FAILED: "correct the host in spec.upstream or in its URL, or create the Service that it names",
    faults.CONNECTION_REFUSED: "start the server, or correct host and port in spec.upstream",
    faults.TIMEOUT: "check that the server is up and that no firewall or NetworkPolicy drops the packets",
    faults.TOO_MANY_CONNECTIONS: "raise max_connections of the server, or lower what its other clients use",
    faults.UNAVAILABLE: "check the server's log",
}

_SYSTEM = "SELECT system_identifier FROM pg_control_system()"
_INSTANCE = (
    "SELECT concat(extract(epoch FROM pg_postmaster_start_time()), ' ', current_setting('port')),"
    " current_setting('max_connections'), current_setting('superuser_reserved_connections'),"
    # PostgreSQL has it since 16.
    " coalesce(current_setting('reserved_connections', true), '0')"
)
_CONNECTIONS = (
    "SELECT 'backend', pid, coalesce(usename, ''), coalesce(datname, ''), coalesce(host(client_addr), '')"
    " FROM pg_stat_activity WHERE datid IS NOT NULL AND usesysid IS NOT NULL"
    # A role without pg_monitor sees no type of other roles' backends: parallel workers then count as well.
    " AND coalesce(backend_type, 'client backend') = 'client backend'"
    " UNION ALL SELECT 'role', rolconnlimit, rolname, '', ''"
    " FROM pg_roles WHERE rolconnlimit >= 0 AND NOT rolsuper"
    " UNION ALL SELECT 'database', datconnlimit, '', datname, '' FROM pg_database WHERE datconnlimit >= 0"
)
"""Connections and limits. Every role may read all of it."""
_PLAIN = "SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false)"
"""A role's own search_path could lead any of these names, operators included, to something else."""
_SNAPSHOT = "SELECT pg_catalog.txid_current_snapshot()::text"
_RELATIONS = "relkind IN ('r', 'v', 'm', 'f', 'p', 'c') AND relpersistence <> 't'"
_DIGEST = "SELECT concat(count(*), ' ', sum(hashtextextended(concat_ws(' ', {columns}), 0))) FROM {rows}"
_BACKENDS = (
    "SELECT pid, coalesce(state = 'idle' AND xact_start IS NULL, false),"
    " coalesce(extract(epoch FROM clock_timestamp() - state_change), 0), coalesce(state_change::text, '')"
    " FROM pg_stat_activity WHERE usename = current_user AND pid IN ({pids})"
)
"""A plain role sees the state of its own backends only."""
_TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user AND pid = {pid}"
    " AND state = 'idle' AND xact_start IS NULL AND state_change::text = {changed}"
)
_FIRST_OID = 16384
"""Objects with a lower OID came with PostgreSQL."""
_SCHEMA = " UNION ALL ".join(
    _DIGEST.format(columns=columns, rows=rows)
    for columns, rows in (
        (
            "attrelid, attnum, attname, atttypid, atttypmod, attcollation, attisdropped",
            "pg_catalog.pg_attribute JOIN pg_catalog.pg_class ON pg_class.oid = attrelid"
            f" WHERE attnum > 0 AND attrelid >= {_FIRST_OID} AND {_RELATIONS}",
        ),
        (
            "oid, relname, relnamespace",
            f"pg_catalog.pg_class WHERE oid >= {_FIRST_OID} AND {_RELATIONS}",
        ),
        ("oid, proname, pronamespace", f"pg_catalog.pg_proc WHERE oid >= {_FIRST_OID}"),
        (
            "oid, typname, typnamespace",
            f"pg_catalog.pg_type WHERE oid >= {_FIRST_OID} AND typrelid = 0 AND typelem = 0",
        ),
        ("oid, nspname", f"pg_catalog.pg_namespace WHERE oid >= {_FIRST_OID} AND nspname !~ '^pg_'"),
    )
)
"""Everything that the columns of a statement's result depend on. Temporary tables, indexes and rewritten tables
(TRUNCATE, VACUUM FULL, REFRESH) don't count."""


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
        with _authority(target) as authority:
            version = await _log_in(left, **_parameters(target), **place, **authority)
    except (TimeoutError, psycopg.Error, OSError, UnicodeError, ValueError) as error:
        return _not_logged_in(target, timeout, error)
    where = f"{target.host}:{target.port}"
    return Observation(True, REACHABLE, f"logged in at {where} as {target.user}", version)


class Unmeasured(Exception):
    """A server's connections could not be measured; the text says why, and what to do."""


class Meter:
    """A standing connection to a server that counts the server's connections, itself included, and reads the
    schema of its database. Its questions raise Unmeasured."""

    def __init__(self, connection: libpq.Connection, target: Target, timeout: float) -> None:
        self._connection = connection
        self._target = target
        self._timeout = timeout
        self._settings: tuple[int, int, int] = (0, 0, 0)
        self.pid: int = connection.info.backend_pid

    async def identify(self) -> tuple[str, str]:
        """(system, instance) of servers.Identity: they hold as long as the connection does. If the server
        doesn't show its system, the host's address and the port stand for it."""
        [(instance, *settings)] = await self._ask(_INSTANCE)
        self._settings = (int(settings[0]), int(settings[1]), int(settings[2]))
        try:
            [(system,)] = await self._ask(_SYSTEM)
        except Unmeasured:
            if self._connection.closed:
                raise
            return f"{self._connection.info.hostaddr}:{self._target.port}", str(instance)
        return str(system), str(instance)

    async def measure(self) -> Measured:
        """The server's current connections. identify() has to come first."""
        rows = await self._ask(_CONNECTIONS)
        return Measured(
            *self._settings,
            backends=tuple(Backend(row[1], *row[2:]) for row in rows if row[0] == "backend"),
            role_limits={row[2]: row[1] for row in rows if row[0] == "role"},
            database_limits={row[3]: row[1] for row in rows if row[0] == "database"},
        )

    async def snapshot(self) -> str:
        """PostgreSQL's current snapshot: the same snapshot sees the same schema."""
        [(snapshot,)] = await self._ask(_SNAPSHOT)
        return str(snapshot)

    async def schema(self) -> str:
        """A fingerprint of the schema of the connection's database."""
        rows = await self._ask(_SCHEMA)
        return hashlib.sha256("\n".join(sorted(digest for (digest,) in rows)).encode()).hexdigest()[:16]

    async def backends(self, pids: Iterable[int]) -> dict[int, wedges.Backend]:
        """Those of these backends that belong to the connection's role, by PID."""
        rows = await self._ask(_BACKENDS.format(pids=", ".join(map(str, pids))))
        return {
            pid: wedges.Backend(resting, float(seconds), changed) for pid, resting, seconds, changed in rows
        }

    async def terminate(self, pid: int, changed: str) -> bool:
        """End a backend of the connection's role if it has rested from `changed` (of backends()) to this
        moment; returns whether it was ended."""
        rows = await self._ask(_TERMINATE.format(pid=pid, changed=sql.Literal(changed).as_string()))
        return rows == [(True,)]

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._connection.closed

    async def _ask(self, statement: str) -> list[tuple[Any, ...]]:
        try:
            cursor = await libpq.execute(self._connection, statement, self._timeout)
            return await cursor.fetchall()
        except TimeoutError:
            raise Unmeasured(f"no answer within {self._timeout:.2g} s") from None
        except psycopg.Error as error:
            raise Unmeasured(faults.quoted(str(error), self._target.password)) from None


@contextlib.asynccontextmanager
async def measuring(target: Target, timeout: float, names: Names | None = None) -> AsyncIterator[Meter]:
    """Log in to the upstream to measure it; `timeout` (seconds) bounds the lookup of its host, the login and
    each query. `names` as in probe(). Raises Unmeasured."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            place = await resolver.parameters(target.host, names, timeout)
            with _authority(target) as authority:
                connection = await stack.enter_async_context(
                    libpq.connect(
                        timeout,
                        application_name="poolkeeper-budget",
                        **_parameters(target),
                        **place,
                        **authority,
                    )
                )
            await libpq.execute(connection, _PLAIN, timeout)
        except (TimeoutError, psycopg.Error, OSError, UnicodeError, ValueError) as error:
            raise Unmeasured(_not_logged_in(target, timeout, error).message) from None
        yield Meter(connection, target, timeout)


async def trial_login(access: ConsoleAccess, login: Login, entry: str, timeout: float) -> Observation:
    """Log in at a pooler over TLS as a consumer and run SELECT 1, in at most `timeout` seconds.

    Success proves the login's lines in userlist and hba file, its entry, and that the pooler reaches the
    upstream. (A server connection that the pooler holds already may serve the login.) If the pooler itself
    refuses, the reason is PoolerRefused; any other failure has the reason that probe() would give.
    """
    where = f"{access.ip}:{access.port}"
    try:
        with _consumer(access, login, entry) as parameters:
            version = await _log_in(timeout, **parameters)
    except TimeoutError:
        # PgBouncer lets a login wait while it keeps retrying the upstream.
        message = (
            f"login through the pooler at {where} did not finish within {timeout:.2g} s: the pooler can't log"
            " in to the upstream (its log says why), or can't be reached itself"
        )
        return Observation(False, faults.TIMEOUT, message)
    except (psycopg.Error, OSError, UnicodeError) as error:
        text = str(error)
        said = faults.quoted(text, login.password)
        if any(refusal in text for refusal in _POOLER_REFUSALS):
            return Observation(False, POOLER_REFUSED, f"the pooler at {where} refuses {login.name}: {said}")
        reason = faults.reason(text, login.name, entry)
        return Observation(False, reason, f"login through the pooler at {where}: {said}")
    return Observation(True, REACHABLE, f"logged in through the pooler at {where}", version)


@dataclass(frozen=True)
class Echo:
    """The outcome of a probe through a pooler. `said`: what went wrong, empty if the probe was answered;
    `silent`: no answer arrived in time."""

    said: str
    silent: bool = False


async def through_pooler(access: ConsoleAccess, login: Login, entry: str, timeout: float) -> Echo:
    """Log in at a pooler over TLS as a consumer and run SELECT 1, in at most `timeout` seconds."""
    try:
        # The entry's own application_name, since the connection is its consumer's again afterwards.
        with _consumer(access, login, entry) as parameters:
            await _log_in(timeout, application_name="", **parameters)
    except TimeoutError:
        return Echo(f"no answer within {timeout:.2g} s", silent=True)
    except (psycopg.Error, OSError, UnicodeError) as error:
        text = str(error)
        if any(words in text for words in _NO_SLOT):
            return Echo("")
        return Echo(faults.quoted(text, login.password))
    return Echo("")


@contextlib.contextmanager
def _consumer(access: ConsoleAccess, login: Login, entry: str) -> Iterator[dict[str, str]]:
    """libpq's parameters for a consumer's login at a pooler. What listens at the address of a pooler that has
    gone gets no password: it lacks the certificate, and is asked for SCRAM."""
    with libpq.authority(access.authority) as authority:
        yield {
            "host": access.name,
            "hostaddr": access.ip,
            "port": str(access.port),
            "dbname": entry,
            "user": login.name,
            "password": login.password,
            **libpq.VERIFIED,
            **authority,
        }


def _parameters(target: Target) -> dict[str, str]:
    return {
        "port": str(target.port),
        "dbname": target.database,
        "user": target.user,
        "password": target.password,
        "sslmode": target.sslmode,
        # PgBouncer shows the host's name in the TLS handshake only if it verifies it. A server that finds its
        # databases by that name must not look reachable otherwise.
        "sslsni": "1" if target.sslmode == "verify-full" else "0",
        **({"require_auth": "!scram-sha-256"} if _is_long(target) else {}),
    }


def _is_long(target: Target) -> bool:
    """Whether PgBouncer can't log in with the password if the server asks for SCRAM."""
    return len(target.password.encode()) > MAX_SCRAM_PASSWORD_BYTES


def _not_logged_in(target: Target, timeout: float, error: Exception) -> Observation:
    where = f"{target.host}:{target.port}"
    if _is_long(target) and "authentication method requirement" in str(error):
        message = (
            f"login at {where}: the server asks for SCRAM, for which PgBouncer takes no password of more than"
            f" {MAX_SCRAM_PASSWORD_BYTES} bytes; set a shorter one"
        )
        return Observation(False, faults.AUTHENTICATION_FAILED, message)
    if isinstance(error, TimeoutError):
        return _unreachable(faults.TIMEOUT, where, f"no answer within {timeout:.2g} s")
    text = str(error)
    reason = faults.reason(text, target.user, target.database)
    return _unreachable(reason, where, faults.quoted(text, target.password))


def _unreachable(reason: str, where: str, said: str) -> Observation:
    return Observation(False, reason, f"login at {where}: {said}; {_REMEDIES[reason]}")


async def _log_in(timeout: float, **parameters: str) -> int:
    """Log in and run one query, together within `timeout`; returns the server's version."""
    end = asyncio.get_running_loop().time() + timeout
    async with libpq.connect(timeout, **parameters) as connection:
        await libpq.execute(connection, "SELECT 1", end - asyncio.get_running_loop().time())
        return connection.info.server_version


def _authority(target: Target) -> contextlib.AbstractContextManager[dict[str, str]]:
    """The CA, if it is verified. None for `require`, which a CA would turn into verify-ca."""
    if target.sslmode.startswith("verify-"):
        return libpq.authority(target.ca or "")
    return contextlib.nullcontext({})
