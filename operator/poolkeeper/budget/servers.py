"""The PooledDatabases on one PostgreSQL server, and its foreign connections: those that are no pooler's.

Pure. Its input is what was measured (workers/upstream.py) and what consoles showed. What it needs to remember
of that is in the values that it returns. Times are seconds on a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from poolkeeper.budget.division import Limit, Server

WINDOW_SECONDS = 60.0
"""How long a closed foreign connection still counts."""
LINGERING_SECONDS = 5.0
"""How long a backend may outlive its connection until it counts as foreign."""


@dataclass(frozen=True)
class Identity:
    """The server that a target leads to. `system` names the database cluster, which standbys share with their
    primary. `instance` is when this server started, and its port; empty if it could not be checked yet."""

    system: str
    instance: str
    since: float
    """When this instance was first seen there."""
    at: float
    """When it was last seen."""

    def seen(self, system: str, instance: str, now: float) -> Identity:
        """The identity after one more check."""
        same = (self.system, self.instance) == (system, instance)
        return Identity(system, instance, self.since if same else now, now)


def apart(identities: Mapping[str, Identity]) -> tuple[tuple[str, ...], ...]:
    """The names in groups, one for each server. In doubt two are on the same one: if one name was checked
    before a restart of the server and the other after it, the server looks like two."""
    groups: list[list[str]] = []
    for name in sorted(identities):
        joined = [
            group for group in groups if any(_same(identities[name], identities[other]) for other in group)
        ]
        groups = [group for group in groups if group not in joined]
        groups.append([name, *(other for group in joined for other in group)])
    return tuple(tuple(sorted(group)) for group in sorted(groups))


def _same(one: Identity, other: Identity) -> bool:
    if one.system != other.system:
        return False
    if one.instance == other.instance or not (one.instance and other.instance):
        return True
    latest = max(one.since, other.since)
    return one.at < latest or other.at < latest


@dataclass(frozen=True)
class Backend:
    """A client's backend in pg_stat_activity. `address` is empty where it can't be seen."""

    pid: int
    user: str
    database: str
    address: str


@dataclass(frozen=True)
class Measured:
    """A server's settings and connections at one moment, and the CONNECTION LIMITs of roles and databases."""

    max_connections: int
    superuser_reserved: int
    reserved: int
    backends: tuple[Backend, ...]
    role_limits: Mapping[str, int]
    database_limits: Mapping[str, int]

    def server(self, others: int) -> Server:
        return Server(self.max_connections, self.superuser_reserved, self.reserved, others)


@dataclass(frozen=True)
class Ours:
    """What is known to be the poolers' own: the users that they log in as, the backends that their consoles
    name, and the addresses of poolers whose consoles weren't asked or didn't answer."""

    users: frozenset[str]
    pids: frozenset[int]
    addresses: frozenset[str]

    def strangers(self, measured: Measured) -> tuple[Backend, ...]:
        """Foreign backends: of other users, and those of the poolers' users that no pooler knows (any more)."""
        return tuple(
            backend
            for backend in measured.backends
            if backend.user not in self.users
            or (backend.pid not in self.pids and backend.address not in self.addresses)
        )


@dataclass(frozen=True)
class Others:
    """Foreign connections on a server, over time. `now` counts every backend that no pooler knows: some may be
    backends that poolers just left, which are no reason to give anything up. `lasting` leaves those out, and is
    the maximum of the last minute."""

    now: int = 0
    lasting: int = 0
    lately: tuple[tuple[float, int], ...] = ()
    """Time, and unknown backends of the poolers' users, for as long as poolers may just have left them."""
    history: tuple[tuple[float, int], ...] = ()
    """Time, and what was lasting then."""

    def advance(self, ours: Ours, measured: Measured, own: int, at: float) -> Others:
        """The state after one more measurement; `own`: the operator's own backends among the strangers."""
        strangers = ours.strangers(measured)
        foreign = sum(backend.user not in ours.users for backend in strangers) + own
        lately = (
            *(item for item in self.lately if item[0] >= at - LINGERING_SECONDS),
            (at, len(strangers) - foreign),
        )
        stayed = foreign + min(unknown for _, unknown in lately)
        history = (*(item for item in self.history if item[0] > at - WINDOW_SECONDS), (at, stayed))
        return Others(len(strangers), max(count for _, count in history), lately, history)


def limits(measured: Measured, members: Mapping[str, tuple[str, str]], ours: Ours) -> tuple[Limit, ...]:
    """CONNECTION LIMITs that concern the PooledDatabases; `members` are their (user, database) by name."""
    strangers = ours.strangers(measured)
    found = []
    for limited, index in ((measured.role_limits, 0), (measured.database_limits, 1)):
        for name, connections in limited.items():
            concerned = frozenset(member for member, keys in members.items() if keys[index] == name)
            taken = sum((backend.user, backend.database)[index] == name for backend in strangers)
            if concerned:
                found.append(Limit(concerned, max(0, connections - taken)))
    return tuple(found)
