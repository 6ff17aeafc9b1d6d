"""Connections through libpq (psycopg) with strict time limits and the simple protocol, closed in any case.

Shared by workers/upstream.py and pgbouncer/console.py; knows nothing about queries and answers.
"""

import asyncio
import contextlib
import math
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

VERIFIED = {"sslmode": "verify-full", "require_auth": "scram-sha-256", "gssencmode": "disable"}
"""For logins at our own processes, which all have a certificate and a SCRAM verifier: a server that can't prove
that it knows the verifier gets neither the password nor a query."""

Connection = psycopg.AsyncConnection[Any]


@contextlib.asynccontextmanager
async def connect(timeout: float, **parameters: str) -> AsyncIterator[Connection]:
    """Log in within `timeout` seconds; `parameters` are libpq's. Closes the connection at the end.

    Raises TimeoutError, psycopg.Error, OSError, and UnicodeError for an impossible host name.
    """
    async with asyncio.timeout(timeout):
        connection = await psycopg.AsyncConnection.connect(
            make_conninfo(
                **{"application_name": "poolkeeper", "connect_timeout": str(math.ceil(timeout)), **parameters}
            ),
            autocommit=True,
            cursor_factory=psycopg.AsyncClientCursor,
        )
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.contextmanager
def authority(certificate: str) -> Iterator[dict[str, str]]:
    """The libpq parameter for certificates (PEM) to verify a server against: libpq reads them from a file."""
    with tempfile.TemporaryDirectory(prefix="poolkeeper-") as directory:  # mode 0700
        path = Path(directory, "ca.crt")
        path.touch(mode=0o600)
        path.write_text(certificate)
        yield {"sslrootcert": str(path)}


async def execute(connection: Connection, command: str, timeout: float) -> psycopg.AsyncCursor[Any]:
    """Run one command by the simple protocol within `timeout` seconds.

    Raises TimeoutError, after which the connection is dead, and psycopg.Error.
    """
    task = asyncio.ensure_future(connection.execute(command))
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout)
        if not done:
            raise TimeoutError
        return task.result()
    finally:
        if not task.done():
            # If the task were cancelled, psycopg would send a cancel request and wait 10 s for its effect.
            _hang_up(connection)
            with contextlib.suppress(psycopg.Error):
                await task


def _hang_up(connection: Connection) -> None:
    """Shut the socket down under libpq, which then reads an end of file and closes its own descriptor."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as handle:
        handle.shutdown(socket.SHUT_RDWR)
