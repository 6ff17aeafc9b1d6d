"""A server that speaks the beginning of PostgreSQL's protocol, and then whatever the test tells it to.

Floods come from a process of their own, so that a test can weigh itself."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import struct
import threading
from collections.abc import Callable, Iterator


def message(kind: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """A message; with a `length` that is not its own if given."""
    return kind + struct.pack("!I", len(body) + 4 if length is None else length) + body


def row(*values: bytes) -> bytes:
    parts = b"".join(struct.pack("!I", len(value)) + value for value in values)
    return message(b"D", struct.pack("!H", len(values)) + parts)


def columns(*names: bytes) -> bytes:
    parts = b"".join(name + b"\0" + struct.pack("!IHIhIH", 0, 0, 25, -1, 0, 0) for name in names)
    return message(b"T", struct.pack("!H", len(names)) + parts)


PASSWORD = message(b"R", struct.pack("!I", 3))
TRUSTED = message(b"R", struct.pack("!I", 0))
PARAMETERS = message(b"S", b"server_version\x0017.2\0") + message(b"S", b"client_encoding\0SQL_ASCII\0")
KEY = message(b"K", struct.pack("!II", 4711, 1))
READY = message(b"Z", b"I")
ONE = columns(b"c") + row(b"1")
DONE = message(b"C", b"SELECT 1\0")

Script = tuple[tuple[bytes, ...], tuple[bytes, ...]]
"""What to send at the login and to each query, in pieces. After REPEAT the last piece is repeated for ever,
STALL keeps the connection open in silence, and DROP ends it."""
REPEAT, STALL, DROP = b"repeat", b"stall", b"drop"

LOGIN = (PASSWORD, b"", TRUSTED, PARAMETERS, KEY, READY)
"""The empty piece waits for the client's next message."""
ANSWER = (ONE, DONE, READY)


def endless(kind: bytes) -> tuple[bytes, ...]:
    """A message that says it is 1 GiB long, and goes on for ever: libpq makes room for all of it."""
    begun = struct.pack("!HI", 1, (1 << 30) - 10) if kind == b"D" else b""
    return (message(kind, begun, 1 << 30), REPEAT, b"\0\1" * (1 << 15))


def parameters() -> bytes:
    return b"".join(message(b"S", b"p%d\0%s\0" % (number, b"x" * 900)) for number in range(5000))


FLOODS: dict[str, Script] = {
    "rows": (LOGIN, (ONE, REPEAT, row(b"1") * 4000)),
    "empty rows": (LOGIN, (columns(), REPEAT, row() * 8000)),
    "long rows": (LOGIN, (columns(b"c"), REPEAT, row(b"x" * 50_000))),
    "a field": (LOGIN, (columns(b"c"), *endless(b"D"))),
    "a description": (LOGIN, endless(b"T")),
    "an error": (LOGIN, endless(b"E")),
    "notices": (LOGIN, (REPEAT, message(b"N", b"SNOTICE\0C00000\0M" + b"x" * 9000 + b"\0\0"))),
    "notifications": (
        LOGIN,
        (REPEAT, message(b"A", struct.pack("!I", 1) + b"channel\0" + b"x" * 9000 + b"\0")),
    ),
    "parameters": (LOGIN, (REPEAT, parameters())),
    "answers": (LOGIN, (REPEAT, (ONE + DONE) * 1000)),
    "errors": (LOGIN, (REPEAT, message(b"E", b"SERROR\0C42000\0Mno\0\0") * 1000)),
    "copied data": (LOGIN, (message(b"H", b"\0\0\0"), REPEAT, message(b"d", b"x" * 60_000))),
    "parameters at the login": ((PASSWORD, b"", TRUSTED, REPEAT, parameters()), ()),
    "notices at the login": ((PASSWORD, b"", TRUSTED, REPEAT, message(b"N", b"SNOTICE\0Mx\0\0") * 2000), ()),
    "an error at the login": (endless(b"E"), ()),
    "a request at the login": (endless(b"R"), ()),
    "bytes at the login": ((REPEAT, b"\xff" * 60_000), ()),
}


@contextlib.contextmanager
def serving(script: Script) -> Iterator[int]:
    """Serve the script from a thread of this process; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener, script), daemon=True).start()
        yield listener.getsockname()[1]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def flooding(script: Script) -> Iterator[int]:
    """Serve the script from a process; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(listener, script), daemon=True
        )
        process.start()
        try:
            yield listener.getsockname()[1]
        finally:
            process.kill()
            process.join()


def _serve(listener: socket.socket, script: Script) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_session, args=(connection, script), daemon=True).start()


def _session(connection: socket.socket, script: Script) -> None:
    login, answer = script
    with contextlib.suppress(OSError, EOFError), connection, connection.makefile("rb") as incoming:

        def read(size: int) -> bytes:
            data = incoming.read(size)
            if len(data) < size:
                raise EOFError
            return data

        def request() -> None:
            read(1)
            read(struct.unpack("!I", read(4))[0] - 4)

        read(struct.unpack("!I", read(4))[0] - 4)
        _send(connection, login, request)
        while True:
            request()
            _send(connection, answer, request)


def _send(connection: socket.socket, pieces: tuple[bytes, ...], request: Callable[[], None]) -> None:
    for piece in pieces:
        if piece == REPEAT:
            while True:
                connection.sendall(pieces[-1])
        elif piece == STALL:
            threading.Event().wait()
        elif piece == DROP:
            raise EOFError
        elif not piece:
            request()
        else:
            connection.sendall(piece)
