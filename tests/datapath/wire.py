"""The PostgreSQL protocol by hand, version 3.0: messages to send, messages to read, SCRAM's three steps.

It sends exactly the bytes it is given, in any order and split anywhere, and judges nothing.
https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

VERSION = 196608
CANCEL = 80877102


class Message(NamedTuple):
    """A message of the server: its type byte and what follows the length."""

    kind: str
    body: bytes

    def fields(self) -> dict[str, str]:
        """Of an ErrorResponse or NoticeResponse."""
        return {part[:1].decode(): part[1:].decode() for part in self.body.split(b"\0") if part}

    def values(self) -> list[bytes | None]:
        """Of a DataRow."""
        (count,) = struct.unpack_from("!H", self.body)
        found: list[bytes | None] = []
        offset = 2
        for _ in range(count):
            (size,) = struct.unpack_from("!i", self.body, offset)
            offset += 4
            found.append(None if size < 0 else self.body[offset : offset + size])
            offset += max(size, 0)
        return found


class Refused(Exception):
    """The server answered the start-up packet with an error."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(f"{fields.get('C')}: {fields.get('M')}")
        self.code, self.message = fields.get("C", ""), fields.get("M", "")


class Silence(Exception):
    """No message within the time that was given."""


def message(kind: str, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return kind.encode() + struct.pack("!I", len(body) + 4) + body


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def startup(parameters: Iterable[tuple[str, str]]) -> bytes:
    body = struct.pack("!I", VERSION) + b"".join(text(k) + text(v) for k, v in parameters) + b"\0"
    return struct.pack("!I", len(body) + 4) + body


def cancel_request(key: bytes) -> bytes:
    """`key` is the body of BackendKeyData."""
    return struct.pack("!II", 8 + len(key), CANCEL) + key


def query(statement: str) -> bytes:
    return message("Q", text(statement))


def parse(name: str, statement: str, types: Sequence[int] = ()) -> bytes:
    return message("P", text(name), text(statement), struct.pack(f"!H{len(types)}I", len(types), *types))


def bind(portal: str, statement: str, values: Sequence[bytes | None] = ()) -> bytes:
    """All parameters and results in text format."""
    coded = [struct.pack("!i", -1) if v is None else struct.pack("!i", len(v)) + v for v in values]
    count = struct.pack("!HH", 0, len(values))
    return message("B", text(portal), text(statement), count, *coded, b"\0\0")


def describe(what: str, name: str) -> bytes:
    """`what` is S, a statement, or P, a portal."""
    return message("D", what.encode(), text(name))


def execute(portal: str = "", limit: int = 0) -> bytes:
    return message("E", text(portal), struct.pack("!I", limit))


def close(what: str, name: str) -> bytes:
    return message("C", what.encode(), text(name))


def copy_data(data: bytes) -> bytes:
    return message("d", data)


def copy_fail(reason: str) -> bytes:
    return message("f", text(reason))


SYNC, FLUSH, COPY_DONE, TERMINATE = message("S"), message("H"), message("c"), message("X")


def md5_response(user: str, password: str, salt: bytes) -> bytes:
    """The answer to AuthenticationMD5Password, of servers that keep MD5 secrets."""
    secret = hashlib.md5(f"{password}{user}".encode(), usedforsecurity=False).hexdigest()
    return message(
        "p", b"md5" + hashlib.md5(secret.encode() + salt, usedforsecurity=False).hexdigest().encode() + b"\0"
    )


class Scram:
    """The client's side of SCRAM-SHA-256, each message as its own step. RFC 5802."""

    def __init__(self, password: str) -> None:
        self._password = password
        self._bare = f"n=,r={base64.b64encode(os.urandom(18)).decode()}"

    def first(self) -> bytes:
        body = f"n,,{self._bare}".encode()
        return message("p", text("SCRAM-SHA-256"), struct.pack("!I", len(body)), body)

    def final(self, challenge: bytes) -> bytes:
        """`challenge` is the server's first message."""
        parts = dict(item.split("=", 1) for item in challenge.decode().split(","))
        salt, rounds = base64.b64decode(parts["s"]), int(parts["i"])
        salted = hashlib.pbkdf2_hmac("sha256", self._password.encode(), salt, rounds)
        client = hmac.digest(salted, b"Client Key", "sha256")
        plain = f"c=biws,r={parts['r']}"
        signed = ",".join((self._bare, challenge.decode(), plain)).encode()
        signature = hmac.digest(hashlib.sha256(client).digest(), signed, "sha256")
        proof = bytes(a ^ b for a, b in zip(client, signature, strict=True))
        return message("p", f"{plain},p={base64.b64encode(proof).decode()}".encode())


class Connection:
    """A connection of the protocol, from the address `source` if it has one. `key` is BackendKeyData's body and
    `status` the reported parameters, after login()."""

    def __init__(self, host: str, port: int, timeout: float = 10.0, source: str = "") -> None:
        self.timeout = timeout
        self.socket = socket.create_connection((host, port), timeout, (source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.key = b""
        self.status: dict[str, str] = {}
        self._unread = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        self.socket.settimeout(self.timeout)
        self.socket.sendall(b"".join(parts))

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message, None at the end of the stream. Raises Silence."""
        end = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            if len(self._unread) >= 5:
                (size,) = struct.unpack_from("!I", self._unread, 1)
                if len(self._unread) > size:
                    found = Message(chr(self._unread[0]), self._unread[5 : size + 1])
                    self._unread = self._unread[size + 1 :]
                    return found
            left = end - time.monotonic()
            if left <= 0:
                raise Silence("no message in time")
            self.socket.settimeout(left)
            try:
                more = self.socket.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                return None
            if not more:
                return None
            self._unread += more

    def until_ready(self, count: int = 1, timeout: float | None = None) -> list[Message]:
        """All messages up to and with the count-th ReadyForQuery, or to the end of the stream."""
        end = time.monotonic() + (self.timeout if timeout is None else timeout)
        found: list[Message] = []
        while count and (got := self.receive(end - time.monotonic())) is not None:
            found.append(got)
            count -= got.kind == "Z"
        return found

    def login(self, user: str, password: str, database: str, parameters: Mapping[str, str]) -> None:
        """Raises Refused with the server's error."""
        self.send(startup([("user", user), ("database", database), *parameters.items()]))
        self.authenticate(user, password)

    def authenticate(self, user: str, password: str) -> None:
        scram = Scram(password)
        while (got := self.receive()) is not None:
            if got.kind == "E":
                raise Refused(got.fields())
            if got.kind == "Z":
                return
            if got.kind == "K":
                self.key = got.body
            elif got.kind == "S":
                name, value = got.body[:-1].split(b"\0")
                self.status[name.decode()] = value.decode()
            elif got.kind == "R":
                (step,) = struct.unpack_from("!I", got.body)
                if step == 10:
                    self.send(scram.first())
                elif step == 11:
                    self.send(scram.final(got.body[4:]))
                elif step == 5:
                    self.send(md5_response(user, password, salt=got.body[4:]))
        raise Refused({"M": "the server closed the connection during the login"})

    def run(self, statement: str, timeout: float | None = None) -> list[Message]:
        self.send(query(statement))
        return self.until_ready(timeout=timeout)

    def close(self) -> None:
        """End it as the protocol wants it."""
        try:
            self.send(TERMINATE)
        except OSError:
            pass
        finally:
            self.socket.close()


def error_codes(messages: Iterable[Message]) -> list[str]:
    """The SQLSTATEs of the errors among them."""
    return [got.fields()["C"] for got in messages if got.kind == "E"]


def rows(messages: Iterable[Message]) -> list[tuple[str | None, ...]]:
    """The rows in an answer, as text. Raises RuntimeError for an error in it."""
    found = []
    for got in messages:
        if got.kind == "E":
            raise RuntimeError(got.fields()["M"])
        if got.kind == "D":
            found.append(tuple(None if value is None else value.decode() for value in got.values()))
    return found
