"""Writes a pooler's pgbouncer.ini, the settings and the peers, and the line of each [databases] entry.

Knows PgBouncer's quoting, and refuses what it can't express instead of hoping that an escape works.
https://www.pgbouncer.org/config.html
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from poolkeeper.consumers.entries import Entry
from poolkeeper.names import CONSOLE_LOGIN, POOLER_PORT
from poolkeeper.spec import startup_parameters
from poolkeeper.spec.values import forbidden_character
from poolkeeper.upstream.target import Target

DEFAULTS: Mapping[str, str] = {
    # Apps that keep a pool per process soon use up PgBouncer's own 100. An idle client costs 10 kB.
    "max_client_conn": "1000",
    "max_prepared_statements": "200",
    # A dead endpoint costs seconds, not minutes: connecting 2 s, retry after 1 s (15 s of errors otherwise),
    # unacknowledged data 10 s (tcp_user_timeout is in milliseconds), silent peers about a minute.
    "server_connect_timeout": "2",
    "server_login_retry": "1",
    # PgBouncer's own, written out since the operator sets it to 0 for moments: a RELOAD has to reset that.
    "server_lifetime": "3600",
    "tcp_user_timeout": "10000",
    "tcp_keepidle": "30",
    "tcp_keepintvl": "10",
    "tcp_keepcnt": "3",
    # After a failover the upstream's name is resolved again at once, not after 15 s. That costs a DNS query
    # when a new server connection is opened, every two seconds at most.
    "dns_max_ttl": "2",
    "dns_nxdomain_ttl": "2",
    # Two lines per connection, and per readiness probe, would drown what matters.
    "log_connections": "0",
    "log_disconnections": "0",
}
"""Settings that spec.pooler.parameters may override."""

LATER_DEFAULTS: Mapping[str, str] = {
    # PgBouncer's own default, written out because a RELOAD doesn't restore it when the line disappears.
    "server_tls13_ciphers": "",
}
"""Likewise if PgBouncer has these settings, which the oldest lacks (plan/supported_parameters.py)."""

SLOTS_SETTING = "max_user_client_connections"
"""The maximum number of clients of one login in one process, over all entries. Since PgBouncer 1.24."""

_TLS_MODES = ("disable", "require", "verify-ca", "verify-full")
_SETTING_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ENTRY_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:-]*")
_STORED_SECRET = re.compile(r"md5[0-9a-f]{32}|SCRAM-SHA-256\$.*", re.DOTALL)
_USER_LIMIT = 127
_PASSWORD_LIMIT = 2047
_DATABASE_LIMIT = 63


@dataclass(frozen=True)
class Paths:
    """Paths of the other files. `upstream_ca` verifies the upstream; the `tls_` files are for clients;
    `pod` is each pod's own (its peer_id, and the path of its table of caps), and may be empty."""

    userlist: str
    hba: str
    upstream_ca: str
    tls_ca: str
    tls_certificate: str
    tls_key: str
    pod: str


def settings(target: Target, parameters: Mapping[str, str], paths: Paths) -> dict[str, str]:
    """Every setting that the file writes, sorted by name: defaults, `parameters` over them, and forced values.

    Raises ValueError for a parameter that is the operator's own, and for a value that the file can't hold.
    """
    if target.sslmode not in _TLS_MODES:
        raise ValueError(f"the upstream's sslmode {target.sslmode!r} is none of {', '.join(_TLS_MODES)}")
    forced = {
        "listen_addr": "*",
        "listen_port": str(POOLER_PORT),
        "unix_socket_dir": "",
        "auth_type": "hba",
        "auth_file": paths.userlist,
        "auth_hba_file": paths.hba,
        "admin_users": CONSOLE_LOGIN,
        "server_tls_sslmode": target.sslmode,
        "server_tls_ca_file": paths.upstream_ca,
        # Offered, not demanded: inside a cluster most apps connect in the clear. (The CA would verify clients'
        # certificates, which are not asked for; but PgBouncer fails without a CA.)
        "client_tls_sslmode": "allow",
        "client_tls_ca_file": paths.tls_ca,
        "client_tls_cert_file": paths.tls_certificate,
        "client_tls_key_file": paths.tls_key,
        "verbose": "0",  # anything more writes passwords into the log
    }
    if taken := sorted(forced.keys() & parameters.keys()):
        raise ValueError(f"the operator sets {', '.join(taken)} itself; take it out of the parameters")
    merged = {**DEFAULTS, **startup_parameters.settings({}), **parameters, **forced}
    return {_setting_name(name): _value(name, value) for name, value in sorted(merged.items())}


def render(settings: Mapping[str, str], pod: str, peers: Mapping[int, str], slots: Mapping[str, int]) -> str:
    """The file with settings() in it. `pod` is the path of the pod's own file, which has the entries; `peers`
    are the addresses of all poolers by peer_id, and `slots` the maximum numbers of clients by login. Raises
    ValueError for an address that is none.

    PgBouncer gives up at the first line that it doesn't understand, so the entries on its console prove that
    every setting was read.
    """
    lines = ["[pgbouncer]"]
    lines += [f"{name} = {value}".rstrip() for name, value in settings.items()]
    # After an included file PgBouncer stays in that file's last section: [databases], if it has a table. Every
    # login has a line: PgBouncer keeps the limit of a login whose line disappears.
    lines += [f"%include {pod}", "", "[users]"]
    lines += [f"{login} = {SLOTS_SETTING}={bound}" for login, bound in sorted(slots.items())]
    lines += ["", "[peers]"]
    lines += [f"{peer} = host={_address(host)} port={POOLER_PORT}" for peer, host in sorted(peers.items())]
    return "\n".join(lines) + "\n"


def line(target: Target, entry: Entry) -> str:
    """An entry's line in [databases], without caps.

    Raises ValueError for a value that PgBouncer would read as something else.
    """
    if not _ENTRY_NAME.fullmatch(entry.name) or entry.name == "pgbouncer":
        raise ValueError(
            f"{entry.name!r} cannot name a database entry; use at most 63 of a-z, 0-9, '_', '.', '-'"
        )
    if not _HOST.fullmatch(target.host):
        raise ValueError(f"the upstream's host {target.host!r} is not one DNS name or IP address")
    if _STORED_SECRET.fullmatch(target.password):
        # PgBouncer would take it for the stored form of another password.
        raise ValueError("the upstream's password looks like an md5 or SCRAM secret; set another password")
    parts = {
        "host": target.host,
        "port": str(target.port),
        "dbname": _sized("database", entry.database, _DATABASE_LIMIT),
        "user": _sized("user", target.user, _USER_LIMIT),
        "password": _sized("password", target.password, _PASSWORD_LIMIT),
        "pool_mode": entry.pool_mode,
        "application_name": entry.application_name,
        **({} if entry.max_clients is None else {"max_db_client_connections": str(entry.max_clients)}),
    }
    return f"{entry.name} = " + " ".join(f"{name}={_quoted(name, value)}" for name, value in parts.items())


def _address(host: str) -> str:
    return str(ipaddress.ip_address(host))


def _quoted(name: str, value: str) -> str:
    """A value of a connection string: in single quotes, a quote doubled; there is no other escape."""
    if found := forbidden_character(value):
        raise ValueError(f"the upstream's {name} holds the control character {found}")
    return "'" + value.replace("'", "''") + "'"


def _sized(name: str, value: str, limit: int) -> str:
    if not 0 < len(value.encode()) <= limit:
        raise ValueError(f"the upstream's {name} is not of 1 to {limit} bytes")
    return value


def _setting_name(name: str) -> str:
    if not _SETTING_NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a setting of PgBouncer")
    return name


def _value(name: str, value: str) -> str:
    """A setting's value, which PgBouncer takes literally, except for spaces around it."""
    if found := forbidden_character(value):
        raise ValueError(f"{name} holds the control character {found}")
    if value != value.strip(" "):
        raise ValueError(f"{name} begins or ends with a space, which PgBouncer would drop")
    return value
