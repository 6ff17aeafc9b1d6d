"""A PooledDatabase in small: what the tests configure poolers with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from poolkeeper.consumers.consent import Consumer
from poolkeeper.consumers.entries import entries, entry_name, login_name, session_entry_name
from poolkeeper.credentials.certificates import Certificate, issue
from poolkeeper.credentials.logins import Authorities, Login, Logins
from poolkeeper.credentials.mint import authorities, mint
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.pgbouncer.configuration import Configuration, configuration
from poolkeeper.upstream.target import Target
from tests.pgbouncer.processes import DIRECTORY, Pooler

NAME = "shop-pooler.data.svc"
FULL_NAME = f"{NAME}.cluster.local"
WEB = Consumer("web", "database")
API = Consumer("api", "database")


@dataclass(frozen=True)
class Shop:
    """A target that works, logins for two consumers, and configurations made of them."""

    target: Target
    logins: Logins = field(
        default_factory=lambda: Logins(
            console=mint("poolkeeper"),
            authorities=authorities(),
            consumers={name: mint(name) for name in (login_name(WEB), login_name(API))},
        )
    )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Keeps the passwords out of hypothesis' reports, which look into dataclasses."""
        printer.text("Shop(...)")

    def configuration(
        self,
        consumers: Iterable[Consumer] = (WEB, API),
        parameters: Mapping[str, str] | None = None,
        mode: str = "transaction",
        target: Target | None = None,
        peers: Mapping[int, str] | None = None,
    ) -> Configuration:
        chosen = target or self.target
        rows = entries(chosen, consumers, mode)
        return configuration(chosen, rows, self.logins, self.certificate, parameters or {}, DIRECTORY, peers)

    @property
    def certificate(self) -> Certificate:
        return issue(self.authorities.poolers, NAME, datetime.now(UTC), FULL_NAME)

    @property
    def authorities(self) -> Authorities:
        assert self.logins.authorities is not None
        return self.logins.authorities

    def console(self, pooler: Pooler) -> ConsoleAccess:
        assert self.logins.console is not None
        authority = self.authorities.poolers.certificate
        return ConsoleAccess(pooler.host, pooler.port, self.logins.console.password, NAME, authority)

    def login(self, consumer: Consumer) -> Login:
        return self.logins.consumers[login_name(consumer)]

    def entry(self, consumer: Consumer) -> str:
        return entry_name(self.target.database, consumer)

    def session_entry(self, consumer: Consumer) -> str:
        return session_entry_name(self.target.database, consumer)

    def connection(self, pooler: Pooler, consumer: Consumer, entry: str | None = None) -> dict[str, Any]:
        """libpq's parameters for the consumer."""
        login = self.login(consumer)
        return {
            "host": pooler.host,
            "port": pooler.port,
            "user": login.name,
            "password": login.password,
            "dbname": entry or self.entry(consumer),
            "sslmode": "disable",
            "autocommit": True,
        }
