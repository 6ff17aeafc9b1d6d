"""What becomes of each parameter of a postgres:// URL: those about TLS, the client's own, and where others go.

Knows the parameters of libpq, and those that drivers, frameworks and providers add. No text from here holds any
part of a value.
https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
"""

import re
from collections.abc import Callable, Mapping

OF_TLS = frozenset({"ssl", "sslmode", "sslrootcert", "sslaccept", "channel_binding"})
"""Together they decide how the server is verified (uri.sslmode())."""

# They tune the client that holds the URL. Apps get a URL of their own, for the pooler, and may add them there.
_OF_THE_CLIENT = frozenset(
    {
        "ApplicationName",
        "application_name",
        "binary_parameters",
        "charset",
        "checkout_timeout",
        "client_encoding",
        "command_timeout",
        "conn_health_checks",
        "conn_max_age",
        "connectTimeout",
        "connect_timeout",
        "connection_limit",
        "default_query_exec_mode",
        "description_cache_capacity",
        "encoding",
        "fallback_application_name",
        "idle_timeout",
        "loginTimeout",
        "max_overflow",
        "max_pool_size",
        "max_size",
        "min_pool_size",
        "min_size",
        "pgbouncer",
        "prepareThreshold",
        "prepared_statement_cache_size",
        "prepared_statements",
        "reaping_frequency",
        "serverVersion",
        "socketTimeout",
        "socket_timeout",
        "statement_cache_capacity",
        "statement_cache_size",
        "supa",
        "tcpKeepAlive",
        "tcp_user_timeout",
        "uselibpqcompat",
        "workaround",
    }
)
_FAMILIES_OF_THE_CLIENT = re.compile(r"pool(_[a-z_]+)?|keepalives(_[a-z]+)?")
# These ask for what a pooler does anyway.
_DONE_ANYWAY: Mapping[str, frozenset[str]] = {
    "gssencmode": frozenset({"disable", "prefer"}),
    "load_balance_hosts": frozenset({"disable"}),
    "options": frozenset({""}),
    "replication": frozenset({"false", "off", "no", "0"}),
    "schema": frozenset({"public"}),
    "sslcertmode": frozenset({"disable", "allow"}),
    "sslcompression": frozenset({"0"}),
    "sslnegotiation": frozenset({"postgres"}),
    "targetServerType": frozenset({"any"}),
    "target_session_attrs": frozenset({"any"}),
}

VERIFY = "write sslmode=verify-full, and name the Secret with the CA in spec.upstream.tls.caSecretRef"
_REMOVE = "remove it from the URL"
_ELSEWHERE = "write it in the URL before the question mark"
_ON_THE_ROLE = "remove it, and set {} on the role with ALTER ROLE ... SET"
_CLIENT_CERTIFICATE = "remove it; log in with a password instead of a client certificate"
_SNI = f"To have it there, {VERIFY}"
_REVOKED = f"{_REMOVE}; poolers check no list of revoked certificates"
_VERSIONS = f"{_REMOVE}, and set server_tls_protocols in spec.pooler.parameters"
_PASSWORD_ONLY = f"{_REMOVE}; poolers log in with a password only"
_IN_THE_URL = f"{_REMOVE}, and write what it leads to into the URL itself"

_REMEDIES: Mapping[str, str] = {
    "currentSchema": _ON_THE_ROLE.format("search_path"),
    "dbname": _ELSEWHERE,
    "database": _ELSEWHERE,
    "gssdelegation": _PASSWORD_ONLY,
    "gssencmode": f"{_REMOVE}; poolers encrypt with TLS, for which sslmode stands",
    "gsslib": _PASSWORD_ONLY,
    "hostaddr": f"{_ELSEWHERE}, as the host",
    "krbsrvname": _PASSWORD_ONLY,
    "load_balance_hosts": f"{_REMOVE}; poolers take the addresses of the host's name in turn",
    "max_protocol_version": f"{_REMOVE}; PgBouncer speaks version 3.0 of the protocol",
    "min_protocol_version": f"{_REMOVE}; PgBouncer speaks version 3.0 of the protocol",
    "oauth_client_id": _PASSWORD_ONLY,
    "oauth_client_secret": _PASSWORD_ONLY,
    "oauth_issuer": _PASSWORD_ONLY,
    "oauth_scope": _PASSWORD_ONLY,
    "passfile": f"{_REMOVE}, and write the password itself into the URL",
    "password": _ELSEWHERE,
    "pool_mode": f"{_REMOVE}, and set spec.pooler.mode",
    "port": _ELSEWHERE,
    "replication": f"{_REMOVE}; clients that replicate connect to the server itself",
    "require_auth": (
        f"{_REMOVE}; poolers answer what the server asks for. To let only your server ask, {VERIFY}"
    ),
    "requirepeer": f"{_REMOVE}; it is for Unix sockets, which cannot be reached from a pooler pod",
    "requiressl": "write sslmode=require instead",
    "schema": _ON_THE_ROLE.format("search_path"),
    "scram_client_key": _PASSWORD_ONLY,
    "scram_server_key": _PASSWORD_ONLY,
    "search_path": _ON_THE_ROLE.format("it"),
    "service": _IN_THE_URL,
    "servicefile": _IN_THE_URL,
    "ssl": (
        f"{_REMOVE}; write sslmode=require to have TLS, or sslmode=disable to send everything, passwords"
        " included, in the clear"
    ),
    "ssl_max_protocol_version": _VERSIONS,
    "ssl_min_protocol_version": _VERSIONS,
    "sslcert": f"{_CLIENT_CERTIFICATE}. If it is the CA of the server, as Prisma has it, {VERIFY}",
    "sslcertmode": _CLIENT_CERTIFICATE,
    "sslcompression": f"{_REMOVE}; poolers compress nothing",
    "sslcrl": _REVOKED,
    "sslcrldir": _REVOKED,
    "sslidentity": _CLIENT_CERTIFICATE,
    "sslkey": _CLIENT_CERTIFICATE,
    "sslkeylogfile": f"{_REMOVE}; poolers write no TLS keys into files",
    "sslnegotiation": f"{_REMOVE}; PgBouncer begins TLS only after it has asked the server",
    "sslpassword": _CLIENT_CERTIFICATE,
    "sslsni": f"{_REMOVE}; the host's name is in the TLS handshake of poolers that verify it. {_SNI}",
    "user": _ELSEWHERE,
}
# Settings of a session that some drivers take from a URL and send at login.
_SESSION_SETTINGS = frozenset(
    {
        "DateStyle",
        "TimeZone",
        "datestyle",
        "default_transaction_isolation",
        "default_transaction_read_only",
        "extra_float_digits",
        "idle_in_transaction_session_timeout",
        "intervalstyle",
        "jit",
        "lock_timeout",
        "plan_cache_mode",
        "role",
        "statement_timeout",
        "timezone",
        "transaction_timeout",
        "work_mem",
    }
)
_UNKNOWN = (
    "remove it from the URL; an option of a driver goes into the URL of the app, a setting of the session on"
    " the role with ALTER ROLE ... SET"
)
_STANDBYS = frozenset(
    {"standby", "read-only", "prefer-standby", "secondary", "slave", "preferSecondary", "preferSlave"}
)


def is_known(name: str) -> bool:
    """Whether it is the name of a parameter, and so may be shown."""
    named = (OF_TLS, _DONE_ANYWAY, _REMEDIES, _BY_VALUE, _SESSION_SETTINGS)
    return is_clients(name) or any(name in names for names in named)


def is_clients(name: str) -> bool:
    """Whether the parameter tunes only the client that holds the URL, so that a pooler has no use for it."""
    if name in _REMEDIES:
        return False
    return name in _OF_THE_CLIENT or _FAMILIES_OF_THE_CLIENT.fullmatch(name) is not None


def is_done_anyway(name: str, value: str) -> bool:
    """Whether it asks for what a pooler does without being asked."""
    return value.strip().lower() in _DONE_ANYWAY.get(name, ())


def remedy(name: str, value: str) -> str:
    """What to do about a parameter that is none of the above; it never quotes the value."""
    if name in _BY_VALUE:
        return _BY_VALUE[name](value)
    if name in _SESSION_SETTINGS:
        return _ON_THE_ROLE.format("it")
    return _REMEDIES.get(name, _UNKNOWN)


def _host(value: str) -> str:
    if value.startswith(("/", "@")):
        return (
            "a Unix socket cannot be reached from a pooler pod; write a TCP address, before the question mark"
        )
    return _ELSEWHERE


def _session_attributes(value: str) -> str:
    kind = "is a standby" if value in _STANDBYS else "takes writes"
    return f"remove it, and write the address of the server that {kind}"


_OPTION = re.compile(r"(-c|--)?([A-Za-z_][A-Za-z0-9_.-]*)=")
_ROUTING: Mapping[tuple[bool, str], str] = {
    (False, "endpoint"): f"{_REMOVE}; Neon finds the endpoint by the host's name in the TLS handshake. {_SNI}",
    (False, "project"): f"{_REMOVE}; Neon finds the endpoint by the host's name in the TLS handshake. {_SNI}",
    (False, "reference"): f"{_REMOVE}, and write the user as <user>.<reference>, as Supabase's pooler has it",
    (True, "cluster"): f"{_REMOVE}, and write the database as <cluster>.<database>, as CockroachDB has it",
}
"""Options for a provider's proxy, by whether they are written as the setting of a session, and by name."""


def _options(value: str) -> str:
    """The options of a server process."""
    words = re.sub(r"(^|\s)-c\s+", r"\1-c", value).split()
    options = {(bool(found[1]), found[2]) for word in words if (found := _OPTION.match(word))}
    remedies = {_ROUTING[option] for option in options & _ROUTING.keys()}
    if any(setting for setting, _ in options - _ROUTING.keys()):
        remedies.add(_ON_THE_ROLE.format("what it sets"))
    return "; ".join(sorted(remedies)) or f"{_REMOVE}; poolers pass no such options to the server"


_BY_VALUE: Mapping[str, Callable[[str], str]] = {
    "host": _host,
    "options": _options,
    "targetServerType": _session_attributes,
    "target_session_attrs": _session_attributes,
}
