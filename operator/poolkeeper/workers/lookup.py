"""Where upstreams are: their names are resolved repeatedly, the endpoints of their Services are watched.

There is one task per name, which PooledDatabases of a namespace share, and one watch per Service, which all
share; no watch is over all EndpointSlices of the cluster. What can't be learned (a name that does not resolve,
a Service that may not be read) stays unknown.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from poolkeeper.dns import Names
from poolkeeper.kube.client import Cluster, ClusterError, Expired, Refused
from poolkeeper.observed.refs import Key
from poolkeeper.observed.upstream import Whereabouts
from poolkeeper.plan.addresses import Answers, Place, ServiceName
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store.store import Store
from poolkeeper.upstream.resolver import Lookups, Resolve, resolve

log = logging.getLogger(__name__)

LOOKUP_SECONDS = 1.0
"""How often a name is resolved, if there are few names."""
LOOKUPS_PER_SECOND = 10.0
"""How many lookups in a second are enough, if there are many names."""
ANSWER_SECONDS = 1.0
"""How long to wait for a name's first answer; if it takes longer, the name counts as unknown until then."""
PAUSE_SECONDS = 0.1
RETRY_SECONDS = 2.0
REFUSED_SECONDS = 600.0
"""How long until a Service that may not be read is retried."""
TICK_SECONDS = 1.0

_SLICE = "EndpointSlice"
_SERVICE_LABEL = "kubernetes.io/service-name"

NameT = TypeVar("NameT", bound=Hashable)


@dataclass
class _Source:
    """A name or a Service that is observed for PooledDatabases."""

    task: asyncio.Task[None] | None = None
    users: set[Key] = field(default_factory=set)
    seen: Answers = field(default_factory=Answers)
    answered: bool = False
    """Something is known of the source, if only that nothing can be learned."""


class UpstreamWatch:
    """Observes what observe() asks for; changes go to the store, and the keys that they affect to the queue."""

    def __init__(
        self, cluster: Cluster, store: Store, queue: Queue[Key], settings: Settings, resolver: Resolve = resolve
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._queue = queue
        self._settings = settings
        self._resolve = resolver
        self._lookups = Lookups()
        self._places: dict[Key, Place] = {}
        self._names: dict[Names, _Source] = {}
        self._services: dict[ServiceName, _Source] = {}

    def observe(self, key: Key, place: Place | None) -> None:
        """Observe exactly this place for a PooledDatabase; None: nothing."""
        before = self._places.get(key)
        if before == place:
            return
        if before is not None:
            del self._places[key]
            _leave(self._names, before.names, key)
            if before.service is not None:
                _leave(self._services, before.service, key)
        if place is None:
            return
        self._places[key] = place
        name = self._names.setdefault(place.names, _Source())
        name.users.add(key)
        name.task = name.task or asyncio.create_task(self._look_up(place.names, name))
        if place.service is not None:
            service = self._services.setdefault(place.service, _Source())
            service.users.add(key)
            service.task = service.task or asyncio.create_task(self._follow(place.service, service))
        self._tell((key,))  # the answers may be known already, from other PooledDatabases

    async def _look_up(self, names: Names, source: _Source) -> None:
        while True:
            asked = asyncio.wrap_future(self._lookups.ask(names, self._resolve))
            _, late = await asyncio.wait({asked}, timeout=ANSWER_SECONDS)
            if late:  # the answer may take half a minute: PooledDatabases don't wait for it
                self._take(source, frozenset())
            self._take(source, frozenset(await asked))
            await asyncio.sleep(max(LOOKUP_SECONDS, len(self._names) / LOOKUPS_PER_SECOND))

    async def _follow(self, service: ServiceName, source: _Source) -> None:
        """Watch the endpoints of one Service until cancelled."""
        if not self._settings.watches(service.namespace):
            self._take(source, frozenset())
            return
        while True:
            pause = PAUSE_SECONDS
            try:
                await self._watch(service, source)
            except Expired:
                pass
            except Refused as error:
                log.warning("endpoints of Service %s/%s: %s", *service, error.message)
                pause = REFUSED_SECONDS
            except ClusterError as error:
                log.info("endpoints of Service %s/%s: %s", *service, error.message)
                pause = RETRY_SECONDS
            except Exception:
                log.exception("endpoints of Service %s/%s", *service)
                pause = RETRY_SECONDS
            if not source.answered:
                self._take(source, frozenset())
            await asyncio.sleep(pause)

    async def _watch(self, service: ServiceName, source: _Source) -> None:
        """List a Service's EndpointSlices, then follow their changes while the API server sends them."""
        selector = f"{_SERVICE_LABEL}={service.name}"
        slices: dict[str, frozenset[str]] = {}
        version = ""
        async for items, listed in self._cluster.pages(_SLICE, service.namespace, selector):
            slices |= {item["metadata"]["name"]: ready(item) for item in items}
            version = str(listed)
        ticking = asyncio.create_task(self._tick(source, slices))
        try:
            while True:
                self._take(source, frozenset().union(*slices.values()))
                async for event, item in self._cluster.watch(_SLICE, service.namespace, selector, version):
                    version = item["metadata"]["resourceVersion"]
                    if event == "BOOKMARK":
                        continue
                    slices.pop(item["metadata"]["name"], None)
                    if event != "DELETED":
                        slices[item["metadata"]["name"]] = ready(item)
                    self._take(source, frozenset().union(*slices.values()))
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            ticking.cancel()

    async def _tick(self, source: _Source, slices: dict[str, frozenset[str]]) -> None:
        """Take the endpoints again: flapping ones are held for a while, and no event says when that ends."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._take(source, frozenset().union(*slices.values()))

    def _take(self, source: _Source, answer: frozenset[str]) -> None:
        before, answered = source.seen.addresses, source.answered
        source.seen = source.seen.take(answer, asyncio.get_running_loop().time())
        source.answered = True
        if source.seen.addresses != before or not answered:
            self._tell(source.users)

    def _tell(self, keys: Iterable[Key]) -> None:
        """Store what both sources found, once both have answered: that makes one status instead of two."""
        for key in tuple(keys):
            place = self._places[key]
            name = self._names[place.names]
            service = self._services[place.service] if place.service is not None else _NO_SERVICE
            if name.answered and service.answered:
                found = Whereabouts(place.host, name.seen.addresses, service.seen.addresses)
                self._queue.add(self._store.upstreams.locate(key, found))


def ready(endpoints: dict[str, Any]) -> frozenset[str]:
    """The addresses of an EndpointSlice that receive new connections."""
    if endpoints.get("addressType") == "FQDN":
        return frozenset()
    return frozenset(
        address
        for endpoint in endpoints.get("endpoints") or ()
        if (endpoint.get("conditions") or {}).get("ready") is not False
        for address in endpoint["addresses"]
    )


_NO_SERVICE = _Source(answered=True)


def _leave(sources: dict[NameT, _Source], name: NameT, key: Key) -> None:
    source = sources[name]
    source.users.discard(key)
    if not source.users:
        del sources[name]
        if source.task is not None:
            source.task.cancel()
