"""Reads a postgres:// URL as libpq does, as far as a pooler can honour it.

Parameters that concern only the client are named, for the status. Those that would change what the pooler must
do are refused with a remedy rather than lost silently. No message holds any part of the URL but names of its
parameters.
https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from poolkeeper.upstream import uri_parameters

_SCHEMES = ("postgres://", "postgresql://")
_PORT = re.compile(r"[0-9]{1,5}")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_SSLMODES = ("disable", "require", "verify-ca", "verify-full")
_SHAPE = "postgres://user:password@host:port/database"

# What stands in a Secret where a PostgreSQL URL is expected; the first that matches counts.
_OTHER_STARTS = (
    (
        r"jdbc:|r2dbc:",
        f"it is a URL for Java; write it as {_SHAPE}, with user and password before the host",
    ),
    (
        r"postgres(ql)?\+[a-z0-9_]+://",
        "it names a driver after a +, as SQLAlchemy has it; begin it with postgresql://",
    ),
    (
        r"prisma(\+postgres)?://",
        f"it leads to Prisma's own service; write the URL of the PostgreSQL server, {_SHAPE}",
    ),
    (r".+postgres(ql)?://", "it does not begin with postgres://; remove what stands before that"),
    (r"[a-z]+ *=", f"it is a list of settings; write it as {_SHAPE}"),
)


class UriError(Exception):
    """The URL cannot be used; the text says why and what to do, and quotes no value of it."""


@dataclass(frozen=True)
class Uri:
    """The decoded parts of a URL. `tls` are its parameters about TLS, for sslmode(); `unused` names those that
    only tune the client that holds the URL."""

    user: str
    password: str = field(repr=False)
    host: str
    port: int
    database: str
    tls: Mapping[str, str]
    unused: tuple[str, ...]


def split(text: str) -> Uri:
    """Split the URL, and refuse what a pooler cannot honour; raises UriError."""
    rest, _, query = _after_scheme(text).partition("?")
    if " " in text:
        raise UriError("it holds a space; remove it, or write one in a password as %20")
    if _BAD_PERCENT.search(text):
        raise UriError("a percent sign is not followed by the code of a character; write a literal one as %25")
    authority, _, path = rest.partition("/")
    if "#" in rest:
        raise UriError("it holds a #; write one in a password as %23")
    begins_parameters = uri_parameters.is_known(query.partition("=")[0])
    if "@" not in authority and ("@" in path or ("@" in query and not begins_parameters)):
        raise UriError("a / or ? comes before its @; write one in a password as %2F or %3F")
    _refuse_slashes(path)
    tls, unused = _query(query)
    # The last @ ends the login, as most drivers read it: people forget to encode one in a password.
    login, _, address = authority.rpartition("@")
    user, _, password = login.partition(":")
    if not user or not password:
        missing = "user name" if not user else "password"
        raise UriError(f"it has no {missing}; write {_SHAPE}")
    host, port = _host_and_port(address)
    if not path:
        raise UriError("it names no database; end it with /database, a slash in its name as %2F")
    return Uri(_decoded(user), _decoded(password), _decoded(host), port, _decoded(path), tls, unused)


def sslmode(tls: Mapping[str, str], *, has_ca: bool, overridden: bool) -> str | None:
    """The TLS mode that the URL demands, None if it demands none; raises UriError.

    If it is `overridden` (the spec sets a mode), these parameters don't count.
    """
    if overridden:
        return None
    if "ssl" in tls:
        raise UriError(f"its parameter ssl is not supported; {uri_parameters.remedy('ssl', tls['ssl'])}")
    mode = tls.get("sslmode")
    if mode is not None and mode not in _SSLMODES:
        raise UriError(
            f"its parameter sslmode is none of {', '.join(_SSLMODES)};"
            " use one of them, which either demand TLS or do without"
        )
    if mode == "disable":
        _refuse_verification(tls, has_ca=has_ca)
        return mode
    if _demands_public_authorities(tls, has_ca=has_ca):
        if mode not in (None, "verify-full"):
            raise UriError("its parameter sslrootcert=system goes with sslmode=verify-full only; write that")
        mode = "verify-full"
    if _is_strict(tls, has_ca=has_ca):
        mode = "verify-full"
    if tls.get("channel_binding") == "require" and mode != "verify-full":
        # It keeps others from answering in place of the server, as the name in a verified certificate does.
        raise UriError(
            "its parameter channel_binding=require is not supported by PgBouncer; to verify the server instead,"
            f" {uri_parameters.VERIFY}. (If spec.upstream.tls.mode is set, it counts instead.)"
        )
    return mode


def _after_scheme(text: str) -> str:
    for scheme in _SCHEMES:
        if text.lower().startswith(scheme):
            return text[len(scheme) :]
    for start, problem in _OTHER_STARTS:
        if re.match(start, text, re.IGNORECASE):
            raise UriError(problem)
    raise UriError("it is not a PostgreSQL URL; begin it with postgres:// or postgresql://")


def _refuse_verification(tls: Mapping[str, str], *, has_ca: bool) -> None:
    """Refuse what could have no effect without TLS."""
    if has_ca:
        raise UriError(
            "its parameter sslmode=disable leaves the CA in spec.upstream.tls.caSecretRef without effect;"
            " remove one of the two, or set spec.upstream.tls.mode to verify-full"
        )
    if tls.get("sslrootcert"):
        raise UriError("its parameter sslrootcert has no effect with sslmode=disable; remove one of the two")
    if tls.get("channel_binding") == "require":
        raise UriError("its parameter channel_binding=require needs TLS; remove it, or remove sslmode=disable")


def _demands_public_authorities(tls: Mapping[str, str], *, has_ca: bool) -> bool:
    """Whether sslrootcert is `system`, with which libpq verifies the name as well. (With a file, it verifies
    the certificate even if sslmode is `require`.)"""
    value = tls.get("sslrootcert", "")
    if value == "system" and not has_ca:
        raise UriError(
            "its parameter sslrootcert=system stands for the public authorities that the client's machine"
            " knows, and poolers know none; put the certificate of the one that signed the server's into a"
            " Secret, and name that in spec.upstream.tls.caSecretRef"
        )
    if value and not has_ca:
        raise UriError(
            "its parameter sslrootcert names a file of another machine; remove it, or name the Secret with"
            " the CA in spec.upstream.tls.caSecretRef"
        )
    return value == "system"


def _is_strict(tls: Mapping[str, str], *, has_ca: bool) -> bool:
    """Whether Prisma's sslaccept demands verification."""
    value = tls.get("sslaccept")
    if value not in (None, "strict", "accept_invalid_certs"):
        raise UriError(f"its parameter sslaccept is unknown; remove it, or {uri_parameters.VERIFY}")
    if value == "strict" and not has_ca:
        raise UriError(
            "its parameter sslaccept=strict demands a verified certificate, as sslmode=verify-full does; name"
            " the Secret with the CA in spec.upstream.tls.caSecretRef"
        )
    return value == "strict"


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


def _refuse_slashes(path: str) -> None:
    """libpq counts them to the database's name, where hardly anyone means them."""
    if "/" in path[:-1]:
        raise UriError("its database's name holds a slash; write it as %2F")
    if path.endswith("/"):
        raise UriError("a slash follows its database; remove it, or write one of the name itself as %2F")


def _query(text: str) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """The parameters about TLS, and the names of the client's own; refuses others that would change what the
    pooler must do. Of several with one name the last counts, as in libpq."""
    tls: dict[str, str] = {}
    unused: list[str] = []
    for pair in filter(None, text.split("&")):
        name, separator, value = (_decoded(part) for part in pair.partition("="))
        if not separator:
            raise UriError("a parameter after the question mark has no value; write name=value")
        if (name, value) == ("ssl", "true"):  # of JDBC; libpq reads it so
            name, value = "sslmode", "require"
        if name in uri_parameters.OF_TLS:
            tls[name] = value
        elif uri_parameters.is_clients(name):
            unused.append(name)
        elif not uri_parameters.is_done_anyway(name, value):
            # With an @ behind it, it may be a part of a password that was not encoded.
            plain = "@" not in text and re.fullmatch("[A-Za-z_]{1,40}", name)
            shown = name if plain or uri_parameters.is_known(name) else "with an unusual name"
            raise UriError(f"its parameter {shown} is not supported; {uri_parameters.remedy(name, value)}")
    return tls, tuple(dict.fromkeys(unused))
