"""Connections through libpq (psycopg) with strict limits on time and size, closed in any case.

They use the simple protocol. Shared by workers/upstream.py and pgbouncer/console.py; knows nothing about
queries. A server may be anything that a tenant runs: whatever it sends (rows, one endless field, notices,
parameters), no more than a limit of it is ever held.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass

import psycopg
from psycopg import pq

from poolkeeper.upstream import login, wire
from poolkeeper.upstream.tls import ServerTls

Row = tuple[bytes | None, ...]

_STRAY_BYTES = 1 << 22
"""What a server may send in a connection's lifetime that belongs to no answer: libpq keeps all parameters."""
_ERROR_BYTES = 2048
_TLS_RECORD_BYTES = 64
"""More than TLS adds to a record. Records are mostly as large as a server's buffer, 8 KiB."""


@dataclass(frozen=True)
class Limit:
    """How much of one answer is read."""

    bytes: int
    rows: int


ONE_ROW = Limit(1 << 16, 1)
CONSOLE = Limit(1 << 24, 100_000)
"""Tens of thousands of connections in SHOW SOCKETS."""


HELD_BYTES = 48 << 20
"""How much of all unfinished answers together is held."""
_ROW_BYTES = 100
"""What a row takes beyond its values, at least."""


@dataclass(frozen=True)
class Answer:
    """The names of an answer's columns, and its rows in the server's own bytes."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]


_unfinished: "dict[Connection, int]" = {}
"""How much is held of each answer that is still being read."""


class Connection:
    """A connection after its login. Commands of several tasks follow one another."""

    def __init__(self, pgconn: pq.abc.PGconn, carrier: wire.Wire) -> None:
        self._pgconn = pgconn
        self._wire = carrier
        self._pgconn.nonblocking = 1
        self._lock = asyncio.Lock()
        self._stray = 0
        self._crowded_out = False
        self.pid: int = pgconn.backend_pid
        """The server's process, as the server says."""
        self.server_version: int = pgconn.server_version
        self.address: str = pgconn.hostaddr.decode()

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._pgconn.status != pq.ConnStatus.OK

    def close(self) -> None:
        """Close the connection. A command under way fails, and closes it."""
        if self._lock.locked():
            self._wire.hang_up()
        else:
            self._close()

    def _close(self) -> None:
        login.close(self._pgconn, self._wire)

    async def execute(self, command: str, limit: Limit) -> Answer:
        """As execute() below, without a limit on time."""
        async with self._lock:
            try:
                answer, refusal = await self._ask(command, limit)
            except BaseException:  # the rest of the answer is still to come
                self._close()
                raise
            finally:
                _unfinished.pop(self, None)
        if refusal is not None:
            raise refusal
        return answer

    async def _ask(self, command: str, limit: Limit) -> tuple[Answer, psycopg.Error | None]:
        """The answer to the last statement of the command, and the error if the server refused one. Raises
        wire.Oversized and psycopg.Error in the middle of an answer."""
        begun = self._wire.received
        self._pgconn.send_query(command.encode())
        self._pgconn.set_single_row_mode()
        answer = Answer((), ())
        rows: list[Row] = []
        refusal: psycopg.Error | None = None
        expected = 0
        while (result := await self._result(begun, len(rows), limit)) is not None:
            match result.status:
                case pq.ExecStatus.SINGLE_TUPLE:
                    row = tuple(result.get_value(0, column) for column in range(result.nfields))
                    rows.append(row)
                    expected += 7 + sum(4 + len(value or b"") for value in row)
                    if len(rows) > limit.rows:
                        raise wire.Oversized(f"the server answered with more than {limit.rows} rows")
                case pq.ExecStatus.TUPLES_OK | pq.ExecStatus.COMMAND_OK | pq.ExecStatus.EMPTY_QUERY:
                    columns = [result.fname(column) or b"" for column in range(result.nfields)]
                    names = tuple(name.decode(errors="replace") for name in columns)
                    answer, rows = Answer(names, tuple(rows)), []
                    expected += 32 + sum(19 + len(name) for name in columns) + len(result.command_status or b"")
                case pq.ExecStatus.FATAL_ERROR:
                    refusal = refusal or _refusal(result)
                    expected += _ERROR_BYTES
                case status:
                    raise psycopg.OperationalError(
                        f"the server answered with something else than rows ({status})"
                    )
        if self.closed:
            raise refusal or psycopg.OperationalError("the connection is lost")
        while self._pgconn.notifies() is not None:  # libpq keeps them until then
            pass
        received = self._wire.received - begun
        records = _TLS_RECORD_BYTES * (2 + received // wire.SLICE_BYTES)
        self._stray += max(0, received - expected - records)
        if self._stray > _STRAY_BYTES:
            raise wire.Oversized(f"the server sent more than {_STRAY_BYTES >> 10} KiB that were not asked for")
        return answer, refusal

    def _hold(self, size: int) -> None:
        """Note how much of the answer is held. If all answers together are too much, the largest one fails: a
        tenant's many floods get in each other's way first."""
        _unfinished[self] = size
        if size > wire.SLICE_BYTES and sum(_unfinished.values()) > HELD_BYTES:
            largest = max(_unfinished, key=_unfinished.__getitem__)
            largest._crowded_out = True
            largest._wire.hang_up()
        if self._crowded_out:
            raise wire.Oversized(
                "too much is being answered at one time, and this server's answer is the largest part"
            )

    async def _result(self, begun: int, rows: int, limit: Limit) -> "pq.abc.PGresult | None":
        """The next part of the answer, None at its end; `begun`: how many bytes had been received before it,
        `rows`: how many rows of it have been."""
        left = -1
        while True:
            if not self._pgconn.is_busy():
                return self._pgconn.get_result()
            unread = wire.unread(self._pgconn.socket)
            if unread == left:
                if self._wire.received - begun >= limit.bytes:
                    raise wire.Oversized(f"the server answered with more than {limit.bytes >> 10} KiB")
                await self._wire.send_out()
                await self._wire.take_in()
                self._hold(self._wire.received - begun + _ROW_BYTES * rows)
                unread = -1
            # libpq reads as much as it has room for: until it makes no progress.
            left = unread
            self._pgconn.consume_input()


@contextlib.asynccontextmanager
async def connect(
    timeout: float, *, tls: ServerTls | None = None, **parameters: str
) -> AsyncIterator[Connection]:
    """Log in within `timeout` seconds, with TLS if given; `parameters` are libpq's, except those of TLS. Closes
    the connection at the end.

    Raises TimeoutError, psycopg.Error, OSError, and UnicodeError for an impossible host name.
    """
    async with asyncio.timeout(timeout):
        pgconn, carrier = await login.log_in(
            {
                "application_name": "poolkeeper",
                "connect_timeout": str(math.ceil(timeout)),
                **parameters,
            },
            tls,
        )
    connection = Connection(pgconn, carrier)
    try:
        yield connection
    finally:
        connection.close()


async def execute(connection: Connection, command: str, timeout: float, limit: Limit = CONSOLE) -> Answer:
    """Run one command by the simple protocol within `timeout` seconds.

    Raises TimeoutError and Oversized, after which the connection is dead, and psycopg.Error.
    """
    async with asyncio.timeout(timeout):
        return await connection.execute(command, limit)


def _refusal(result: "pq.abc.PGresult") -> psycopg.Error:
    """The server's error, in whatever encoding its words are."""
    primary = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY)
    said = (primary or result.error_message).decode(errors="replace")
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode(errors="replace")
    canceled = state == psycopg.errors.QueryCanceled.sqlstate
    return psycopg.errors.QueryCanceled(said) if canceled else psycopg.OperationalError(said)
