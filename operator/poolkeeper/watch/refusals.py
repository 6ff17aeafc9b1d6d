"""Retries the parts of the cluster that are refused (store/scope.py), each alone, and reports them.

A namespace of `watchNamespaces` may be deleted, or its Role taken away: all others go on being served. What was
known of it is kept, since a list that is refused proves nothing gone.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from datetime import UTC, datetime

from poolkeeper import names
from poolkeeper.kube import events
from poolkeeper.kube.client import Cluster, ClusterError, Conflict, Refused
from poolkeeper.kube.events import Event
from poolkeeper.observed.refs import Key, Ref
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store.scope import Place
from poolkeeper.store.store import Store
from poolkeeper.watch import watches

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
REMIND_SECONDS = 3000.0
"""How often an Event is posted while a refusal lasts: the API server keeps each for an hour."""
KINDS = (names.KIND, *watches.SELECTORS)
"""The kinds that are listed in each namespace, or in all at once."""


async def attend(cluster: Cluster, store: Store, queue: Queue[Key], settings: Settings) -> None:
    """Retry and report until cancelled."""
    reported: dict[Place, float] = {}
    while True:
        for place in store.scope.refused():
            await _retry(place, cluster, store, queue, settings)
        unserved = store.scope.unserved()
        for place in reported.keys() - unserved.keys():
            del reported[place]
            queue.add(store.keys())
            await _report(served(place), cluster, settings)
        for place, message in unserved.items():
            if place not in reported:
                queue.add(filter(lambda key: key.namespace == place, store.keys()))
            elif time.monotonic() - reported[place] < REMIND_SECONDS:
                continue
            reported[place] = time.monotonic()
            await _report(not_served(place, message), cluster, settings)
        await asyncio.sleep(RETRY_SECONDS)


async def _retry(place: Place, cluster: Cluster, store: Store, queue: Queue[Key], settings: Settings) -> None:
    """List every kind in one place; only if all are shown is it served again."""
    kinds = KINDS if place is not None or not settings.watch_namespaces else ()
    if place is None and settings.reads_namespaces:
        kinds = (*kinds, "Namespace")
    try:
        for kind in kinds:
            # A watch that shows the same later finds it known, and queues nothing.
            queue.add(await store.replace(kind, watches.pages(cluster, kind, place), place))
    except Refused:
        return
    except ClusterError as error:
        log.info("%s: %s", "the cluster" if place is None else f"namespace {place}", error.message)
        return
    store.scope.restore(place)


def not_served(place: Place, message: str) -> Event:
    """What to report while a place is refused; `message` is the API server's."""
    if place is None:
        said = "changes in the cluster are missed"
        remedy = "upgrade the release, which creates its ClusterRoles and ClusterRoleBindings again"
    else:
        said = f"namespace {place} is not served, all others are"
        remedy = (
            "if the namespace was deleted, remove it from the chart's watchNamespaces; if it exists, upgrade"
            " the release, which creates the Role and the RoleBinding in it again; if it is stuck in"
            " Terminating, remove the finalizers of its PooledDatabases"
        )
    return _event("NotServed", "Warning", place, f"{said}: {message}; {remedy}")


def served(place: Place) -> Event:
    """What to report once a place is listed again."""
    said = "changes in the cluster are seen again" if place is None else f"namespace {place} is served again"
    return _event("ServedAgain", "Normal", place, said)


def _event(reason: str, kind: str, place: Place, message: str) -> Event:
    # The time is part of the name: a namespace may be lost more than once, and each loss is reported.
    name = hashlib.sha256(f"{reason}/{place}/{time.time_ns()}".encode()).hexdigest()[:16]
    return Event(name, kind, reason, message)


async def _report(event: Event, cluster: Cluster, settings: Settings) -> None:
    """Log it, and post it about the operator's Lease: no object in a refused namespace can carry it."""
    log.log(logging.WARNING if event.type == "Warning" else logging.INFO, "%s", event.message)
    ref = Ref("Lease", settings.namespace, settings.lease)
    try:
        lease = await cluster.get(ref)
        if lease is not None:
            about = {"apiVersion": lease["apiVersion"], "kind": ref.kind, "namespace": ref.namespace}
            about |= {"name": ref.name, "uid": lease["metadata"]["uid"]}
            await cluster.post(events.body(event, about, datetime.now(UTC)))
    except Conflict:
        return
    except ClusterError as error:
        log.warning("the Event about %s is not posted: %s", ref, error.message)
