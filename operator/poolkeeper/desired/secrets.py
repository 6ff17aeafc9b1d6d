"""The Secrets: the poolers' configuration, the operator's logins, and two for every consumer."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from poolkeeper import names
from poolkeeper.consumers.consent import Consumer
from poolkeeper.consumers.database_url import jdbc_url, pgpass_line, r2dbc_url, url
from poolkeeper.credentials.logins import Login, Logins, to_secret
from poolkeeper.desired.metadata import Object, metadata
from poolkeeper.pgbouncer.configuration import Configuration
from poolkeeper.spec.parse import PooledDatabase

BINDING_TYPE = "servicebinding.io/postgresql"


def config(database: PooledDatabase, configuration: Configuration, previous: Mapping[str, str]) -> Object:
    """The Secret that the pooler pods mount: the current files and those of the generation before.

    A PgBouncer that has not reloaded yet still names the previous files; without its hba file it would
    drop every rule, the console's included.
    """
    files = {**previous, **configuration.files}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(database, names.ROLE_CONFIG, names.config_name(database.name)),
        "type": "Opaque",
        "data": _encoded(files),
    }


def logins(database: PooledDatabase, stored: Logins) -> Object:
    """The Secret with every login of the pooler, in its PooledDatabase's namespace; consumers get copies."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(database, names.ROLE_LOGINS, names.logins_name(database.name)),
        "type": "Opaque",
        "data": to_secret(stored),
    }


def consumer(
    database: PooledDatabase, consumer: Consumer, login: Login, entry: str, session: str | None, host: str
) -> Object:
    """The Secret for `envFrom`: the pooled URLs and libpq's variables. No `session`: there is no such entry.
    `host` is the poolers' name.

    It has no sslmode: node-postgres verifies against public authorities for any mode but `disable`.
    """
    port = names.POOLER_PORT
    urls = {"DATABASE_URL": entry} | ({} if session is None else {"DATABASE_SESSION_URL": session})
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(database, names.ROLE_CONSUMER, consumer.secret_name, consumer.namespace),
        "type": "Opaque",
        "data": _encoded(
            {
                **{key: url(host, port, login.name, login.password, name) for key, name in urls.items()},
                "PGHOST": host,
                "PGPORT": str(port),
                "PGUSER": login.name,
                "PGPASSWORD": login.password,
                "PGDATABASE": entry,
            }
        ),
    }


def binding(
    database: PooledDatabase,
    consumer: Consumer,
    login: Login,
    entry: str,
    session: str | None,
    host: str,
    authority: str,
) -> Object:
    """The Service Binding Secret (https://servicebinding.io/spec/core/1.1.0/, well-known entries), with keys of
    our own for the `session` entry, which migrations need; None: there is no such entry.

    `require` encrypts and verifies nothing, which works with every client; `authority`, PEM, is for clients
    that verify.
    """
    port = names.POOLER_PORT
    name = names.binding_name(consumer.secret_name)
    sessions = (
        {}
        if session is None
        else {
            "session-database": session,
            "session-uri": url(host, port, login.name, login.password, session),
            "session-jdbc-url": jdbc_url(host, port, login.name, login.password, session),
        }
    )
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(database, names.ROLE_BINDING, name, consumer.namespace),
        "type": BINDING_TYPE,
        "data": _encoded(
            {
                "type": "postgresql",
                "provider": "poolkeeper",
                "host": host,
                "port": str(port),
                "database": entry,
                "dbname": entry,
                "username": login.name,
                "user": login.name,
                "password": login.password,
                "uri": url(host, port, login.name, login.password, entry),
                "jdbc-url": jdbc_url(host, port, login.name, login.password, entry),
                "r2dbc-url": r2dbc_url(host, port, login.name, login.password, entry),
                "pgpass": pgpass_line(host, port, login.name, login.password, entry),
                "sslmode": "require",
                "ca.crt": authority,
                **sessions,
            }
        ),
    }


def _encoded(values: Mapping[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
