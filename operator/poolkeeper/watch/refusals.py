"""Retries the parts of the cluster that are refused (store/scope.py), each alone, and reports them.

A namespace of `watchNamespaces` may be deleted, or its Role taken away: all others go on being served. What was
known of it is kept, since a list that is refused proves nothing gone. Where only watches are refused, lists
take their place.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Collection, Iterable
from datetime import UTC, datetime

from poolkeeper import names
from poolkeeper.kube import events
from poolkeeper.kube.client import Cluster, ClusterError, Conflict, Refused
from poolkeeper.kube.events import Event
from poolkeeper.observed.refs import Key, Ref
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store.scope import LostWatches, Place
from poolkeeper.store.store import Store
from poolkeeper.watch import watches

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
REMIND_SECONDS = 3000.0
"""How often an Event is posted while a refusal lasts: the API server keeps each for an hour."""
KINDS = (names.KIND, *watches.SELECTORS)
"""The kinds that are listed in each namespace, or in all at once."""


class _Reports:
    """What was reported of each place, and when."""

    def __init__(self) -> None:
        self._reported: dict[Place, tuple[object, float]] = {}

    def over(self, lasting: Collection[Place]) -> list[Place]:
        """Forget and return the places that were reported, and are no longer among those."""
        found = [place for place in self._reported if place not in lasting]
        for place in found:
            del self._reported[place]
        return found

    def is_due(self, place: Place, what: object) -> bool:
        """Whether to report this of a place: for the first time, or as a reminder. If so, it counts as done."""
        before, at = self._reported.get(place, (None, 0.0))
        if before == what and time.monotonic() - at < REMIND_SECONDS:
            return False
        self._reported[place] = what, time.monotonic()
        return True

    def __contains__(self, place: Place) -> bool:
        return place in self._reported


async def attend(cluster: Cluster, store: Store, queue: Queue[Key], settings: Settings) -> None:
    """Retry and report until cancelled."""
    served_not, watched_not = _Reports(), _Reports()
    while True:
        for place in store.scope.refused():
            if await _list(place, _kinds(place, settings), cluster, store, queue):
                store.scope.restore(place)
        for place, kinds in store.scope.lost_watches().items():
            if place not in store.scope.refused():
                await _list(place, kinds, cluster, store, queue)
        unserved = store.scope.unserved()
        for place in served_not.over(unserved):
            queue.add(store.keys())
            await _report(served(place), cluster, settings)
        for place, message in unserved.items():
            if place not in served_not:
                queue.add(filter(lambda key: key.namespace == place, store.keys()))
            if served_not.is_due(place, "refused"):
                await _report(not_served(place, message), cluster, settings)
        unwatched = store.scope.unwatched()
        for place in watched_not.over(unwatched):
            if place not in store.scope.refused():
                await _report(watch_regained(place), cluster, settings)
        for place, lost in unwatched.items():
            if watched_not.is_due(place, lost.kinds):
                await _report(watch_lost(place, lost), cluster, settings)
        await asyncio.sleep(RETRY_SECONDS)


def _kinds(place: Place, settings: Settings) -> tuple[str, ...]:
    """Every kind that is listed in a place."""
    kinds = KINDS if place is not None or not settings.watch_namespaces else ()
    return (*kinds, "Namespace") if place is None and settings.reads_namespaces else kinds


async def _list(place: Place, kinds: Iterable[str], cluster: Cluster, store: Store, queue: Queue[Key]) -> bool:
    """Take in what no watch shows of some kinds in one place; whether all of them could be listed."""
    try:
        for kind in kinds:
            # A watch that shows the same later finds it known, and queues nothing.
            queue.add(await store.replace(kind, watches.pages(cluster, kind, place), place))
    except Refused as error:
        store.scope.refuse(place, error.message)
        return False
    except ClusterError as error:
        log.info("%s: %s", _named(place), error.message)
        return False
    return True


def _named(place: Place) -> str:
    return "the cluster" if place is None else f"namespace {place}"


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


def watch_lost(place: Place, lost: LostWatches) -> Event:
    """What to report while kinds can be listed in a place, and not watched."""
    where = _named(place)
    kind = "the ClusterRole" if place is None else "the Role in it"
    said = f"changes of {', '.join(lost.kinds)} in {where} are seen late, and at the price of repeated lists"
    remedy = f"upgrade the release, which gives {kind} the verb watch again"
    return _event("WatchLost", "Warning", place, f"{said}: {lost.message}; {remedy}")


def watch_regained(place: Place) -> Event:
    """What to report once every kind is watched again in a place."""
    return _event("WatchRegained", "Normal", place, f"every kind in {_named(place)} is watched again")


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
