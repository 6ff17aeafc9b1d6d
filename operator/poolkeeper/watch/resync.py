"""The resync: list everything, store it, and queue every key.

It precedes the first run, since kopf does not report when its own listing is complete. It then repeats every
ten minutes or so and repairs what no event reported (a watch that fell behind, an event that was lost).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from typing import Any

from poolkeeper.kube.client import RESOURCES, Cluster, ClusterError, Refused
from poolkeeper.observed.refs import Key
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store.store import Store
from poolkeeper.watch import refusals, watches

log = logging.getLogger(__name__)

PERIOD_SECONDS = 600.0
RETRY_SECONDS = 2.0


async def work(cluster: Cluster, store: Store, queue: Queue[Key], settings: Settings) -> None:
    """The leader's work: resync, reconcile, resync periodically. Runs until cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(refusals.attend(cluster, store, queue, settings))
        await _resync(cluster, store, queue, settings)
        group.create_task(queue.run())
        group.create_task(_tell_settled(queue))
        group.create_task(_resync_periodically(cluster, store, queue, settings))


async def _tell_settled(queue: Queue[Key]) -> None:
    """Log when the work that the first resync asked for is done."""
    while not queue.idle:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    log.info("every PooledDatabase is reconciled once")


async def _resync_periodically(cluster: Cluster, store: Store, queue: Queue[Key], settings: Settings) -> None:
    while True:
        await asyncio.sleep(PERIOD_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311
        store.processes.unshow_all()
        await _resync(cluster, store, queue, settings)


async def _resync(cluster: Cluster, store: Store, queue: Queue[Key], settings: Settings) -> None:
    kinds = [*refusals.KINDS, *(["Namespace"] if settings.reads_namespaces else [])]
    while True:
        refused: set[str] = set()
        try:
            for kind in kinds:
                await store.replace(kind, _pages(cluster, kind, store, refused), refused=refused)
        except ClusterError as error:
            log.warning("resync: %s; trying again in %g s", error.message, RETRY_SECONDS)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            log.info("resync: %d PooledDatabases", len(store.keys()))
            queue.add(store.keys())
            return


async def _pages(
    cluster: Cluster, kind: str, store: Store, refused: set[str]
) -> AsyncIterator[tuple[list[dict[str, Any]], int]]:
    """Every object of a kind. A namespace that is refused is added to `refused`, and stops no other one."""
    for place in store.scope.places if RESOURCES[kind].namespaced else (None,):
        try:
            async for page in watches.pages(cluster, kind, place):
                yield page
        except Refused as error:
            store.scope.refuse(place, error.message)
            if place is None:
                raise
            refused.add(place)
