"""How libpq logs in at a server: at which addresses, with which TLS, and what it computes meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import ssl
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import psycopg_binary.pq
from psycopg import pq
from psycopg.conninfo import make_conninfo

from poolkeeper.upstream import scram, tls, wire

_SSL_REQUEST = (8).to_bytes(4) + (80877103).to_bytes(4)
_QUICK_ITERATIONS = 20_000
"""Some 40 ms: five times PostgreSQL's default."""

# One thread: servers that ask for much wait for one another.
_hashing = ThreadPoolExecutor(1, "hashing")
# psycopg holds the interpreter while libpq hashes; ctypes does not. This is the libpq that psycopg uses: the
# library is found through the module that is linked with it.
_libpq = ctypes.CDLL(psycopg_binary.pq.__file__)
_libpq.PQconnectPoll.argtypes = [ctypes.c_void_p]


async def log_in(
    parameters: Mapping[str, str], encryption: tls.ServerTls | None
) -> tuple[pq.abc.PGconn, wire.Wire]:
    """Try the addresses of the host one after the other; an error has the words of all that failed."""
    said = []
    for place in _places(parameters):
        try:
            return await _log_in_at({**parameters, **place}, encryption)
        except psycopg.Error as error:
            if isinstance(error, wire.Oversized):
                raise
            said.append(str(error).strip())
    raise psycopg.OperationalError("\n".join(said))


def _places(parameters: Mapping[str, str]) -> list[dict[str, str]]:
    """libpq's parameters for each address. A name needs its address with it (resolver.py): libpq would block
    while it resolves one, and complete it as a name of the operator's own namespace."""
    hosts = parameters["host"].split(",")
    addresses = parameters.get("hostaddr", parameters["host"]).split(",")
    for address in addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise psycopg.OperationalError(f"host {address!r} has not been resolved") from None
    return [{"host": host, "hostaddr": address} for host, address in zip(hosts, addresses, strict=True)]


async def _log_in_at(
    parameters: Mapping[str, str], encryption: tls.ServerTls | None
) -> tuple[pq.abc.PGconn, wire.Wire]:
    # For libpq the connection has no TLS: it ends in the wire.
    conninfo = make_conninfo(**{**parameters, "sslmode": "disable", "gssencmode": "disable"})
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    with contextlib.ExitStack() as closing:
        closing.callback(pgconn.finish)
        if pgconn.status == pq.ConnStatus.BAD or not await wire.connected(pgconn.socket):
            pgconn.connect_poll()
            raise psycopg.OperationalError(pgconn.error_message.decode(errors="replace"))
        carrier = wire.Wire(pgconn.socket)
        closing.pop_all()
        closing.callback(close, pgconn, carrier)
        try:
            if encryption is not None:
                await _secure(carrier, encryption.session(parameters["host"]))
            await _authenticate(pgconn, carrier, closing)
        except (ssl.SSLError, tls.NotOffered, wire.Ended, scram.Unacceptable) as error:
            said = tls.words(error) if isinstance(error, ssl.SSLError | tls.NotOffered) else str(error)
            where = f'connection to server at "{parameters["hostaddr"]}", port {parameters.get("port", 5432)}'
            raise psycopg.OperationalError(f"{where} failed: {said}") from None
        closing.pop_all()
    return pgconn, carrier


async def _secure(carrier: wire.Wire, session: tls.Session) -> None:
    """Ask for TLS, and begin it. Raises ssl.SSLError, tls.NotOffered, wire.Ended and psycopg.Error.
    https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL"""
    answer = await carrier.ask(_SSL_REQUEST)
    if answer == b"N":
        raise tls.NotOffered
    if not answer:
        raise wire.Ended
    if answer != b"S":
        raise psycopg.OperationalError(f"received invalid response to SSL negotiation: {answer!r}")
    await carrier.shake_hands(session)


async def _authenticate(pgconn: pq.abc.PGconn, carrier: wire.Wire, closing: contextlib.ExitStack) -> None:
    """What libpq does from the connection to the end of the login. Raises scram.Unacceptable."""
    exchange = scram.Exchange()
    left = -1
    state: int = pq.PollingStatus.WRITING
    while state != pq.PollingStatus.OK:
        if state == pq.PollingStatus.READING:
            unread = wire.unread(pgconn.socket)
            if unread == left:
                carrier.check_login()
                await carrier.take_in(exchange.pass_on)
                unread = -1
            left = unread
        if exchange.iterations > _QUICK_ITERATIONS:
            state = await _poll_beside(pgconn, closing)
        else:
            state = pgconn.connect_poll()
        await carrier.send_out()
        if pgconn.status == pq.ConnStatus.BAD or state == pq.PollingStatus.FAILED:
            raise psycopg.OperationalError(pgconn.error_message.decode(errors="replace"))


async def _poll_beside(pgconn: pq.abc.PGconn, closing: contextlib.ExitStack) -> int:
    """Let libpq go on in a thread. It can't be interrupted: if this is cancelled, the connection is closed once
    the thread is done with it."""
    pointer = pgconn.pgconn_ptr  # type: ignore[attr-defined]
    hashing: Future[int] = _hashing.submit(_libpq.PQconnectPoll, pointer)
    try:
        return await asyncio.shield(asyncio.wrap_future(hashing))
    except asyncio.CancelledError:
        hashing.cancel()
        rest = closing.pop_all()
        hashing.add_done_callback(lambda _: rest.close())
        raise


def close(pgconn: pq.abc.PGconn, carrier: wire.Wire) -> None:
    """Close a connection, begun or after its login."""
    pgconn.finish()
    carrier.close()
