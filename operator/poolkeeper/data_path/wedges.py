"""Stuck server connections of poolers: PgBouncer waits for an answer, and the backend has none to give.

Pure. A busy pool shows an active connection with an idle backend at any instant, so only what lasts counts: the
same connection has the same client and no byte from the server, poll after poll, while PostgreSQL reports that
the backend has been idle all that time and outside a transaction. PgBouncer also keeps a connection active for
a client that has sent a message in part or that does not read its result. Such a client is left alone, like one
that is idle in a transaction: it takes nothing but a connection of its own consumer. Connections of session
entries belong to their clients and are never passed to this module.

One case can't be told from a wedge: a client sends nothing but Close, Flush or Parse messages of a statement
that PgBouncer knows already, and then no Sync for EVIDENCE_SECONDS. Ending the connection affects that client
alone.

Times are seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

SUSPECT_SECONDS = 3.0
"""How long a connection is active without a byte from its server until PostgreSQL is asked about its
backend."""
EVIDENCE_SECONDS = 4.0
"""How long PostgreSQL and PgBouncer have to agree that the connection is stuck. Both are asked once a
second."""
KILL_AFTER_SECONDS = 3.0
"""How long after its backend was ended a connection may stay until its client is closed."""


class Connection(NamedTuple):
    """A server connection: the UID of the pooler pod, and its ID there."""

    uid: str
    id: str


@dataclass(frozen=True)
class Active:
    """A connection as SHOW SERVERS has it while it is active. `link` is its client's address in the process."""

    entry: str
    pid: int
    link: str
    answered: str
    """When the server last sent something, by the pooler's clock."""


@dataclass(frozen=True)
class Backend:
    """A backend in pg_stat_activity. `resting`: idle and in no transaction, for this many `seconds`, since
    `changed`, by the server's clock."""

    resting: bool
    seconds: float
    changed: str


@dataclass(frozen=True)
class Sockets:
    """A connection's two ends in SHOW SOCKETS. `client` is the ID of its client, empty if it has none;
    `blamed`: the client has sent a message in part, or does not read what was sent to it."""

    client: str
    blamed: bool


@dataclass(frozen=True)
class Held:
    """An unchanged connection, first seen in this state at `since`."""

    active: Active
    since: float
    known: bool = False
    """Its backend was seen on the server while the connection was as it is now."""
    stuck_since: float | None = None
    """Since when PostgreSQL and PgBouncer agree on it without an exception."""
    changed: str = ""
    """Backend.changed; empty if the backend is gone."""
    client: str = ""
    terminated: float | None = None
    """When its backend was ended."""


Holds = Mapping[Connection, Held]


def hold(
    before: Holds, shown: Mapping[Connection, Active], seen: Iterable[str], backends: Iterable[int], now: float
) -> dict[Connection, Held]:
    """The holds after one more poll. `shown` are the active connections of the pods whose consoles answered
    (`seen`), `backends` those measured on the server. Of the other pods nothing new is known."""
    there, answered = frozenset(backends), frozenset(seen)
    after = {key: held for key, held in before.items() if key.uid not in answered}
    for key, active in shown.items():
        held = before.get(key)
        if held is None or held.active != active:
            held = Held(active, now)
        after[key] = replace(held, known=held.known or active.pid in there)
    return after


def suspects(holds: Holds, now: float) -> dict[Connection, Held]:
    """The connections whose backends are to be checked."""
    return {key: held for key, held in holds.items() if now - held.since >= SUSPECT_SECONDS}


def at_rest(held: Held, backends: Mapping[int, Backend]) -> bool:
    """Whether a suspect's backend can send nothing more: it has rested for SUSPECT_SECONDS, or is gone. A
    backend that was never seen proves nothing: the upstream may be a pooler itself."""
    backend = backends.get(held.active.pid)
    if backend is None:
        return held.known
    return backend.resting and backend.seconds >= SUSPECT_SECONDS


def judge(
    held: Held, backends: Mapping[int, Backend], sockets: Mapping[str, Sockets], id: str, now: float
) -> Held:
    """A suspect after PostgreSQL and its pooler were asked; `sockets` are those of its pooler, by the server
    connection's ID."""
    pair = sockets.get(id)
    if pair is None or pair.blamed or not at_rest(held, backends):
        return replace(held, stuck_since=None)
    backend = backends.get(held.active.pid)
    changed = "" if backend is None else backend.changed
    same = held.stuck_since is not None and held.changed == changed
    return replace(held, stuck_since=held.stuck_since if same else now, changed=changed, client=pair.client)


def stuck(holds: Holds, now: float) -> dict[Connection, Held]:
    """The connections to end, the oldest first."""
    found = {
        key: held
        for key, held in holds.items()
        if held.stuck_since is not None and now - held.stuck_since >= EVIDENCE_SECONDS
    }
    return dict(sorted(found.items(), key=lambda item: item[1].since))


def kills(held: Held, now: float) -> bool:
    """Whether to close a stuck connection's client: its backend is gone, or was ended in vain."""
    return not held.changed or (held.terminated is not None and now - held.terminated >= KILL_AFTER_SECONDS)
