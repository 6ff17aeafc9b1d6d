"""As much of a PostgreSQL server as a login, SELECT 1 and a measurement need.

It tells right passwords from wrong ones, and shows no connections but the one that asks and those of others
that it is told of, so that nothing hangs on who else is just being tested.

The operator is what these tests watch; how it speaks to a real server is tested with a real server.
"""

from __future__ import annotations

import contextlib
import itertools
import socketserver
import struct
import threading
from collections.abc import Sequence

from poolkeeper.workers import statements

_TEXT, _BIGINT, _INTEGER = 25, 20, 23
_systems = itertools.count(7_300_000_000_000_000_001)
_pids = itertools.count(1000)


class FakePostgres(socketserver.ThreadingTCPServer):
    """Accepts the passwords in `passwords`; everything else is refused as PostgreSQL does."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, *passwords: str) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.passwords = set(passwords)
        self.max_connections = 200
        self.measurable = True
        """Whether it tells who is connected."""
        self.others = 0
        """Connections of somebody else."""
        self.system = next(_systems)
        """As no other server has it."""
        self.port: int = self.server_address[1]
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()


class _Session(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # operators are killed here in mid-login
            self._serve()

    def _serve(self) -> None:
        (length,) = struct.unpack("!I", self._read(4))
        # The startup packet; with TLS disabled nothing comes before it.
        words = self._read(length - 4)[4:].decode().split("\0")
        startup = dict(zip(words[::2], words[1::2], strict=False))
        pid = next(_pids)
        self._send(b"R", struct.pack("!I", 3))  # AuthenticationCleartextPassword
        kind, password = self._message()
        server = self.server
        assert isinstance(server, FakePostgres)
        if kind != b"p" or password.rstrip(b"\0").decode() not in server.passwords:
            self._send(b"E", b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "o"\0\0')
            return
        self._send(b"R", struct.pack("!I", 0))
        for name, value in (("server_version", "17.2"), ("client_encoding", "UTF8")):
            self._send(b"S", f"{name}\0{value}\0".encode())
        self._send(b"K", struct.pack("!II", pid, 1))
        self._ready()
        while (message := self._message())[0] == b"Q":
            self._answer(message[1].strip(b"\0 ;").decode(), pid, startup["user"], startup["database"])

    def _answer(self, statement: str, pid: int, user: str, database: str) -> None:
        server = self.server
        assert isinstance(server, FakePostgres)
        statement = statement.removeprefix(f"{statements.PIN}; ")
        if statement.upper() == "SELECT 1":
            self._rows((_INTEGER,), [(1,)])
        elif not server.measurable:
            self._send(b"E", b"SERROR\0VERROR\0C42501\0Mpermission denied\0\0")
            self._ready()
            return
        elif statement == statements.SYSTEM:
            self._rows((_BIGINT,), [(server.system,)])
        elif statement == statements.INSTANCE:
            self._rows((_TEXT,) * 4, [(f"1700000000000000 {server.port}", server.max_connections, 3, 0)])
        elif statement == statements.CONNECTIONS:
            others = [("backend", 100_000 + number, "other", "other", "") for number in range(server.others)]
            own = ("backend", pid, user, database, "127.0.0.1")
            self._rows((_TEXT, _INTEGER, _TEXT, _TEXT, _TEXT), [own, *others])
        elif statement == statements.SNAPSHOT:
            self._rows((_TEXT,), [("always the same",)])
        elif statement == statements.SCHEMA:
            self._rows((_TEXT,), [("always the same",)] * 5)
        self._send(b"C", b"SELECT 1\0")
        self._ready()

    def _rows(self, types: Sequence[int], rows: Sequence[Sequence[object]]) -> None:
        columns = b"".join(b"c\0" + struct.pack("!IHIhIH", 0, 0, kind, -1, 0, 0) for kind in types)
        self._send(b"T", struct.pack("!H", len(types)) + columns)
        for row in rows:
            values = [str(value).encode() for value in row]
            parts = b"".join(struct.pack("!I", len(value)) + value for value in values)
            self._send(b"D", struct.pack("!H", len(values)) + parts)

    def _ready(self) -> None:
        self._send(b"Z", b"I")

    def _send(self, kind: bytes, body: bytes) -> None:
        self.wfile.write(kind + struct.pack("!I", len(body) + 4) + body)

    def _message(self) -> tuple[bytes, bytes]:
        kind = self.rfile.read(1)
        if not kind:
            return b"", b""
        (length,) = struct.unpack("!I", self._read(4))
        return kind, self._read(length - 4)

    def _read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError
        return data
