"""The poolers that have to renew their server connections, and the renewal in the status. Pure.

There are two causes: the database's schema has changed (workers/servers/schemas.py), or the annotation
poolkeeper.io/reconnect has a new value. The status holds the cause of the last renewal, so that the next
operator neither repeats nor misses one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from poolkeeper import names
from poolkeeper.consumers.consent import Consumer
from poolkeeper.consumers.entries import entry_name, session_entry_name
from poolkeeper.kube.events import Event
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.observed.poolers import RenewalCause
from poolkeeper.plan.reloads import serves
from poolkeeper.plan.wanted import Wanted
from poolkeeper.plan.world import World

FIELD = "renewal"
"""The field of the status."""


@dataclass(frozen=True)
class Renewal:
    """A pooler that has to renew its server connections of these `entries`; None: of all entries."""

    uid: str
    name: str
    access: ConsoleAccess
    cause: RenewalCause
    entries: frozenset[str] | None
    serves: bool = field(compare=False)


def renewals(wanted: Wanted, world: World) -> tuple[Renewal, ...]:
    """The poolers that may have server connections older than the cause of a renewal."""
    before, cause = recorded(world), _cause(world)
    if wanted.logins.console is None or not _concerns_connections(before, cause, wanted):
        return ()
    return tuple(
        Renewal(
            pod.uid,
            pod.name,
            wanted.console_at(pod.ip),
            cause,
            None if _new_schema(before, cause) else _requested(cause, wanted),
            serves(pod),
        )
        for pod in world.pods
        if pod.ip and not _renewed(pod.uid, cause, world)
    )


def recorded(world: World) -> RenewalCause:
    """The cause of the last renewal, from the status."""
    stands = world.resource.status.get(FIELD, {}) if world.resource is not None else {}
    return RenewalCause(stands.get("request", ""), stands.get("schema", ""))


def report(wanted: Wanted, world: World, now: datetime) -> tuple[dict[str, Any], tuple[Event, ...]]:
    """The status field, and the Event of a complete renewal."""
    resource = world.resource
    assert resource is not None
    before, cause = recorded(world), _cause(world)
    stands: Mapping[str, Any] = resource.status.get(FIELD, {})
    if before == cause or any(item.serves for item in renewals(wanted, world)):
        return ({FIELD: dict(stands)} if stands else {}), ()
    body = {
        **({"request": cause.request} if cause.request else {}),
        **({"schema": cause.schema} if cause.schema else {}),
    }
    if before.request == cause.request and not _new_schema(before, cause):
        return {FIELD: {**stands, **body}}, ()
    seed = f"{resource.uid}/renewal/{before}/{cause}"
    name = hashlib.sha256(seed.encode()).hexdigest()[:16]
    return {FIELD: {**body, "at": now.strftime("%Y-%m-%dT%H:%M:%SZ")}}, (
        _event(name, before, cause, wanted, world),
    )


def _event(name: str, before: RenewalCause, cause: RenewalCause, wanted: Wanted, world: World) -> Event:
    if not _concerns_connections(before, cause, wanted):
        consumer = "/".join(_named(cause.request) or ())
        return Event(
            name,
            "Warning",
            "ReconnectRefused",
            f"metadata.annotations[{names.RECONNECT_ANNOTATION}] names {consumer}, which is not a consumer of"
            " this PooledDatabase; write <namespace>/<secretName> of a consumer and a new word, or the word"
            " alone for all consumers",
        )
    why = "the schema of the database changed" if _new_schema(before, cause) else ""
    asked = f"annotation {names.RECONNECT_ANNOTATION} asks for it" if before.request != cause.request else ""
    done = [item for item in world.renewed.values() if item.cause == cause]
    took = f" within {max(item.seconds for item in done):.1f} s" if done else ""
    left = sum(item.left for item in done)
    remain = f"; {left} are still in a transaction and end with server_lifetime" if left else ""
    causes = " and ".join(filter(None, (why, asked)))
    message = f"{causes}: {len(done)} poolers renewed their server connections{took}{remain}"
    return Event(name, "Normal", "ServerConnectionsRenewed", message)


def _cause(world: World) -> RenewalCause:
    """The cause to renew connections for. A part that is unknown, or no longer asked for, stays as recorded."""
    before = recorded(world)
    request = world.resource.reconnect if world.resource is not None else ""
    return RenewalCause(request or before.request, world.schema or before.schema)


def _new_schema(before: RenewalCause, cause: RenewalCause) -> bool:
    """Whether the schema changed. No connection is older than the first schema that is ever seen."""
    return bool(before.schema) and before.schema != cause.schema


def _concerns_connections(before: RenewalCause, cause: RenewalCause, wanted: Wanted) -> bool:
    requested = before.request != cause.request and _requested(cause, wanted) != frozenset()
    return _new_schema(before, cause) or requested


def _requested(cause: RenewalCause, wanted: Wanted) -> frozenset[str] | None:
    """The entries that the annotation asks for: None for all, an empty set for a consumer that isn't one."""
    named = _named(cause.request)
    if named is None:
        return None
    consumer = Consumer(*named)
    if wanted.target is None or consumer not in wanted.consumers.granted:
        return frozenset()
    database = wanted.target.database
    return frozenset({entry_name(database, consumer), session_entry_name(database, consumer)})


def _named(request: str) -> tuple[str, str] | None:
    """(namespace, secretName) of the consumer in front of the token."""
    first, space, _ = request.partition(" ")
    namespace, slash, secret_name = first.partition("/")
    return (namespace, secret_name) if space and slash else None


def _renewed(uid: str, cause: RenewalCause, world: World) -> bool:
    return uid in world.renewed and world.renewed[uid].cause == cause
