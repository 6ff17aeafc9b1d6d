"""The configuration of one consumer's keepers: PgBouncer on the app's loopback, towards the pooler Service.

One configuration serves every keeper of the consumer. The port, which may differ between pods, comes from the
pod's own file. Whether the app needs a password is decided when a pod is created, by the file that its keeper
starts with: where a keeper needs it, files for both lie side by side, so that another spec.keeper.auth doesn't
affect running keepers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from poolkeeper.consumers import entries
from poolkeeper.consumers.consent import Consumer
from poolkeeper.consumers.entries import NAME_LIMIT, SESSION_SUFFIX, Entry
from poolkeeper.credentials.certificates import Certificate
from poolkeeper.credentials.logins import Login
from poolkeeper.dns import DOMAIN
from poolkeeper.names import (
    APP_USER,
    CONFIG_DIRECTORY,
    CONSOLE_DATABASE,
    CONSOLE_LOGIN,
    POOLER_PORT,
    pooler_host,
)
from poolkeeper.pgbouncer import ini as pgbouncer_ini
from poolkeeper.pgbouncer import userlist
from poolkeeper.pgbouncer.configuration import (
    INI,
    PLACEHOLDER,
    POD_FILE,
    SCRAM_INI,
    Configuration,
    content_file,
    digest,
    paths_in,
    shown_columns,
)
from poolkeeper.spec import startup_parameters
from poolkeeper.spec.parse import PooledDatabase
from poolkeeper.spec.types import SCRAM, TRUST
from poolkeeper.upstream.target import Target

SHARED_PARAMETERS = frozenset({"max_prepared_statements", "server_reset_query", "server_reset_query_always"})
"""The pooler's parameters that must be equal in both tiers: what they track, or reset, for a client."""

QUERY_WAIT_SECONDS = 120
"""How long a client may wait for a connection to a pooler: PgBouncer's own default."""
_LOOPBACK = ("127.0.0.1/32", "::1/128")
"""Exactly these: service meshes use other addresses of 127.0.0.0/8 for traffic from outside the pod."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PLAIN = re.compile(r"[A-Za-z0-9_.~/-]+")


def database_names(upstream_database: str) -> tuple[str, str]:
    """The database names of the keeper's transaction endpoint and of its session endpoint.

    The first is the upstream's own name if PgBouncer can hold it, else derived from it. The second adds a
    suffix.
    """
    limit = NAME_LIMIT - len(SESSION_SUFFIX)
    held = _NAME.fullmatch(upstream_database) and upstream_database != CONSOLE_DATABASE
    if held and len(upstream_database) <= limit:
        name = upstream_database
    else:
        name = entries.derived_name(upstream_database, ["keeper", upstream_database], limit)
    return name, name + SESSION_SUFFIX


def configuration(
    database: PooledDatabase,
    upstream_database: str,
    consumer: Consumer,
    login: Login,
    console: Login,
    certificate: Certificate,
    authority: str,
    app: Login | None = None,
    query_wait_seconds: int = QUERY_WAIT_SECONDS,
    domain: str = DOMAIN,
) -> Configuration:
    """The files of one consumer's keepers, and what their consoles must show of them.

    `login` is the consumer's at the poolers, `console` the operator's at these keepers. `certificate` is what
    the keepers show to the operator; `authority` (PEM) verifies the poolers' certificates. `app` is the app's
    login, None if every keeper trusts the app. `query_wait_seconds` is how long a client may wait for a
    connection to a pooler. `domain` is the cluster's. The settings to be shown have no listen_port, and their
    auth_hba_file is that of keepers that trust (shown_by() has the others'). Raises ValueError for what can't
    be written.
    """
    rows = _entries(database, upstream_database, consumer)
    target = Target(
        host=pooler_host(database.namespace, database.name, domain),
        port=POOLER_PORT,
        database=upstream_database,
        user=login.name,
        password=login.password,
        sslmode="verify-full",
        ca=authority,
    )
    parameters = {**_parameters(database), "query_wait_timeout": str(query_wait_seconds)}
    ca = content_file("ca", authority, "crt")
    tls_certificate = content_file("tls", certificate.certificate, "crt")
    tls_key = content_file("tls", certificate.key, "key")

    def settings(generation: str) -> dict[str, str]:
        paths = paths_in(CONFIG_DIRECTORY, generation, ca[0], ca[0], tls_certificate[0], tls_key[0])
        shared = pgbouncer_ini.settings(target, parameters, paths)
        return {name: value for name, value in shared.items() if name != "listen_port"}

    def files(generation: str) -> dict[str, str]:
        return {
            INI: _ini(target, rows, settings(generation)),
            f"userlist-{generation}.txt": _userlist(console, app, generation),
            f"hba-{generation}.conf": _rules(rows, "trust"),
            **dict((ca, tls_certificate, tls_key)),
            **(_scram_files(rows, generation) if app is not None else {}),
        }

    generation = digest(console.password, files(PLACEHOLDER))
    return Configuration(
        generation=generation,
        files=files(generation),
        settings=settings(generation),
        databases={row.name: shown_columns(target, row) for row in rows},
        users=frozenset({APP_USER, console.name, userlist.marker(generation)}),
    )


def start_file(auth: str) -> str:
    """The path of the file that a keeper starts with."""
    return f"{CONFIG_DIRECTORY}/{SCRAM_INI if auth == SCRAM else INI}"


def auth_of(command: Sequence[str]) -> str:
    """The auth, Scram or Trust, of a keeper that was started with this command."""
    return SCRAM if start_file(SCRAM) in command else TRUST


def shown_by(configuration: Configuration, auth: str) -> Configuration:
    """The configuration that a keeper shows if it was started with start_file(auth)."""
    if auth != SCRAM:
        return configuration
    rules = f"{CONFIG_DIRECTORY}/{_scram_rules(configuration.generation)}"
    return replace(configuration, settings={**configuration.settings, "auth_hba_file": rules})


def _scram_rules(generation: str) -> str:
    return f"hba-scram-{generation}.conf"


def _scram_files(rows: tuple[Entry, ...], generation: str) -> dict[str, str]:
    """Settings for logins come after the include, and so after the pod's own file, which can't undo them."""
    ini = [
        "[pgbouncer]",  # PgBouncer silently ignores a file that begins with an include
        f"%include {CONFIG_DIRECTORY}/{INI}",
        "auth_type = hba",
        f"auth_file = {CONFIG_DIRECTORY}/userlist-{generation}.txt",
        f"auth_hba_file = {CONFIG_DIRECTORY}/{_scram_rules(generation)}",
    ]
    return {SCRAM_INI: "\n".join(ini) + "\n", _scram_rules(generation): _rules(rows, "scram-sha-256")}


def _userlist(console: Login, app: Login | None, generation: str) -> str:
    if app is not None:
        return userlist.render([console, app], generation)
    # No login works with an empty password, but `trust` admits only users that PgBouncer knows.
    return f'"{APP_USER}" ""\n' + userlist.render([console], generation)


def _entries(database: PooledDatabase, upstream_database: str, consumer: Consumer) -> tuple[Entry, ...]:
    """A keeper's two entries, whose `database` is the consumer's entry at the poolers.

    A keeper has both whether or not the poolers do: removing one might end its process (budget/protocol.py)."""
    main, session = database_names(upstream_database)
    shown = entries.application_name(consumer)
    first = Entry(main, entries.entry_name(upstream_database, consumer), APP_USER, database.pooler.mode, shown)
    there = entries.session_entry_name(upstream_database, consumer)
    return first, Entry(session, there, APP_USER, "session", shown)


def _parameters(database: PooledDatabase) -> dict[str, str]:
    # A draining pooler waits drainSeconds for its clients. By then every keeper has retired its connections
    # to the pooler, even if no operator runs.
    lifetime = max(1, database.pooler.drain_seconds * 2 // 3)
    shared = {name: value for name, value in database.pooler.parameters.items() if name in SHARED_PARAMETERS}
    return {
        **shared,
        **startup_parameters.settings(database.pooler.startup_parameters),
        "default_pool_size": str(database.keeper.pool_size),
        "server_lifetime": str(lifetime),
    }


def _ini(target: Target, rows: tuple[Entry, ...], settings: Mapping[str, str]) -> str:
    lines = ["[databases]"]
    lines += [f"{row.name} = {_connection(target, row)}" for row in rows]
    lines += ["", "[pgbouncer]"]
    lines += [f"{name} = {value}".rstrip() for name, value in settings.items()]
    lines += [f"%include {CONFIG_DIRECTORY}/{POD_FILE}"]
    return "\n".join(lines) + "\n"


def _connection(target: Target, row: Entry) -> str:
    """An entry's value. The operator made all of it, so nothing needs quoting; raises ValueError otherwise."""
    parts = {
        "host": target.host,
        "port": str(target.port),
        "dbname": row.database,
        "user": target.user,
        "password": target.password,
        "pool_mode": row.pool_mode,
        "application_name": row.application_name,
    }
    for name, value in parts.items():
        if not _PLAIN.fullmatch(value):
            raise ValueError(f"the {name} of a keeper's entry holds characters that it can't have")
    return " ".join(f"{name}='{value}'" for name, value in parts.items())


def _rules(rows: tuple[Entry, ...], method: str) -> str:
    """The rules: the app from inside the pod by `method`, the operator's console over TLS; nothing else."""
    names = ",".join(f'"{row.name}"' for row in rows)
    lines = [f'host {names} "{APP_USER}" {address} {method}' for address in _LOOPBACK]
    lines += [f'hostssl "{CONSOLE_DATABASE}" "{CONSOLE_LOGIN}" all scram-sha-256']
    return "\n".join(lines) + "\n"
