"""What one PooledDatabase asks of the budget. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from poolkeeper.budget.division import Consumer
from poolkeeper.budget.shares import Pooled
from poolkeeper.consumers.consent import Consumers
from poolkeeper.consumers.entries import entry_name, login_name, session_entry_name
from poolkeeper.credentials.logins import Login
from poolkeeper.dns import Names
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.observed.upstream import Whereabouts
from poolkeeper.pgbouncer.configuration import MAX_CLIENTS_COLUMN, Configuration
from poolkeeper.spec.parse import PooledDatabase
from poolkeeper.upstream.target import Target


@dataclass(frozen=True)
class ClientBound:
    """How many clients may connect to these entries of a consumer, `namespace/secretName`, at one pooler.
    `limited`: because limits.maxClientConnections says so, not because other consumers need the rest."""

    consumer: str
    entries: tuple[str, ...]
    bound: int
    limited: bool


@dataclass(frozen=True)
class BudgetRequest:
    """A PooledDatabase's demand. `pooled` has the name `namespace/name`.

    `target` is the upstream, `lines` the [databases] lines without caps, by entry. `rules` is the path of the
    login rules, which admit to these entries alone. `fixed` are the entries whose clients hold connections for
    as long as they like. `access` is how to log in to a pooler's console, but for the address.
    """

    pooled: Pooled
    target: Target
    lines: Mapping[str, str] = field(repr=False)
    rules: str
    fixed: frozenset[str]
    access: ConsoleAccess
    whereabouts: Whereabouts | None = None
    """If it changes, the server's identity is checked again."""
    clients: tuple[ClientBound, ...] = ()
    logins: Mapping[str, Login] = field(default_factory=dict, repr=False)
    """By entry whose connections belong to a client for a transaction only."""
    names: Names | None = None
    """The names that the target's host stands for; None: it is complete."""


def order(
    database: PooledDatabase,
    consumers: Consumers,
    target: Target,
    config: Configuration,
    access: ConsoleAccess,
    whereabouts: Whereabouts | None,
    logins: Mapping[str, Login],
    names: Names,
    namespace_weight: int,
) -> BudgetRequest:
    """The order for a valid spec. Named consumers come before selected ones; `logins` are theirs, by name;
    `names` are those of the target's host, `namespace_weight` is that of the PooledDatabase's namespace among
    those on the server."""
    parties = tuple(
        Consumer(
            entry_name(target.database, consumer),
            session_entry_name(target.database, consumer),
            terms.weight,
            terms.max_connections,
            terms.session_connections,
        )
        for consumer, terms in consumers.terms.items()
    )
    budget, lines = database.budget, config.lines
    fixed = frozenset(lines if database.pooler.mode == "session" else (item.session_entry for item in parties))
    return BudgetRequest(
        Pooled(
            f"{database.namespace}/{database.name}",
            budget.weight,
            budget.max_connections,
            database.pooler.replicas,
            parties,
            replaceable=database.pooler.replicas == 1,
            reserve=budget.reserve,
            namespace_weight=namespace_weight,
        ),
        target,
        lines,
        config.settings["auth_hba_file"],
        fixed,
        access,
        whereabouts,
        tuple(_client_bounds(consumers, target, config)),
        {
            entry: logins[login_name(consumer)]
            for consumer in consumers.terms
            for entry in [entry_name(target.database, consumer)]
            if entry in lines and entry not in fixed
        },
        names,
    )


def _client_bounds(consumers: Consumers, target: Target, config: Configuration) -> Iterator[ClientBound]:
    for consumer in consumers.granted:
        name = f"{consumer.namespace}/{consumer.secret_name}"
        both = (entry_name(target.database, consumer), session_entry_name(target.database, consumer))
        present = tuple(entry for entry in both if entry in config.databases)
        limits = [
            int(config.databases[entry][MAX_CLIENTS_COLUMN])
            for entry in present
            if MAX_CLIENTS_COLUMN in config.databases[entry]
        ]
        bound = config.slots[login_name(consumer)]
        yield ClientBound(name, present, bound, limited=bool(limits) and sum(limits) <= bound)
        if len(present) > 1:
            for entry, limit in zip(present, limits, strict=False):
                yield ClientBound(name, (entry,), limit, limited=True)
