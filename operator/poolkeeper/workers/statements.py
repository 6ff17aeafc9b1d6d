"""The SQL that the operator runs in an upstream, and what its answers mean. Sends nothing itself.

The operator logs in as a role that may belong to a hostile tenant, whose settings come with it: a search_path
with functions, views, operators, types and casts of the tenant's own, timeouts, formats. So every statement
comes after PIN, names the schema of each function, relation, type and operator, and answers in numbers whose
text depends on no setting.

Names of databases and roles are bytes: a server keeps them in the encoding of whichever database they were made
from, and an answer may mix several. They are compared, never shown.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from poolkeeper.budget.servers import Backend, Measured
from poolkeeper.data_path import wedges
from poolkeeper.upstream.libpq import Limit

Row = tuple[str | None, ...]

MEASUREMENT = Limit(1 << 22, 20_000)
"""Backends, and limits of roles and databases."""
FEW_ROWS = Limit(1 << 18, 1_000)

_MOST_CONNECTIONS = (1 << 18) - 1
"""PostgreSQL's maximum of max_connections."""
_INTEGER = (1 << 31) - 1
_LONGEST_INSTANCE = 64


class Implausible(ValueError):
    """An answer that no PostgreSQL gives; the text says what about it."""


def _qualified(statement: str) -> str:
    """The statement with the schema of its operators. All of them bind equally then."""
    return re.sub(r" (=|<>|>=|-|\*) ", r" OPERATOR(pg_catalog.\1) ", statement)


PIN = "; ".join(
    (
        # Longer than the operator waits. It comes first, since the role's own may be a millisecond.
        "SET LOCAL statement_timeout = '10s'",
        # A transaction that is serializable and deferrable waits for other transactions.
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, NOT DEFERRABLE",
        "SET LOCAL search_path = pg_catalog, pg_temp",
        "SET LOCAL role = none",
        "SET LOCAL exit_on_error = off",
        # No conversion: every database has one to it, and names come as they are.
        "SET LOCAL client_encoding = 'SQL_ASCII'",
        "SET LOCAL client_min_messages = error",
    )
)
"""Comes before each statement, in the same message and so in the same transaction. These commands look up no
names and leave nothing behind in the session, which may be others' too: the upstream may be a pooler itself."""

SYSTEM = "SELECT system_identifier FROM pg_catalog.pg_control_system()"

INSTANCE = _qualified(
    "SELECT pg_catalog.concat("
    "CAST(extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000 AS bigint),"
    " ' ', pg_catalog.current_setting('port')), pg_catalog.current_setting('max_connections'),"
    " pg_catalog.current_setting('superuser_reserved_connections'),"
    # PostgreSQL has it since 16.
    " coalesce(pg_catalog.current_setting('reserved_connections', true), '0')"
)

CONNECTIONS = _qualified(
    "SELECT 'backend', pid, coalesce(usename, ''), coalesce(datname, ''),"
    " coalesce(pg_catalog.host(client_addr), '')"
    " FROM pg_catalog.pg_stat_activity WHERE datid IS NOT NULL AND usesysid IS NOT NULL"
    # A role without pg_monitor sees no type of other roles' backends: parallel workers then count as well.
    " AND coalesce(backend_type, 'client backend') = 'client backend'"
    " UNION ALL SELECT 'role', rolconnlimit, rolname, '', ''"
    " FROM pg_catalog.pg_roles WHERE rolconnlimit >= 0 AND NOT rolsuper"
    " UNION ALL SELECT 'database', datconnlimit, '', datname, ''"
    " FROM pg_catalog.pg_database WHERE datconnlimit >= 0"
)
"""Connections and limits. Every role may read all of it."""

SNAPSHOT = "SELECT pg_catalog.txid_current_snapshot()"

_CHANGED = _qualified("CAST(extract(epoch FROM state_change) * 1000000 AS bigint)")
_BACKENDS = _qualified(
    "SELECT pid, coalesce(state = 'idle' AND xact_start IS NULL, false),"
    " coalesce(extract(epoch FROM (pg_catalog.clock_timestamp() - state_change)), 0),"
    " coalesce({changed_at}, 0)"
    " FROM pg_catalog.pg_stat_activity WHERE usename = session_user AND pid = ANY (ARRAY[{pids}])"
)
"""A plain role sees the state of its own backends only."""

_TERMINATE = _qualified(
    "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE usename = session_user"
    " AND pid = {pid} AND state = 'idle' AND xact_start IS NULL AND {changed_at} = {changed}"
)

_FIRST_OID = 16384
"""Objects with a lower OID came with PostgreSQL."""
_RELATIONS = "relkind = ANY (ARRAY['r', 'v', 'm', 'f', 'p', 'c']) AND relpersistence <> 't'"
_DIGEST = (
    "SELECT pg_catalog.concat(pg_catalog.count(*), ' ',"
    " pg_catalog.sum(pg_catalog.hashtextextended(pg_catalog.concat_ws(' ', {columns}), 0))) FROM {rows}"
)
SCHEMA = _qualified(
    " UNION ALL ".join(
        _DIGEST.format(columns=columns, rows=rows)
        for columns, rows in (
            (
                "attrelid, attnum, attname, atttypid, atttypmod, attcollation, attisdropped",
                "pg_catalog.pg_attribute JOIN pg_catalog.pg_class ON pg_class.oid = attrelid"
                f" WHERE attnum >= 1 AND attrelid >= {_FIRST_OID} AND {_RELATIONS}",
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
            (
                "oid, nspname",
                f"pg_catalog.pg_namespace WHERE oid >= {_FIRST_OID}"
                " AND NOT pg_catalog.starts_with(CAST(nspname AS pg_catalog.text), 'pg_')",
            ),
        )
    )
)
"""Everything that the columns of a statement's result depend on. Temporary tables, indexes and rewritten tables
(TRUNCATE, VACUUM FULL, REFRESH) don't count."""


def backends_statement(pids: Iterable[int]) -> str:
    """Asks for those of these backends that belong to the session's role."""
    return _BACKENDS.format(pids=", ".join(str(int(pid)) for pid in pids), changed_at=_CHANGED)


def terminate_statement(pid: int, changed: str) -> str:
    """Ends a backend of the session's role if it has rested from `changed` (wedges.Backend) to that moment."""
    return _TERMINATE.format(pid=int(pid), changed=int(changed), changed_at=_CHANGED)


def texts(row: Iterable[bytes | None]) -> Row:
    """A row's values; bytes that are not UTF-8 become surrogates, so that each name has a text of its own."""
    return tuple(None if value is None else value.decode(errors="surrogateescape") for value in row)


# Answers. All of these raise Implausible.


def one_value(rows: Iterable[Row]) -> str:
    """The text of an answer that has one row with one value."""
    [value] = _one_row(rows, 1)
    return value


def system(rows: Iterable[Row]) -> str:
    """The answer to SYSTEM: PostgreSQL's number of the database cluster."""
    return str(_integer(one_value(rows), (1 << 64) - 1, "system_identifier"))


def instance(rows: Iterable[Row]) -> tuple[str, tuple[int, int, int]]:
    """The answer to INSTANCE: the instance of servers.Identity; max_connections and what is reserved of it for
    superusers and for pg_use_reserved_connections."""
    started, *settings = _one_row(rows, 4)
    if not re.fullmatch(r"[0-9]+ [0-9]+", started) or len(started) > _LONGEST_INSTANCE:
        raise Implausible("the time of the server's start is no number")
    names = ("max_connections", "superuser_reserved_connections", "reserved_connections")
    most, superuser, reserved = (
        _integer(value, _MOST_CONNECTIONS, name) for value, name in zip(settings, names, strict=True)
    )
    if superuser + reserved >= most:
        raise Implausible(f"max_connections is {most}, and {superuser + reserved} connections are reserved")
    return started, (most, superuser, reserved)


def measured(rows: Iterable[Row], settings: tuple[int, int, int]) -> Measured:
    """The answer to CONNECTIONS; `settings` are those of instance()."""
    backends: list[Backend] = []
    limits: dict[str, dict[str, int]] = {"role": {}, "database": {}}
    for row in rows:
        kind, number, user, database, address = _texts(row, 5)
        if kind == "backend":
            backends.append(Backend(_integer(number, _INTEGER, "a PID"), user, database, address))
        elif kind in limits:
            name = user if kind == "role" else database
            limits[kind][name] = _integer(number, _INTEGER, "a CONNECTION LIMIT")
        else:
            raise Implausible("pg_stat_activity has rows of no known kind")
    if not backends:
        raise Implausible("pg_stat_activity lacks the operator's own connection")
    if len({backend.pid for backend in backends}) < len(backends):
        raise Implausible("pg_stat_activity has a PID twice")
    return Measured(*settings, tuple(backends), limits["role"], limits["database"])


def fingerprint(rows: Iterable[Row]) -> str:
    """The answer to SCHEMA, as a short text."""
    digests = sorted(value for row in rows for value in _texts(row, 1))
    if len(digests) != SCHEMA.count(" UNION ALL ") + 1:
        raise Implausible("the catalogs are answered in part")
    return hashlib.sha256("\n".join(digests).encode(errors="surrogateescape")).hexdigest()[:16]


def resting(rows: Iterable[Row]) -> dict[int, wedges.Backend]:
    """The answer to backends_statement(), by PID."""
    found = {}
    for row in rows:
        pid, resting, seconds, changed = _texts(row, 4)
        try:
            rested = float(seconds)
        except ValueError:
            raise Implausible("the time since a backend's change is no number") from None
        since = str(_integer(changed, 1 << 63, "the time of a backend's change"))
        found[_integer(pid, _INTEGER, "a PID")] = wedges.Backend(resting == "t", rested, since)
    return found


def terminated(rows: Iterable[Row]) -> bool:
    """The answer to terminate_statement(): whether the backend was ended."""
    return [_texts(row, 1) for row in rows] == [("t",)]


def _one_row(rows: Iterable[Row], columns: int) -> tuple[str, ...]:
    found = tuple(rows)
    if len(found) != 1:
        raise Implausible(f"{len(found)} rows in place of one")
    return _texts(found[0], columns)


def _texts(row: Row, columns: int) -> tuple[str, ...]:
    found = tuple(value for value in row if value is not None)
    if len(found) != columns or len(row) != columns:
        raise Implausible(f"a row has {len(found)} values in place of {columns}")
    return found


def _integer(text: str, most: int, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,20}", text) or int(text) > most:
        raise Implausible(f"{what} is no number from 0 to {most}")
    return int(text)
