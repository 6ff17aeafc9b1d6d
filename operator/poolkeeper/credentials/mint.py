"""Makes logins: the only place where secrets are drawn at random. Everything else copies what was made here."""

import secrets

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from poolkeeper.credentials import logins
from poolkeeper.credentials.logins import Authorities, Login
from poolkeeper.credentials.scram import SALT_BYTES, verifier

PASSWORD_BYTES = 32


def mint(name: str) -> Login:
    """Make a login with a random password (256 bits; letters, digits, '-' and '_') and its SCRAM verifier."""
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    return Login(name, password, verifier(password, secrets.token_bytes(SALT_BYTES)))


def authorities() -> Authorities:
    """Make the certificate authorities of a PooledDatabase."""
    return logins.authorities(authority_key(), authority_key())


def authority_key() -> str:
    """Make the private key of a certificate authority, PEM (P-256: RSA doubles the cost of a login)."""
    private = ec.generate_private_key(ec.SECP256R1())
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
