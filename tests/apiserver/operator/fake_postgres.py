"""As much of a PostgreSQL server as a login and SELECT 1 need: it tells right passwords from wrong ones.

The operator is what these tests watch; how it speaks to a real server is tested with a real server.
"""

from __future__ import annotations

import contextlib
import socketserver
import struct
import threading


class FakePostgres(socketserver.ThreadingTCPServer):
    """Accepts the passwords in `passwords`; everything else is refused as PostgreSQL does."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, *passwords: str) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.passwords = set(passwords)
        self.port: int = self.server_address[1]
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()


class _Session(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # operators are killed here in mid-login
            self._serve()

    def _serve(self) -> None:
        (length,) = struct.unpack("!I", self._read(4))
        self._read(length - 4)  # the startup packet; with TLS disabled nothing comes before it
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
        self._ready()
        while (message := self._message())[0] == b"Q":
            if message[1].strip(b"\0 ;").upper() == b"SELECT 1":
                self._send(b"T", struct.pack("!H", 1) + b"one\0" + struct.pack("!IHIhIH", 0, 0, 23, 4, 0, 0))
                self._send(b"D", struct.pack("!HI", 1, 1) + b"1")
            self._send(b"C", b"SELECT 1\0")
            self._ready()

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
