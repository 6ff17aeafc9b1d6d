"""Certificates: a separate authority for each tier of each PooledDatabase, and what it issues.

Pure. Only an authority's key is random (mint.py) and kept in a Secret. What the authority issues is computed
from that key, the name and the date, so every run, replica and restart computes the same bytes, and none of
them has to be stored. https://www.rfc-editor.org/rfc/rfc6979 (signatures without randomness)
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PERIOD = timedelta(days=90)
"""A certificate is valid for two periods and replaced after one."""
AUTHORITY_LIFETIME = timedelta(days=365 * 20)
_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
_CLOCK_SKEW = timedelta(days=1)
_COMMON_NAME_LIMIT = 64
_REMEMBERED = 2**16
"""How many certificates are kept in memory, at 2 kB each: computing one takes half a millisecond."""
# Order of the group of P-256 (FIPS 186-5): a private key is a number below it, and not zero.
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True)
class Certificate:
    """A certificate with its private key, both PEM. `name` is the first DNS name that it vouches
    for; an authority's is for display only."""

    name: str
    certificate: str
    key: str = field(repr=False)


@functools.lru_cache(maxsize=_REMEMBERED)
def authority(name: str, key: str) -> Certificate:
    """The certificate authority `name` with this private key (PEM, P-256). Raises ValueError for another key.

    The authority vouches only for what it issues: `name` is shown, never verified.
    """
    private = _load(key)
    subject = _subject(name)
    public = private.public_key()
    certificate = (
        _builder(subject, subject, public, f"authority/{name}", _EPOCH, _EPOCH + AUTHORITY_LIFETIME, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(private, hashes.SHA256(), ecdsa_deterministic=True)
    )
    return Certificate(name, _pem(certificate), key)


def issue(issuer: Certificate, name: str, now: datetime, *others: str) -> Certificate:
    """Issue a server certificate for the DNS name `name`, and `others`, for the period that `now` falls into.

    Periods begin on a day that depends on the name, so that not all certificates are renewed in one night.
    """
    offset = int.from_bytes(derive(issuer, f"offset/{name}")[:4]) % PERIOD.days
    period = (now - _EPOCH - timedelta(days=offset)) // PERIOD
    return _issue(issuer, (name, *others), _EPOCH + timedelta(days=offset) + period * PERIOD)


def derive(issuer: Certificate, purpose: str) -> bytes:
    """32 bytes that only the holder of the authority's key can compute, different for every purpose."""
    return hmac.digest(issuer.key.encode(), purpose.encode(), "sha256")


@functools.lru_cache(maxsize=_REMEMBERED)
def _issue(issuer: Certificate, names: tuple[str, ...], start: datetime) -> Certificate:
    name = names[0]
    seed = derive(issuer, f"key/{name}/{start.isoformat()}") + derive(
        issuer, f"key-/{name}/{start.isoformat()}"
    )
    private = ec.derive_private_key(int.from_bytes(seed) % (_P256_ORDER - 1) + 1, ec.SECP256R1())
    signer = x509.load_pem_x509_certificate(issuer.certificate.encode())
    public = private.public_key()
    certificate = (
        _builder(
            _subject(name),
            signer.subject,
            public,
            f"serial/{'/'.join(names)}/{start.isoformat()}",
            start - _CLOCK_SKEW,
            start + 2 * PERIOD,
            issuer.key,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(item) for item in names]), critical=False)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(_load(issuer.key).public_key()), critical=False
        )
        .sign(_load(issuer.key), hashes.SHA256(), ecdsa_deterministic=True)
    )
    key = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificate(name, _pem(certificate), key.decode())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    serial: str,
    not_before: datetime,
    not_after: datetime,
    key: str,
) -> x509.CertificateBuilder:
    digest = hmac.digest(key.encode(), serial.encode(), "sha256")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number((int.from_bytes(digest[:16]) >> 1) | 1)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )


def _subject(name: str) -> x509.Name:
    """The common name, or its digest if it is too long: verification goes by the alternative name."""
    shown = name if len(name) <= _COMMON_NAME_LIMIT else hashlib.sha256(name.encode()).hexdigest()
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, shown)])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@functools.lru_cache(maxsize=256)
def _load(key: str) -> ec.EllipticCurvePrivateKey:
    try:
        private = serialization.load_pem_private_key(key.encode(), None)
    except (TypeError, UnsupportedAlgorithm) as error:  # an encrypted key; a curve that OpenSSL doesn't know
        raise ValueError(str(error)) from None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise ValueError("an authority's key is of the curve P-256")
    return private


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
