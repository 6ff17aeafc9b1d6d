"""SCRAM verifiers: what PostgreSQL and PgBouncer store in place of a password (RFC 5802, RFC 7677)."""

import base64
import hashlib
import hmac

SALT_BYTES = 16
ITERATIONS = 4096
"""PostgreSQL's own number. It protects guessable passwords, which these are not, and costs clients time."""


def verifier(password: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """The verifier of an ASCII password.

    (libpq can make it too, but needs a connection for it and at least twice the time.)
    """
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${iterations}:{_base64(salt)}${_base64(stored_key)}:{_base64(server_key)}"


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
