"""Reads a postgres:// URL as libpq does, as far as a pooler can honour it.

Parameters that concern only the client are dropped. Those that would change what the pooler must do are refused
with a remedy rather than lost silently. No message holds any part of the URL but names of its parameters.
https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

_SCHEMES = ("postgres://", "postgresql://")
_PORT = re.compile(r"[0-9]{1,5}")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_SSLMODES = ("disable", "require", "verify-ca", "verify-full")

# These tune the client that holds the URL, so nothing is lost: apps get their own URL, for the pooler.
_OF_THE_CLIENT = frozenset(
    {
        "application_name",
        "binary_parameters",
        "channel_binding",
        "connect_timeout",
        "connection_limit",
        "fallback_application_name",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "pgbouncer",
        "pool_timeout",
        "prepareThreshold",
        "prepared_statements",
        "serverVersion",
        "socket_timeout",
        "sslsni",
        "statement_cache_size",
        "supa",
        "tcp_user_timeout",
        "uselibpqcompat",
        "workaround",
    }
)
# Harmless with these values only, which every client gets anyway.
_HARMLESS_VALUES: Mapping[str, frozenset[str]] = {
    "charset": frozenset({"utf8", "utf-8"}),
    "client_encoding": frozenset({"auto", "utf8", "utf-8"}),
    "gssencmode": frozenset({"disable", "prefer"}),
    "load_balance_hosts": frozenset({"disable"}),
    "schema": frozenset({"public"}),
    "sslaccept": frozenset({"accept_invalid_certs"}),
    "sslnegotiation": frozenset({"postgres"}),
    "target_session_attrs": frozenset({"any"}),
}
_ELSEWHERE = "write it in the URL before the question mark"
_ON_THE_ROLE = "remove it, and set it on the role with ALTER ROLE ... SET"
_CLIENT_CERTIFICATE = "remove it; log in with a password instead of a client certificate"
_REMEDIES: Mapping[str, str] = {
    "dbname": _ELSEWHERE,
    "host": f"{_ELSEWHERE}; a Unix socket cannot be reached from a pooler pod",
    "hostaddr": _ELSEWHERE,
    "options": _ON_THE_ROLE,
    "password": _ELSEWHERE,
    "port": _ELSEWHERE,
    "schema": "remove it, and set search_path on the role with ALTER ROLE ... SET",
    "search_path": _ON_THE_ROLE,
    "sslaccept": "write sslmode=verify-full, and name the CA in spec.upstream.tls.caSecretRef",
    "sslcert": _CLIENT_CERTIFICATE,
    "sslkey": _CLIENT_CERTIFICATE,
    "sslpassword": _CLIENT_CERTIFICATE,
    "target_session_attrs": "remove it, and write the address of the server that takes writes",
    "user": _ELSEWHERE,
}
_UNKNOWN_REMEDY = "remove it from the URL"


class UriError(Exception):
    """The URL cannot be used; the text says why and what to do, and quotes no value of it."""


@dataclass(frozen=True)
class Uri:
    """The decoded parts of a URL. `query` holds what split() left unchecked: the TLS parameters."""

    user: str
    password: str = field(repr=False)
    host: str
    port: int
    database: str
    query: Mapping[str, str]


def split(text: str) -> Uri:
    """Split the URL, and refuse what a pooler cannot honour; raises UriError."""
    scheme = next((scheme for scheme in _SCHEMES if text.lower().startswith(scheme)), None)
    if scheme is None:
        raise UriError("it is not a PostgreSQL URL; begin it with postgres:// or postgresql://")
    if _BAD_PERCENT.search(text):
        raise UriError("a percent sign is not followed by the code of a character; write a literal one as %25")
    rest, _, query = text[len(scheme) :].partition("?")
    authority, _, path = rest.partition("/")
    if "#" in rest:
        raise UriError("it holds a #; write one in a password as %23")
    if "@" not in authority and "@" in text:
        raise UriError("a / or ? comes before its @; write one in a password as %2F or %3F")
    # The last @ ends the login, as most drivers read it: people forget to encode one in a password.
    login, _, address = authority.rpartition("@")
    user, _, password = login.partition(":")
    if not user or not password:
        missing = "user name" if not user else "password"
        raise UriError(f"it has no {missing}; write postgres://user:password@host:port/database")
    host, port = _host_and_port(address)
    if not path or "/" in path:
        raise UriError("it names no database; end it with /database, a slash in its name as %2F")
    return Uri(_decoded(user), _decoded(password), _decoded(host), port, _decoded(path), _query(query))


def sslmode(query: Mapping[str, str], *, has_ca: bool, overridden: bool) -> str | None:
    """The TLS mode that the URL demands, None if it demands none; raises UriError.

    If it is `overridden` (the spec sets a mode), the URL's TLS parameters don't count.
    """
    if overridden:
        return None
    if "sslrootcert" in query and not has_ca:
        # libpq would verify the certificate against that file, even with sslmode=require.
        raise UriError(
            "its parameter sslrootcert names a file of another machine; remove it, or name the Secret with"
            " the CA in spec.upstream.tls.caSecretRef"
        )
    mode = query.get("sslmode")
    if mode is None:
        return {"true": "require"}.get(query.get("ssl", ""))
    if mode not in _SSLMODES:
        raise UriError(
            f"its parameter sslmode is none of {', '.join(_SSLMODES)};"
            " use one of them, which either demand TLS or do without"
        )
    return mode


def _decoded(part: str) -> str:
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError:
        raise UriError("it holds percent codes that are not UTF-8; encode its parts as UTF-8") from None


def _host_and_port(address: str) -> tuple[str, int]:
    if "," in address:
        raise UriError("it names several hosts; name one, the server that takes writes")
    if address.startswith("["):
        host, closing, port = address[1:].partition("]")
        if not closing or (port and not port.startswith(":")):
            raise UriError("its IPv6 address is not closed; write it as [address]:port")
        port = port[1:]
    else:
        host, _, port = address.partition(":")
    if not host:
        raise UriError("it names no host; write postgres://user:password@host:port/database")
    if port and not (_PORT.fullmatch(port) and 1 <= int(port) <= 65535):
        raise UriError(
            "its port is not a number from 1 to 65535; correct it (an IPv6 address goes in brackets)"
        )
    return host, int(port or "5432")


def _query(text: str) -> Mapping[str, str]:
    """The TLS parameters; refuses others that would change what the pooler must do."""
    kept: dict[str, str] = {}
    for pair in filter(None, text.split("&")):
        key, separator, value = (_decoded(part) for part in pair.partition("="))
        if not separator:
            raise UriError("a parameter after the question mark has no value; write name=value")
        if key in ("sslmode", "sslrootcert") or (key == "ssl" and value == "true"):
            kept[key] = value
        elif key not in _OF_THE_CLIENT and value.lower() not in _HARMLESS_VALUES.get(key, ()):
            shown = key if re.fullmatch("[A-Za-z_]{1,40}", key) else "with an unusual name"
            raise UriError(f"its parameter {shown} is not supported; {_REMEDIES.get(key, _UNKNOWN_REMEDY)}")
    return kept
