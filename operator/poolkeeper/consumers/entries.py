"""A consumer's names at the pooler: its login, its two database entries, its application_name.

Knows how these names derive from namespace and Secret name. Doesn't know PgBouncer's files.
"""

import base64
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from poolkeeper.consumers.consent import Consumer
from poolkeeper.spec.types import Terms
from poolkeeper.upstream.target import Target

NAME_LIMIT = 63
"""Bytes that PostgreSQL and PgBouncer keep of a user, database or application name (NAMEDATALEN - 1)."""
SESSION_SUFFIX = ".session"
_DIGEST_LENGTH = 10


@dataclass(frozen=True)
class Entry:
    """One line of PgBouncer's [databases]: a name that clients connect to, and the login that may.

    `database` is the upstream's; `login` is the only login admitted; `application_name` is what
    pg_stat_activity shows unless the client sends a name of its own. `max_clients` is how many client
    connections one pooler admits; None: as many as its consumer may have. `weight` is the consumer's.
    """

    name: str
    database: str
    login: str
    pool_mode: str
    application_name: str
    max_clients: int | None = None
    weight: int = 100


@functools.lru_cache(maxsize=2**14)
def login_name(consumer: Consumer) -> str:
    """The consumer's user name at the pooler.

    The digest at its end distinguishes it from `pgbouncer`, `poolkeeper` and the markers `pk.<generation>`.
    """
    readable = f"{consumer.namespace}-{consumer.secret_name}"
    return derived_name(readable, ["login", consumer.namespace, consumer.secret_name], NAME_LIMIT)


@functools.lru_cache(maxsize=2**14)
def entry_name(database: str, consumer: Consumer) -> str:
    """The database name in the consumer's DATABASE_URL."""
    readable = f"{database}--{consumer.namespace}"
    parts = ["entry", database, consumer.namespace, consumer.secret_name]
    return derived_name(readable, parts, NAME_LIMIT - len(SESSION_SUFFIX))


def session_entry_name(database: str, consumer: Consumer) -> str:
    """The database name in the consumer's DATABASE_SESSION_URL."""
    return entry_name(database, consumer) + SESSION_SUFFIX


def application_name(consumer: Consumer) -> str:
    """`namespace/secretName`; if that is longer than PostgreSQL shows, it is cut and ends with a digest."""
    full = f"{consumer.namespace}/{consumer.secret_name}"
    if len(full) <= NAME_LIMIT:
        return full
    return f"{full[: NAME_LIMIT - _DIGEST_LENGTH - 1]}~{_digest(['application', full])}"


def entries(
    target: Target,
    consumers: Iterable[Consumer],
    mode: str,
    terms: Mapping[Consumer, Terms] = MappingProxyType({}),
    poolers: int = 1,
) -> tuple[Entry, ...]:
    """The entries of all consumers, sorted by name: for each one in the given pool mode and, if its `terms`
    give it session connections, one in session mode. Client limits are divided by `poolers`, rounded up.

    Raises ValueError if two names are equal, since the consumers would then share a login or an entry, and if a
    login has the name of the upstream's user: PgBouncer keeps one record per user name, and would mix up the
    password that a client must prove with the one that it sends to the upstream.
    """
    made: dict[str, Entry] = {}
    logins: set[str] = set()
    for consumer in sorted(set(consumers)):
        login, shown = login_name(consumer), application_name(consumer)
        main = entry_name(target.database, consumer)
        agreed = terms.get(consumer, Terms())
        limit = agreed.max_client_connections
        clients = None if limit is None else math.ceil(limit / max(1, poolers))
        if login == target.user:
            raise ValueError(f"the upstream's user has the name of a pooler login ({login}); use another user")
        if login in logins or main in made:
            raise ValueError(f"two consumers are called {login} at the pooler; rename one of their Secrets")
        logins.add(login)
        made[main] = Entry(main, target.database, login, mode, shown, clients, agreed.weight)
        if agreed.session_connections:
            session = session_entry_name(target.database, consumer)
            made[session] = Entry(session, target.database, login, "session", shown, clients, agreed.weight)
    return tuple(made[name] for name in sorted(made))


def derived_name(readable: str, parts: list[str], limit: int) -> str:
    """A name of [a-z0-9_.-], at most `limit` bytes: a readable part, then the digest of `parts`."""
    slug = re.sub(r"[^a-z0-9_.-]+", "-", readable.lower()).lstrip("_.-")
    slug = slug[: limit - _DIGEST_LENGTH - 1].rstrip("_.-")
    return f"{slug or 'db'}-{_digest(parts)}"


def _digest(parts: list[str]) -> str:
    """50 bits in lower-case base32 over the exact parts, whatever characters they hold."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return base64.b32encode(digest).decode().lower()[:_DIGEST_LENGTH]
