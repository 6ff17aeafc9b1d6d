"""Where the upstream is, and whether server connections have to leave where it was. Pure.

A failover shows in two ways: the host's name resolves to another address, or the Service that it names gets
other endpoints behind the same address. In both cases open connections stay where they are, which may be a
standby by then. The status keeps the place that the poolers were last led to, so a crash forgets nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from poolkeeper.dns import Dns, Names
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.observed.upstream import Whereabouts
from poolkeeper.plan.reloads import serves
from poolkeeper.plan.wanted import Wanted
from poolkeeper.plan.world import World

LOOKUP_SECONDS = 2.0
"""How long PgBouncer keeps an address, unless a parameter says otherwise (pgbouncer/ini.py)."""
LONGEST_LOOKUP_SECONDS = 60.0
"""Maximum dns_max_ttl to wait for. If it is longer, PgBouncer's next lookup leaves the old address itself."""
MOST = 64
"""Maximum number of addresses: a name with more is no primary, and its changes are not followed."""
CALM_SECONDS = 600.0
FREE_DEPARTURES = 3
FIRST_PATIENCE_SECONDS = 5.0
LAST_PATIENCE_SECONDS = 600.0


class ServiceName(NamedTuple):
    """The name of a Service."""

    namespace: str
    name: str


class Place(NamedTuple):
    """What to observe of an upstream: the `names` to resolve, and the `service` that it may be."""

    host: str
    names: Names
    service: ServiceName | None


def place(host: str, namespace: str, dns: Dns) -> Place | None:
    """What to observe for an upstream of a PooledDatabase in `namespace`. None for an IP address.

    Poolers complete names from their own namespace, so the operator does it likewise.
    """
    names, service = dns.names(host, namespace), dns.service(host, namespace)
    return Place(host, names, ServiceName(*service) if service is not None else None) if names.tried else None


@dataclass(frozen=True)
class Answers:
    """The answers of one source for one name over time; `addresses` is their outcome.

    An address that is missing in an answer has left at once. But some names answer with another address every
    time, on purpose: from the fourth departure without ten quiet minutes on, an address has left only after it
    was missing for 5, 10, 20, ... seconds. After ten quiet minutes, departures are forgotten.
    """

    seen: Mapping[str, float] = field(default_factory=dict)
    """When each address was last in an answer (seconds of a steady clock)."""
    last: frozenset[str] = frozenset()
    departures: int = 0
    restless: float = 0.0
    """When an address last left, or came back before it had left."""

    @property
    def addresses(self) -> frozenset[str]:
        return frozenset(self.seen)

    def take(self, answer: frozenset[str], now: float) -> Answers:
        """The state after one more answer. An empty answer says nothing: a failover in progress
        gives one. Nor does one of more than MOST addresses."""
        if not answer or len(answer) > MOST:
            return self
        departures = 0 if now - self.restless > CALM_SECONDS else self.departures
        late = max(0, departures - FREE_DEPARTURES)
        patience = min(FIRST_PATIENCE_SECONDS * 2 ** min(late, 16), LAST_PATIENCE_SECONDS)
        if departures < FREE_DEPARTURES:
            patience = 0.0
        seen = {address: at for address, at in self.seen.items() if now - at < patience}
        if len(seen.keys() | answer) > MOST:
            seen = {}
        seen |= dict.fromkeys(answer, now)
        left = self.seen.keys() - seen.keys()
        came_back = (answer - self.last) & self.seen.keys()
        return Answers(
            seen,
            answer,
            departures + bool(left),
            now if left or came_back else self.restless,
        )


@dataclass(frozen=True)
class Reconnect:
    """A pooler whose server connections have to leave where the upstream was."""

    uid: str
    name: str
    access: ConsoleAccess
    whereabouts: Whereabouts
    left: frozenset[str] = field(compare=False)
    """Addresses that are no longer the upstream's."""
    behind_service: bool
    """Endpoints of a Service changed; the Service's own address may be all that the console shows."""
    lookup_seconds: float
    """How long PgBouncer may still use an address that it knows."""
    serves: bool = field(compare=False)

    def stale(self, address: str) -> bool:
        """Whether a server connection to this address goes to where the upstream was."""
        known = self.whereabouts.addresses
        return address in self.left or bool(known and address not in known | self.whereabouts.endpoints)


def reconnects(wanted: Wanted, world: World) -> tuple[Reconnect, ...]:
    """The poolers that may have connections to where the upstream was."""
    before, now = recorded(wanted, world), _seen(wanted, world)
    if before is None or now is None or wanted.logins.console is None:
        return ()
    gone = left(before, now)
    if not gone:
        return ()
    config = wanted.configuration
    kept = config.settings.get("dns_max_ttl", "") if config is not None else ""
    lookup = min(float(kept), LONGEST_LOOKUP_SECONDS) if kept else LOOKUP_SECONDS
    return tuple(
        Reconnect(
            pod.uid,
            pod.name,
            wanted.console_at(pod.ip),
            now,
            gone,
            bool(gone & before.endpoints),
            lookup,
            serves(pod),
        )
        for pod in world.pods
        if pod.ip and not _moved(pod.uid, now, world)
    )


def to_record(wanted: Wanted, world: World) -> Whereabouts | None:
    """The place to record in the status: where the poolers were led. None for an upstream that can't move."""
    before, now = recorded(wanted, world), _seen(wanted, world)
    if before is None or now is None:
        return before or now
    if any(item.serves for item in reconnects(wanted, world)):
        return before
    return replace(
        now, addresses=now.addresses or before.addresses, endpoints=now.endpoints or before.endpoints
    )


def recorded(wanted: Wanted, world: World) -> Whereabouts | None:
    """The place in the status, if it is of the host in use."""
    stands = world.resource.status.get("upstream") if world.resource is not None else None
    if not stands or wanted.target is None or stands["host"] != wanted.target.host:
        return None
    return Whereabouts(
        stands["host"], frozenset(stands.get("addresses", ())), frozenset(stands.get("endpoints", ()))
    )


def listed(addresses: Iterable[str]) -> str:
    """The addresses as text, for a message."""
    return ", ".join(sorted(addresses)) or "no address"


def _seen(wanted: Wanted, world: World) -> Whereabouts | None:
    """The known place of the host in use; None if nothing is known."""
    now = world.whereabouts
    if now is None or wanted.target is None or now.host != wanted.target.host:
        return None
    return now if now.addresses or now.endpoints else None


def left(before: Whereabouts, now: Whereabouts) -> frozenset[str]:
    """The addresses and endpoints that are gone. A silent source says nothing about its own."""
    addresses = before.addresses - now.addresses if now.addresses else frozenset()
    endpoints = before.endpoints - now.endpoints if now.endpoints else frozenset()
    return addresses | endpoints


def _moved(uid: str, now: Whereabouts, world: World) -> bool:
    moved = world.moved.get(uid)
    return moved is not None and moved.whereabouts == now
