"""TLS to a server, in the modes in which PgBouncer has it too. libpq's meaning of them:
https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION
"""

from __future__ import annotations

import contextlib
import re
import ssl
from dataclasses import dataclass, field

NOT_OFFERED = "server does not support SSL, but SSL was required"
"""libpq's words for NotOffered."""

_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class NotOffered(Exception):
    """The server has no TLS, and the connection is to have it."""


@dataclass(frozen=True)
class ServerTls:
    """`mode`: require, verify-ca or verify-full; `ca`: certificates (PEM) of authorities for the latter two."""

    mode: str
    ca: str = field(default="", repr=False)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("DEFAULT")  # OpenSSL's own, as libpq has them, instead of Python's shorter list
        context.check_hostname = self.mode == "verify-full"
        context.hostname_checks_common_name = True
        if self.mode == "require":
            context.verify_mode = ssl.CERT_NONE
        else:
            found = _CERTIFICATE.findall(self.ca)  # without the texts between them
            if not found:
                raise ssl.SSLError("the CA holds no whole certificate")
            context.load_verify_locations(cadata="\n".join(found))
        return context

    def session(self, host: str) -> Session:
        """A connection to `host`, whose certificate must have that name in verify-full. As PgBouncer, no other
        mode shows the name in the handshake: a server that finds its databases by it must not look reachable
        otherwise. Raises ssl.SSLError."""
        return Session(self._context(), host if self.mode == "verify-full" else None)


class Session:
    """One connection's encryption, without its socket."""

    def __init__(self, context: ssl.SSLContext, name: str | None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self.over = False
        """Whether the other side has ended the encryption, or broken it."""

    def shake_hands(self, received: bytes) -> bool:
        """Take in what was received; whether the handshake is done. Raises ssl.SSLError."""
        self._incoming.write(received)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def opened(self, received: bytes) -> bytes:
        """What was received, decrypted as far as its records are whole."""
        self._incoming.write(received)
        found = b""
        while not self.over:
            try:
                part = self._tls.read(1 << 16)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError:
                part = b""
            self.over = not part
            found += part
        return found

    def sealed(self, plain: bytes) -> bytes:
        """What is to be sent for it. Nothing, if the encryption is over."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.write(plain)
        return self.to_send()

    def to_send(self) -> bytes:
        """What the encryption itself has to say: handshakes, alerts."""
        return self._outgoing.read()


def words(error: ssl.SSLError | NotOffered) -> str:
    """A failed handshake in libpq's words, which faults.py knows."""
    if isinstance(error, NotOffered):
        return NOT_OFFERED
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"SSL error: certificate verify failed: {error.verify_message}"
    return f"SSL error: {(error.reason or str(error)).lower().replace('_', ' ')}"
