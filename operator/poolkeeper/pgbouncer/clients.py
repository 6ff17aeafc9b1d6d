"""Clients of a pooler, as SHOW CLIENTS on its console lists them, and the keepers among them. Pure.

https://www.pgbouncer.org/usage.html#show-clients
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from poolkeeper.names import CONSOLE_DATABASE
from poolkeeper.observed.consoles import ConsoleAccess

_LOGGED_IN = ("active", "idle")
"""PgBouncer before 1.25 also calls an idle client active; it differs in having no server connection."""


@dataclass(frozen=True)
class Client:
    """A client connection. `idle`: it holds no server connection, is in no transaction and waits for nothing.

    (A client of a session entry holds its server connection from its first query on, and is never idle then.)
    """

    id: str
    address: str
    login: str
    idle: bool
    since: str
    """When it last sent a request, or connected: a text that sorts by time."""


@dataclass(frozen=True)
class KeeperConsole:
    """A keeper: its login at the pooler, and access to its own console."""

    process: str
    """Key of World.shown."""
    namespace: str
    name: str
    """Its name in messages."""
    login: str
    access: ConsoleAccess


def present(rows: Iterable[Mapping[str, str]]) -> tuple[Client, ...]:
    """The rows of SHOW CLIENTS without those of consoles, the operator's among them."""
    return tuple(
        Client(row["id"], row["addr"], row["user"], _idle(row), row["request_time"])
        for row in rows
        if row["database"] != CONSOLE_DATABASE
    )


def _idle(row: Mapping[str, str]) -> bool:
    return row["state"] in _LOGGED_IN and not row["link"]


def holders(clients: Iterable[Client], keepers: Iterable[KeeperConsole]) -> dict[KeeperConsole, bool]:
    """The keepers among the clients, each with whether one of its connections is idle."""
    idle: dict[tuple[str, str], bool] = {}
    for client in clients:
        place = (client.address, client.login)
        idle[place] = idle.get(place, False) or client.idle
    places = {keeper: (keeper.access.ip, keeper.login) for keeper in keepers}
    return {keeper: idle[place] for keeper, place in places.items() if place in idle}


def suspects(clients: Iterable[Client], keepers: Iterable[KeeperConsole]) -> set[KeeperConsole]:
    """Keepers that a client at an address of no keeper may belong to, since it has their login.

    Some networks replace the source address of traffic to a Service. Otherwise the client has no keeper.
    """
    known = tuple(keepers)
    addresses = {keeper.access.ip for keeper in known}
    logins = {client.login for client in clients if client.address not in addresses}
    return {keeper for keeper in known if keeper.login in logins}


def to_close(clients: Iterable[Client], seconds: float, left: float) -> list[str]:
    """IDs of the idle clients to close now, longest idle first: enough that, if as many are closed every
    `seconds`, all are gone in `left` seconds. Clients in a transaction are left alone."""
    idle = sorted((client for client in clients if client.idle), key=lambda client: (client.since, client.id))
    share = seconds / left if left > seconds else 1.0
    return [client.id for client in idle[: math.ceil(len(idle) * share)]]
