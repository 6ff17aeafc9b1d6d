"""The bytes between a server and libpq: every one is counted before libpq gets it.

libpq reads for as long as its buffer has room, and a server chooses how large the buffer grows: one message may
announce 1 GiB. So once libpq is connected, its socket is replaced by one end of a socket pair, and what arrives
from the server goes there in slices. TLS ends here, so that what libpq is about to read can be looked at. Knows
nothing of PostgreSQL's protocol.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import socket
import termios
from collections.abc import Callable

import psycopg

from poolkeeper.upstream.tls import Session

SLICE_BYTES = 8192
"""libpq makes room for as many bytes before it reads."""
LOGIN_BYTES = 1 << 18
"""What a server may send during a login: certificates, parameters, notices."""


class Oversized(psycopg.OperationalError):
    """The server sent more than was asked for; the connection is dead."""


class Ended(Exception):
    """The server ended the connection before the login was over; the text is libpq's."""

    def __init__(self) -> None:
        super().__init__("server closed the connection unexpectedly")


class Wire:
    """Carries bytes between a server and libpq. To be closed after libpq's connection."""

    def __init__(self, descriptor: int) -> None:
        """Take the place of the server at `descriptor`, libpq's connected socket."""
        self._server = socket.socket(fileno=os.dup(descriptor))
        self._server.setblocking(False)
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        theirs.setblocking(False)
        os.dup2(theirs.fileno(), descriptor, inheritable=False)
        theirs.close()
        self._tls: Session | None = None
        self.received = 0
        """Bytes that the server has sent, as they were sent."""

    async def ask(self, request: bytes) -> bytes:
        """Send a request, and wait for the one byte of its answer; empty if the server has ended."""
        await self._send(request)
        return await self._receive(1)  # what follows it may belong to TLS

    async def shake_hands(self, session: Session) -> None:
        """Begin TLS. Raises ssl.SSLError, Ended and Oversized."""
        data, done = b"", False
        while not done:
            try:
                done = session.shake_hands(data)
            finally:
                await self._send(session.to_send())
            if not done and not (data := await self._receive(SLICE_BYTES)):
                raise Ended
            self.check_login()
        self._tls = session

    def check_login(self) -> None:
        """Raises Oversized if the server has sent more than a login takes."""
        if self.received >= LOGIN_BYTES:
            raise Oversized(f"the server sent more than {LOGIN_BYTES >> 10} KiB during the login")

    async def take_in(self, through: Callable[[bytes], bytes] = bytes) -> None:
        """Wait for bytes of the server, and pass a slice of them to libpq; at their end, pass the end.

        `through` says which of them."""
        await asyncio.sleep(0)  # a server that is always ready must not hold up other tasks
        data = await self._receive(SLICE_BYTES)
        over = not data
        if self._tls is not None:
            data = self._tls.opened(data)
            over = over or self._tls.over
            await self._send(self._tls.to_send())
        if passed := through(data):
            self._ours.sendall(passed)
        if over:
            self._ours.shutdown(socket.SHUT_WR)

    async def send_out(self) -> None:
        """Pass what libpq has written to the server."""
        while data := self._written():
            await self._send(data if self._tls is None else self._tls.sealed(data))

    async def _send(self, data: bytes) -> None:
        # If the server takes no more, what it sent last says why.
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(self._server, data)

    async def _receive(self, size: int) -> bytes:
        try:
            data = await asyncio.get_running_loop().sock_recv(self._server, size)
        except OSError:  # a reset
            data = b""
        self.received += len(data)
        return data

    def hang_up(self) -> None:
        """End the connection under a task that waits for the server."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; libpq's last words still reach the server, if it has room for them."""
        last = self._written()
        with contextlib.suppress(OSError):
            self._server.send(last if self._tls is None else self._tls.sealed(last))
        self._server.close()
        self._ours.close()

    def _written(self) -> bytes:
        try:
            return self._ours.recv(1 << 16)
        except OSError:  # nothing, or libpq has closed its end
            return b""


def unread(descriptor: int) -> int:
    """How many bytes at `descriptor`, libpq's socket, libpq has not read yet."""
    number = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, number)
    return number[0]


async def connected(descriptor: int) -> bool:
    """Wait for the outcome of libpq's attempt to connect its socket; libpq asks for the error itself."""
    loop = asyncio.get_running_loop()
    settled: asyncio.Future[None] = loop.create_future()
    loop.add_writer(descriptor, _settle, settled)
    try:
        await settled
    finally:
        loop.remove_writer(descriptor)
    with socket.socket(fileno=os.dup(descriptor)) as handle:
        try:
            handle.getpeername()
        except OSError:
            return False
    return True


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
