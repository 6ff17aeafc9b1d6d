"""What a server asks for in a login by SCRAM, read before libpq answers.

The server chooses how often the client hashes the password (RFC 5802, the attribute i), up to 2,147,483,647
times: an hour of computing in which libpq can't be interrupted. So its messages are read here first. Pure.
"""

from __future__ import annotations

import re

MOST_ITERATIONS = 1_000_000
"""Of what PostgreSQL allows for scram_iterations, whose default is 4096; about two seconds of one processor."""

_HEADER_BYTES = 5
_LENGTHS = range(8, 2001)
"""What libpq accepts as the length of such a message (fe-connect.c)."""
_OK, _MECHANISMS, _CHALLENGE = 0, 10, 11
_BINDING = b"SCRAM-SHA-256-PLUS\0"
"""SCRAM bound to the TLS connection, which libpq sees none of here, and which PgBouncer has not either."""
_FIRST = re.compile(rb"r=[^,\0]+,s=[^,\0]+,i=([0-9]{1,10})")


class Unacceptable(Exception):
    """What the server asks for is not computed."""


class Exchange:
    """The messages that a server sends until it has accepted a login."""

    def __init__(self) -> None:
        self._held = b""
        self._over = False
        self.iterations = 0
        """How often libpq will hash for the messages that were passed on last."""

    def pass_on(self, data: bytes) -> bytes:
        """What libpq may read now that the server has sent `data`: whole messages. Raises Unacceptable."""
        self.iterations = 0
        self._held += data
        passed = b""
        while not self._over and len(self._held) >= _HEADER_BYTES:
            kind, length = self._held[:1], int.from_bytes(self._held[1:_HEADER_BYTES])
            if kind not in (b"R", b"v") or length not in _LENGTHS:
                self._over = True  # an error, or what libpq takes for one: it computes nothing any more
            elif len(self._held) <= length:
                break
            else:
                body, self._held = self._held[_HEADER_BYTES : 1 + length], self._held[1 + length :]
                passed += _message(kind, self._read(body) if kind == b"R" else body)
        if self._over:
            passed, self._held = passed + self._held, b""
        return passed

    def _read(self, request: bytes) -> bytes:
        """What libpq may read in its place."""
        code, content = int.from_bytes(request[:4]), request[4:]
        self._over = code == _OK
        if code == _MECHANISMS:
            return request[:4] + content.replace(_BINDING, b"")
        if code == _CHALLENGE:
            self.iterations = _iterations(content)
        return request


def _iterations(challenge: bytes) -> int:
    found = _FIRST.fullmatch(challenge)
    if found is None:
        raise Unacceptable("the server's SCRAM message is malformed")
    asked = int(found[1])
    if asked > MOST_ITERATIONS:
        raise Unacceptable(
            f"the server asks for {asked:,} SCRAM iterations, and {MOST_ITERATIONS:,} at most are computed;"
            " lower scram_iterations at the server, and set the role's password again"
        )
    return asked


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4) + body
