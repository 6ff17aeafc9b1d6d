"""Every setting of PgBouncer up to 1.26: those that users may set, with kind and range, and the others.

The ranges are what the real program accepted in trials, narrowed to sane values. `restart` marks what
`SHOW CONFIG` calls not changeable. `since` is the first release with the setting: an older one that finds it in
its file does not start. https://www.pgbouncer.org/config.html
"""

import re
from dataclasses import dataclass

OLDEST = (1, 24)
"""The oldest PgBouncer that can run, which is that of the image that Poolkeeper ships."""
DAY = 86400
WEEK = 7 * DAY

# Suites of TLS 1.2 and below without known weakness. PgBouncer exits if OpenSSL knows none of those named.
_TLS12_SUITES = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "DHE-RSA-AES128-GCM-SHA256",
    "DHE-RSA-AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
)
_TLS13_SUITES = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")


@dataclass(frozen=True)
class Parameter:
    """One setting. `kind` is integer, seconds, switch, text or list.

    `minimum` and `maximum` bound the value, or for text its length in bytes. A list joins `choices` (any
    identifiers if empty) with `separator`, or is one of `keywords` alone. `restart` is true if only new pooler
    pods take up the value. `default` is PgBouncer's own. `since` is the first release with the setting, OLDEST
    if older ones have it too.
    """

    name: str
    kind: str
    minimum: int
    maximum: int
    choices: tuple[str, ...]
    restart: bool
    unit: str
    description: str
    default: str = ""
    separator: str = ""
    keywords: tuple[str, ...] = ()
    since: tuple[int, int] = OLDEST

    @property
    def pattern(self) -> str | None:
        """The pattern (also in RE2 syntax) that a quoted value must match; None for text and for numbers."""
        if self.kind == "seconds":
            # SHOW CONFIG shows at most six significant digits, and the read-back compares with those.
            return r"[0-9]{1,3}\.[0-9]{1,3}"
        if self.kind == "list":
            item = "|".join(map(re.escape, self.choices)) or "[A-Za-z_][A-Za-z0-9_.]{0,62}"
            whole = f"({item})({self.separator}({item}))*"
            return "|".join([*self.keywords, whole]).replace(r"\-", "-")
        return None

    @property
    def expectation(self) -> str:
        """What a value must be, in the words of every refusal and of the reference."""
        unit = f" ({self.unit})" if self.unit else ""
        if self.kind == "switch":
            return "0 (off) or 1 (on)"
        if self.kind == "integer":
            return f"a whole number from {self.minimum} to {self.maximum}{unit}"
        if self.kind == "seconds":
            return f"a number of seconds from {self.minimum} to {self.maximum}"
        if self.kind == "text":
            return f"one line of at most {self.maximum} bytes"
        items = f"items of {', '.join(self.choices)}" if self.choices else "parameter names"
        separated = f"{items}, separated by '{self.separator}' without spaces"
        return f"{', '.join(self.keywords)}, or {separated}" if self.keywords else separated

    @property
    def remedy(self) -> str:
        """How to write a value of this kind in YAML."""
        if self.kind in ("integer", "switch"):
            return "write it without quotes"
        if self.kind == "seconds":
            return 'write whole seconds without quotes, and a fraction (below 1000, 3 digits) in quotes ("0.5")'
        return "write it in quotes, on one line"


def _integer(
    name: str,
    default: str,
    minimum: int,
    maximum: int,
    unit: str,
    description: str,
    restart: bool = False,
    *,
    since: tuple[int, int] = OLDEST,
) -> Parameter:
    return Parameter(name, "integer", minimum, maximum, (), restart, unit, description, default, since=since)


def _seconds(
    name: str,
    default: str,
    minimum: int,
    maximum: int,
    description: str,
    *,
    since: tuple[int, int] = OLDEST,
) -> Parameter:
    return Parameter(name, "seconds", minimum, maximum, (), False, "seconds", description, default, since=since)


def _switch(name: str, default: str, description: str) -> Parameter:
    return Parameter(name, "switch", 0, 1, (), False, "", description, default)


def _text(name: str, default: str, description: str, *, since: tuple[int, int] = OLDEST) -> Parameter:
    return Parameter(name, "text", 0, 1024, (), False, "", description, default, since=since)


def _list(
    name: str,
    default: str,
    separator: str,
    description: str,
    *,
    choices: tuple[str, ...] = (),
    keywords: tuple[str, ...] = (),
    restart: bool = False,
    since: tuple[int, int] = OLDEST,
) -> Parameter:
    return Parameter(
        name, "list", 1, 1024, choices, restart, "", description, default, separator, keywords, since
    )


TABLE = (
    # Sizes and limits. All of them count per pooler pod; limits on server connections belong to spec.budget.
    _integer(
        "max_client_conn",
        "100",
        1,
        100000,
        "connections",
        "Client connections that each pooler pod accepts; the default is larger for more than 47 consumers. "
        "Each consumer has its own part of them (budget.md). Every one needs a file descriptor. PgBouncer's "
        "log shows how many its container may have when it starts (kernel file descriptor limit).",
    ),
    _integer(
        "max_user_client_connections",
        "0",
        0,
        100000,
        "connections",
        "The most client connections of each consumer's login in each pooler pod, where its part of "
        "max_client_conn is larger; 0 is no such limit.",
    ),
    _integer(
        "max_prepared_statements",
        "200",
        0,
        10000,
        "statements",
        "Prepared statements kept ready on each server connection, so that clients can use protocol-level"
        " prepared statements in transaction mode; 0 turns that off.",
    ),
    # Timeouts of clients and queries.
    _seconds(
        "query_wait_timeout",
        "120",
        0,
        DAY,
        "How long a query may wait for a server connection until its client is disconnected; 0: no limit.",
    ),
    _integer(
        "query_wait_notify",
        "5",
        0,
        3600,
        "seconds",
        "How long a client waits in the queue before it gets a notice of that; 0 is never.",
        since=(1, 25),
    ),
    _seconds(
        "query_timeout", "0", 0, DAY, "Longest time a query may run before it is cancelled; 0 is no limit."
    ),
    _seconds(
        "transaction_timeout",
        "0",
        0,
        DAY,
        "Longest time a transaction may last before its client is cut off; 0 is no limit.",
        since=(1, 25),
    ),
    _seconds(
        "idle_transaction_timeout",
        "0",
        0,
        DAY,
        "How long a client may sit idle inside a transaction before it is disconnected; 0 is no limit.",
    ),
    _seconds(
        "client_idle_timeout",
        "0",
        0,
        WEEK,
        "How long a client may stay silent before it is disconnected; 0 is no limit. Keep it above the idle"
        " timeout of the app's own pool.",
    ),
    _seconds(
        "client_login_timeout", "60", 1, 600, "How long a client may take to log in before it is disconnected."
    ),
    _seconds(
        "cancel_wait_timeout",
        "10",
        0,
        3600,
        "How long a cancel request may wait for a connection to the server until it is dropped; 0: no limit.",
    ),
    # Server connections.
    _seconds(
        "server_lifetime",
        "3600",
        0,
        WEEK,
        "Age at which a server connection is closed as soon as it is idle; 0 closes each after one use.",
    ),
    _seconds(
        "server_idle_timeout",
        "600",
        0,
        WEEK,
        "How long a server connection may stay unused before it is closed; 0 is no limit.",
    ),
    _seconds(
        "pool_idle_timeout",
        "0",
        0,
        WEEK,
        "How long a pool may have neither clients nor servers before it is freed, its statistics with it; 0 is"
        " never.",
        since=(1, 26),
    ),
    _seconds(
        "server_connect_timeout", "15", 1, 300, "How long connecting and logging in to the server may take."
    ),
    _seconds(
        "server_login_retry",
        "15",
        0,
        300,
        "After a failed login to the server, clients get its error at once for this long instead of a new"
        " attempt.",
    ),
    _seconds(
        "server_check_delay",
        "30",
        0,
        3600,
        "A server connection unused for longer is tested with server_check_query before the next use; 0"
        " tests always.",
    ),
    _text(
        "server_check_query",
        "select 1",
        "SQL that tests an idle server connection. Before PgBouncer 1.25 an empty text turns the test off; from"
        " 1.25 on nothing does, and <empty> sends an empty query.",
    ),
    _text(
        "server_reset_query",
        "DISCARD ALL",
        "SQL that clears a server connection when a session ends. Used in session mode, or always if"
        " server_reset_query_always says so.",
    ),
    _switch("server_reset_query_always", "0", "Run server_reset_query in transaction and statement mode too."),
    _switch(
        "server_round_robin",
        "0",
        "Use idle server connections in turn instead of the most recently used one first.",
    ),
    _switch(
        "server_fast_close",
        "0",
        "In session mode, close a server connection that must be renewed after its transaction, not after"
        " its session; the client loses its connection.",
    ),
    # What clients see.
    _switch(
        "application_name_add_host",
        "0",
        "Append the client's address and port to application_name, so that pg_stat_activity shows them.",
    ),
    _text(
        "login_notify_message",
        "",
        "A notice that every client gets when it logs in. Empty is none.",
        since=(1, 26),
    ),
    # Name resolution.
    _seconds("dns_max_ttl", "15", 0, 3600, "How long the addresses of the upstream's host name are kept."),
    _seconds("dns_nxdomain_ttl", "15", 0, 3600, "How long a failed name look-up is remembered."),
    _seconds(
        "dns_zone_check_period",
        "0",
        0,
        DAY,
        "How often the zone's serial number is checked, to look up its names afresh when it changed; 0 is"
        " never.",
    ),
    # TLS towards the upstream; the mode and the CA are in spec.upstream.tls.
    _list(
        "server_tls_protocols",
        "secure",
        ",",
        "TLS versions that may be used towards the upstream; secure is 1.2 and 1.3.",
        choices=("tlsv1.0", "tlsv1.1", "tlsv1.2", "tlsv1.3"),
        keywords=("secure", "all"),
    ),
    _list(
        "server_tls_ciphers",
        "default",
        ":",
        "Cipher suites for TLS 1.2 and older towards the upstream.",
        choices=_TLS12_SUITES,
        keywords=("default", "secure", "normal", "fast"),
    ),
    _list(
        "server_tls13_ciphers",
        "",
        ":",
        "Cipher suites for TLS 1.3 towards the upstream.",
        choices=_TLS13_SUITES,
        since=(1, 25),
    ),
    # Sockets.
    _switch("tcp_keepalive", "1", "Send TCP keepalives on every connection."),
    _integer(
        "tcp_keepidle",
        "0",
        0,
        32767,
        "seconds",
        "Silence before the first keepalive; 0 is the system's default.",
    ),
    _integer("tcp_keepintvl", "0", 0, 32767, "seconds", "Time between keepalives; 0 is the system's default."),
    _integer(
        "tcp_keepcnt",
        "0",
        0,
        127,
        "probes",
        "Unanswered keepalives after which a connection is dead; 0 is the system's default.",
    ),
    _integer(
        "tcp_user_timeout",
        "0",
        0,
        3600000,
        "milliseconds",
        "How long sent data may stay unacknowledged before the connection is closed; 0 is the system's"
        " default.",
    ),
    _integer(
        "tcp_socket_buffer",
        "0",
        0,
        16777216,
        "bytes",
        "Size of the kernel's buffers per socket; 0 is the system's default.",
    ),
    _switch("tcp_defer_accept", "1", "Let the kernel accept a client only once it has sent something."),
    _integer(
        "listen_backlog",
        "128",
        1,
        65535,
        "connections",
        "New connections the kernel queues while PgBouncer is busy.",
        True,
    ),
    # Buffers.
    _integer(
        "pkt_buf",
        "4096",
        1024,
        65536,
        "bytes",
        "Buffer per active connection. Larger packets are passed on in pieces.",
        True,
    ),
    _integer(
        "sbuf_loopcnt",
        "5",
        0,
        1000,
        "buffers",
        "Buffers read from one connection before the others have their turn; 0 is no limit.",
    ),
    _integer(
        "max_packet_size",
        "2147483647",
        65536,
        2147483647,
        "bytes",
        "Largest query or row that is let through; a connection that sends more is closed.",
    ),
    # Logs and statistics.
    _switch("log_connections", "1", "Log every login."),
    _switch("log_disconnections", "1", "Log every disconnection with its reason."),
    _switch("log_pooler_errors", "1", "Log the errors that the pooler itself sends to clients."),
    _switch("log_stats", "1", "Log a line of statistics every stats_period."),
    _integer("stats_period", "60", 1, 3600, "seconds", "Span over which the averages of SHOW STATS are taken."),
)

# Why users may not set each of the other settings, and what to use instead.
OWNED_BECAUSE = {
    "use spec.pooler.mode": ("pool_mode",),
    "use spec.upstream.tls": (
        "server_tls_sslmode",
        "server_tls_ca_file",
        "server_tls_cert_file",
        "server_tls_key_file",
    ),
    "remove it; the operator decides where and how poolers listen": (
        "listen_addr",
        "listen_port",
        "so_reuseport",
        "unix_socket_dir",
        "unix_socket_group",
        "unix_socket_mode",
        "client_tls_ca_file",
        "client_tls_cert_file",
        "client_tls_ciphers",
        "client_tls13_ciphers",
        "client_tls_dheparams",
        "client_tls_ecdhcurve",
        "client_tls_key_file",
        "client_tls_protocols",
        "client_tls_sslmode",
        "peer_id",
    ),
    "remove it; spec.consumers says who may log in": (
        "admin_users",
        "stats_users",
        "auth_dbname",
        "auth_file",
        "auth_hba_file",
        "auth_ident_file",
        "auth_ldap_options",
        "auth_query",
        "auth_type",
        "auth_user",
    ),
    "remove it; the pod's files, log and user are fixed": (
        "conffile",
        "job_name",
        "logfile",
        "pidfile",
        "resolv_conf",
        "syslog",
        "syslog_facility",
        "user",
    ),
    "remove it; the operator makes the passwords of its consumers": ("scram_iterations",),
    "use spec.pooler.startupParameters": ("ignore_startup_parameters", "track_extra_parameters"),
    "remove it; the operator's console speaks the simple query protocol": ("disable_pqexec",),
    "use spec.budget and spec.consumers[].limits.maxConnections; the operator gives each pod its connections": (
        "default_pool_size",
        "max_db_connections",
        "max_user_connections",
        "min_pool_size",
        "reserve_pool_size",
        "reserve_pool_timeout",
    ),
    "use spec.consumers[].limits.maxClientConnections": ("max_db_client_connections",),
    "remove it; the operator tells by it which connections a pod was given": ("syslog_ident",),
    "remove it; poolers have no wildcard database": ("autodb_idle_timeout",),
    "remove it; the operator replaces poolers and never suspends them": ("suspend_timeout",),
    # At 1 and 2 it logs "stored secret = ..." for every login, and each entry with its password at a RELOAD.
    "remove it; PgBouncer would write passwords into its log": ("verbose",),
}
