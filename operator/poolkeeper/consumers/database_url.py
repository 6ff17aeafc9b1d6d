"""Writes connection URLs that clients read the same way: libpq's, JDBC's and R2DBC's, and pgpass lines."""

import ipaddress
from urllib.parse import quote

from poolkeeper.host_port import host_port
from poolkeeper.spec.values import forbidden_character


def url(host: str, port: int, user: str, password: str, database: str, **parameters: str) -> str:
    """A postgresql:// URL; `parameters` become its query, in the given order.

    Everything but letters, digits and `_.-~` is percent-encoded. Raises ValueError for a control character,
    and for an empty host, user or database, which a client would replace with a default of its own.
    """
    _check(host, user, password, database, *parameters.values())
    secret = f":{_encode(password)}" if password else ""
    query = "&".join(f"{_encode(key)}={_encode(value)}" for key, value in parameters.items())
    address = f"postgresql://{_encode(user)}{secret}@{_authority(host, port)}/{_encode(database)}"
    return f"{address}?{query}" if query else address


def jdbc_url(host: str, port: int, user: str, password: str, database: str) -> str:
    """The URL for PostgreSQL's JDBC driver, with the login in its query. Raises like url()."""
    _check(host, user, password, database)
    login = f"user={_encode(user)}&password={_encode(password)}"
    return f"jdbc:postgresql://{_authority(host, port)}/{_encode(database)}?{login}"


def r2dbc_url(host: str, port: int, user: str, password: str, database: str) -> str:
    """The URL for R2DBC. Raises like url()."""
    return f"r2dbc:{url(host, port, user, password, database)}"


def pgpass_line(host: str, port: int, user: str, password: str, database: str) -> str:
    """One line of libpq's password file, with a backslash before each `:` and `\\`. Raises like url()."""
    _check(host, user, password, database)
    fields = (host, str(port), database, user, password)
    return ":".join(field.replace("\\", "\\\\").replace(":", "\\:") for field in fields)


def _check(host: str, user: str, password: str, database: str, *values: str) -> None:
    for part, value in {"host": host, "user": user, "database": database}.items():
        if not value:
            raise ValueError(f"the {part} of a connection URL is empty")
    for value in (host, user, password, database, *values):
        if found := forbidden_character(value):
            raise ValueError(f"a part of a connection URL holds the control character {found}")


def _encode(value: str) -> str:
    return quote(value, safe="")


def _authority(host: str, port: int) -> str:
    """Host and port in a URL: a name is encoded like any other part, and so is the zone of an IPv6 address."""
    try:
        return host_port(quote(str(ipaddress.IPv6Address(host)), safe=":"), port)
    except ipaddress.AddressValueError:
        return host_port(_encode(host), port)
