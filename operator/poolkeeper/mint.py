"""Makes logins: the one place where randomness enters. Everything else only copies what was made here."""

import base64
import hashlib
import hmac
import secrets

from poolkeeper.logins import Login

PASSWORD_BYTES = 32
SALT_BYTES = 16
ITERATIONS = 4096
"""PostgreSQL's own number. It protects guessable passwords, which these are not, and costs clients time."""


def mint(name: str) -> Login:
    """A login with a fresh random password (256 bits; letters, digits, '-' and '_') and its SCRAM verifier."""
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    return Login(name, password, verifier(password, secrets.token_bytes(SALT_BYTES)))


def verifier(password: str, salt: bytes) -> str:
    """What PostgreSQL and PgBouncer store in place of an ASCII password (RFC 5802, RFC 7677).

    (libpq can make it too, but takes a connection for it and twice the time or more.)
    """
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${ITERATIONS}:{_base64(salt)}${_base64(stored_key)}:{_base64(server_key)}"


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
