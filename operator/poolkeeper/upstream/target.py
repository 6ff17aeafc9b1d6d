"""The upstream's address and login, resolved from the spec and its Secrets.

Pure: it gets the data of the Secrets and opens no connection. A fault of a Secret becomes a TargetError, whose
reason and message go to a condition. Of a Secret's values, a message holds names of URL parameters and an
sslmode at most.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from poolkeeper.spec.fields import DATABASE, HOST, Text
from poolkeeper.spec.parse import CredentialsRef, SecretKeyRef, SpecError, Tls, Upstream
from poolkeeper.spec.values import forbidden_character
from poolkeeper.upstream import uri

DEFAULT_SSLMODE = "require"
VERIFYING = ("verify-ca", "verify-full")

# PgBouncer 1.26 cuts off a longer user or password of a database entry without an error.
_MAX_USER_BYTES = 127
_MAX_PASSWORD_BYTES = 2047
MAX_SCRAM_PASSWORD_BYTES = 1024
"""PgBouncer logs in with a longer password only where the server asks for the password itself (saslprep.c)."""


class TargetError(Exception):
    """The upstream is unknown; `reason`: SecretMissing, SecretKeyMissing, InvalidValue or InvalidUri."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Target:
    """One upstream login. `ca` is a PEM text that the server's certificate is verified against, which `sslmode`
    says in what way: PgBouncer verifies in no other modes than VERIFYING."""

    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)
    sslmode: str
    ca: str | None = field(repr=False)


def resolve(upstream: Upstream, secrets: Mapping[str, Mapping[str, bytes]]) -> Target:
    """Read the upstream's Secrets (name -> data, already base64-decoded); raises TargetError.

    With a CA, libpq verifies the certificate in mode `require` too: it becomes `verify-ca`.
    https://www.postgresql.org/docs/current/libpq-ssl.html#LIBQ-SSL-CERTIFICATES
    """
    target = _by_host(upstream, secrets) if upstream.uri is None else _by_uri(upstream, upstream.uri, secrets)
    if target.sslmode == "verify-full" and target.host.endswith("."):
        raise TargetError(
            "InvalidValue",
            "the upstream's host ends with a dot, and names in certificates do not; leave the dot out, or use"
            " the TLS mode verify-ca, which checks no name",
        )
    if target.sslmode == "require" and target.ca is not None:
        return replace(target, sslmode="verify-ca")
    if target.sslmode in VERIFYING and target.ca is None:
        raise TargetError(
            "InvalidUri",
            f"the URL asks for sslmode={target.sslmode} but there is no CA to verify against;"
            " name the Secret with the CA certificate in spec.upstream.tls.caSecretRef",
        )
    return target


def unused_parameters(upstream: Upstream, secrets: Mapping[str, Mapping[str, bytes]]) -> tuple[str, ...]:
    """The names of the URL's parameters that only tune the client that holds the URL; empty if there are none,
    or if the URL can't be read, which resolve() reports."""
    if upstream.uri is None:
        return ()
    try:
        return uri.split(_one_line(upstream.uri, secrets)).unused
    except (TargetError, uri.UriError):
        return ()


def _by_host(upstream: Upstream, secrets: Mapping[str, Mapping[str, bytes]]) -> Target:
    reference = upstream.credentials
    if reference is None:
        raise ValueError("an upstream without a URL has credentials")
    user = SecretKeyRef(reference.name, reference.username_key)
    password = SecretKeyRef(reference.name, reference.password_key)
    return Target(
        host=_from_secret(reference, reference.host_key, upstream.host, HOST, secrets),
        port=_port(reference, upstream.port, secrets),
        database=_from_secret(reference, reference.database_key, upstream.database, DATABASE, secrets),
        user=_login_part(_one_line(user, secrets), _MAX_USER_BYTES, _where(user)),
        password=_login_part(_one_line(password, secrets), _MAX_PASSWORD_BYTES, _where(password)),
        sslmode=upstream.tls.mode or DEFAULT_SSLMODE,
        ca=_ca(upstream.tls, secrets),
    )


def _from_secret(
    reference: CredentialsRef,
    key: str | None,
    written: str | None,
    kind: Text,
    secrets: Mapping[str, Mapping[str, bytes]],
) -> str:
    """What the spec says itself, or the value of the key of the credentials' Secret that it names instead."""
    if key is None:
        if written is None:
            raise ValueError("an upstream without a URL has a host and a database, or keys for them")
        return written
    place = SecretKeyRef(reference.name, key)
    return _fits(kind, _one_line(place, secrets), _where(place), "InvalidValue")


def _port(reference: CredentialsRef, written: int, secrets: Mapping[str, Mapping[str, bytes]]) -> int:
    if reference.port_key is None:
        return written
    place = SecretKeyRef(reference.name, reference.port_key)
    value = _one_line(place, secrets)
    if not re.fullmatch("[0-9]{1,5}", value) or not 1 <= int(value) <= 65535:
        raise TargetError("InvalidValue", f"{_where(place)} is not a port; write a number from 1 to 65535")
    return int(value)


def _by_uri(upstream: Upstream, reference: SecretKeyRef, secrets: Mapping[str, Mapping[str, bytes]]) -> Target:
    where = _where(reference)
    ca = _ca(upstream.tls, secrets)
    try:
        parts = uri.split(_one_line(reference, secrets))
        sslmode = uri.sslmode(parts.tls, has_ca=ca is not None, overridden=upstream.tls.mode is not None)
    except uri.UriError as error:
        raise TargetError("InvalidUri", f"{where}: {error}") from None
    # A percent-encoded line feed shows only after decoding.
    for name, value in (
        ("user", parts.user),
        ("password", parts.password),
        ("database", parts.database),
        ("host", parts.host),
    ):
        _refuse_control_characters(value, f"{where}, the URL's {name}")
    return Target(
        host=_fits(HOST, parts.host, f"{where}, the URL's host"),
        port=parts.port,
        database=_fits(DATABASE, parts.database, f"{where}, the URL's database"),
        user=_login_part(parts.user, _MAX_USER_BYTES, f"{where}, the URL's user"),
        password=_login_part(parts.password, _MAX_PASSWORD_BYTES, f"{where}, the URL's password"),
        sslmode=upstream.tls.mode or sslmode or DEFAULT_SSLMODE,
        ca=ca,
    )


def _ca(tls: Tls, secrets: Mapping[str, Mapping[str, bytes]]) -> str | None:
    if tls.ca is None:
        return None
    content = _content(tls.ca, secrets)
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise TargetError("InvalidValue", f"{_where(tls.ca)} holds no certificate; {_as_pem(content)}")
    return _text(tls.ca, secrets)


def _as_pem(content: bytes) -> str:
    """How to make a PEM text of what should be one."""
    if content[:1] == b"\x30":  # a SEQUENCE of ASN.1
        return (
            "if it is one in DER form, put it there as PEM: openssl x509 -inform der -in ca.der -out ca.crt (or"
            " openssl pkcs12 -nokeys -in store.p12 -out ca.crt for a PKCS #12 store)"
        )
    if b"-----BEGIN TRUSTED CERTIFICATE-----" in content:
        return "it is one with OpenSSL's trust settings: openssl x509 -in trusted.pem -out ca.crt removes them"
    if b"-----BEGIN " in content:
        return "it is PEM of another kind; put the CA's certificate there, which begins with BEGIN CERTIFICATE"
    return "put the CA there as PEM"


def _where(reference: SecretKeyRef) -> str:
    return f"key {reference.key} of Secret {reference.name}"


def _content(reference: SecretKeyRef, secrets: Mapping[str, Mapping[str, bytes]]) -> bytes:
    data = secrets.get(reference.name)
    if data is None:
        raise TargetError(
            "SecretMissing",
            f"Secret {reference.name} does not exist in this namespace; create it, or correct the name",
        )
    value = data.get(reference.key)
    if value is None:
        raise TargetError("SecretKeyMissing", f"{_where(reference)} is missing; set it")
    return value


def _text(reference: SecretKeyRef, secrets: Mapping[str, Mapping[str, bytes]]) -> str:
    try:
        return _content(reference, secrets).decode()
    except UnicodeDecodeError:
        raise TargetError("InvalidValue", f"{_where(reference)} is not UTF-8; write it as UTF-8 text") from None


def _one_line(reference: SecretKeyRef, secrets: Mapping[str, Mapping[str, bytes]]) -> str:
    """The value without a final line end: editors add one, which `kubectl create secret --from-file` keeps."""
    value = _text(reference, secrets)
    value = value.removesuffix("\r\n") if value.endswith("\r\n") else value.removesuffix("\n")
    if not value:
        raise TargetError("SecretKeyMissing", f"{_where(reference)} is empty; set it")
    _refuse_control_characters(value, _where(reference))
    return value


def _refuse_control_characters(value: str, where: str) -> None:
    if found := forbidden_character(value):
        raise TargetError("InvalidValue", f"{where} holds the control character {found}; remove it")


def _login_part(value: str, max_bytes: int, where: str) -> str:
    if len(value.encode()) > max_bytes:
        raise TargetError(
            "InvalidValue",
            f"{where} is longer than the {max_bytes} bytes that PgBouncer takes; use a shorter one",
        )
    return value


def _fits(kind: Text, value: str, where: str, reason: str = "InvalidUri") -> str:
    try:
        return kind.check(value, where)
    except SpecError as error:
        raise TargetError(reason, f"{where} {error.problem}; {error.remedy}") from None
