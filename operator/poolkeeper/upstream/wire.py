"""The bytes between a server and libpq: every one is counted before libpq gets it.

libpq reads for as long as its buffer has room, and a server chooses how large the buffer grows: one message may
announce 1 GiB. So once libpq is connected, its socket is replaced by one end of a socket pair, and what arrives
from the server goes there in slices. TLS is libpq's as before: the slices carry its records. Knows nothing of
the protocol.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import socket
import termios

SLICE_BYTES = 8192
"""libpq makes room for as many bytes before it reads."""


class Wire:
    """Carries bytes between a server and libpq. To be closed after libpq's connection."""

    def __init__(self, descriptor: int) -> None:
        """Take the place of the server at `descriptor`, libpq's connected socket."""
        self._server = socket.socket(fileno=os.dup(descriptor))
        self._server.setblocking(False)
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        theirs.setblocking(False)
        self._inode = os.fstat(theirs.fileno()).st_ino
        os.dup2(theirs.fileno(), descriptor, inheritable=False)
        theirs.close()
        self.received = 0
        """Bytes that the server has sent."""

    def serves(self, descriptor: int) -> bool:
        """Whether libpq still has its end: for another attempt it makes a new socket."""
        return os.fstat(descriptor).st_ino == self._inode

    async def take_in(self) -> None:
        """Wait for bytes of the server, and pass a slice of them to libpq; at their end, pass the end."""
        await asyncio.sleep(0)  # a server that is always ready must not hold up other tasks
        try:
            data = await asyncio.get_running_loop().sock_recv(self._server, SLICE_BYTES)
        except OSError:  # a reset
            data = b""
        self.received += len(data)
        if data:
            self._ours.sendall(data)
        else:
            self._ours.shutdown(socket.SHUT_WR)

    async def send_out(self) -> None:
        """Pass what libpq has written to the server. If that takes no more, what it sent last says why."""
        while data := self._written():
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(self._server, data)

    def hang_up(self) -> None:
        """End the connection under a task that waits for the server."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; libpq's last words still reach the server, if it has room for them."""
        with contextlib.suppress(OSError):
            self._server.send(self._written())
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
