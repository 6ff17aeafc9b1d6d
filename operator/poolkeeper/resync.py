"""The resync: list everything, take it in, and have every key worked on.

It comes before the first run, since kopf does not tell when its own listing is complete, and then every ten
minutes: it repairs what no event told (a watch that fell behind, an event that was lost).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from typing import Any

from poolkeeper import names, watches
from poolkeeper.cluster import RESOURCES, Cluster, ClusterError
from poolkeeper.reconcile import Reconciler
from poolkeeper.settings import Settings
from poolkeeper.store import Store

log = logging.getLogger(__name__)

PERIOD_SECONDS = 600.0
RETRY_SECONDS = 2.0


async def work(cluster: Cluster, store: Store, reconciler: Reconciler, settings: Settings) -> None:
    """What the leader does: resync, reconcile, resync ever again. Runs until cancelled."""
    await _resync(cluster, store, reconciler, settings)
    async with asyncio.TaskGroup() as group:
        group.create_task(reconciler.queue.run())
        group.create_task(_tell_settled(reconciler))
        group.create_task(_resync_periodically(cluster, store, reconciler, settings))


async def _tell_settled(reconciler: Reconciler) -> None:
    """Log when the work that the first resync asked for is done."""
    while not reconciler.queue.idle:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    log.info("every PooledDatabase is reconciled once")


async def _resync_periodically(
    cluster: Cluster, store: Store, reconciler: Reconciler, settings: Settings
) -> None:
    while True:
        await asyncio.sleep(PERIOD_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311
        store.verify_consoles()
        await _resync(cluster, store, reconciler, settings)


async def _resync(cluster: Cluster, store: Store, reconciler: Reconciler, settings: Settings) -> None:
    kinds = [names.KIND, *watches.SELECTORS, *(["Namespace"] if settings.reads_namespaces else [])]
    while True:
        try:
            for kind in kinds:
                await store.replace(kind, _pages(cluster, kind, settings))
        except ClusterError as error:
            log.warning("resync: %s; trying again in %g s", error.message, RETRY_SECONDS)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            log.info("resync: %d PooledDatabases", len(store.keys()))
            reconciler.queue.add(store.keys())
            return


async def _pages(
    cluster: Cluster, kind: str, settings: Settings
) -> AsyncIterator[tuple[list[dict[str, Any]], int]]:
    everywhere = not settings.watch_namespaces or not RESOURCES[kind].namespaced
    for namespace in [None] if everywhere else settings.watch_namespaces:
        async for page in watches.pages(cluster, kind, namespace):
            yield page
