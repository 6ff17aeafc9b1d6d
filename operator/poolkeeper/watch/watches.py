"""The watches of objects with our labels: children, pooler pods, source Secrets; app pods with keepers.

kopf watches what users write (handlers.py). For each of these objects, a dozen for every PooledDatabase, it
would start a task and keep a record: a quarter of the operator's processor time and half of its memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

from poolkeeper import names
from poolkeeper.kube.client import CHILD_KINDS, Broken, Cluster, ClusterError, Expired, Refused
from poolkeeper.observed.refs import Key
from poolkeeper.queue import Queue
from poolkeeper.store.store import Store

log = logging.getLogger(__name__)

SELECTORS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(CHILD_KINDS, (names.ROLE_LABEL,)),
    "Pod": (names.ROLE_LABEL, names.DATABASE_LABEL),
}
"""Every watched kind, and the labels whose presence selects its objects."""
PAUSE_SECONDS = 0.1
"""How long to pause between two watches, so that a server that ends them at once is not kept busy."""
RETRY_SECONDS = 1.0
REFUSED_SECONDS = 5.0


async def watch(cluster: Cluster, store: Store, queue: Queue[Key]) -> None:
    """Store changes from now on, until cancelled. The resync lists what was before."""
    async with asyncio.TaskGroup() as group:
        for kind, selectors in SELECTORS.items():
            for selector in selectors:
                for namespace in store.scope.places:
                    group.create_task(_follow(kind, selector, namespace, cluster, store, queue))


async def pages(
    cluster: Cluster, kind: str, namespace: str | None
) -> AsyncIterator[tuple[list[dict[str, Any]], int]]:
    """Every object that the watches of a kind show: store.replace() forgets all other ones."""
    for selector in SELECTORS.get(kind, ("",)):
        async for page in cluster.pages(kind, namespace, selector):
            yield page


async def _follow(
    kind: str, selector: str, namespace: str | None, cluster: Cluster, store: Store, queue: Queue[Key]
) -> None:
    what = " ".join((kind, f"with {selector}", *(["in", namespace] if namespace is not None else [])))
    granted = partial(store.scope.regain_watch, namespace, kind)
    version = ""
    expired = False
    while True:
        pause = PAUSE_SECONDS
        listing = True
        try:
            version = version or await cluster.version(kind, namespace)
            if expired:  # events are lost: the whole list has what they would have reported
                queue.add(await store.replace(kind, pages(cluster, kind, namespace), namespace))
                expired = False
            listing = False
            async for event, obj in cluster.watch(kind, namespace, selector, version, granted):
                version = obj["metadata"]["resourceVersion"]
                if event != "BOOKMARK":
                    queue.add(store.observe(obj, deleted=event == "DELETED"))
        except Expired:
            version, expired = "", True
        except Refused as error:
            # Both are retried and reported for all kinds together (refusals.py).
            if listing:
                store.scope.refuse(namespace, error.message)
            elif store.scope.lose_watch(namespace, kind, error.message):
                log.warning("watch of %s: %s; trying again every %g s", what, error.message, REFUSED_SECONDS)
            # Meanwhile events are lost, as with a version that is too old.
            version, expired = "", True
            pause = REFUSED_SECONDS
        except Broken as error:
            # From the same version it might break again and again.
            log.warning("watch of %s: %s; listing again in %g s", what, error.message, RETRY_SECONDS)
            version, expired = "", True
            pause = RETRY_SECONDS
        except ClusterError as error:
            log.warning("watch of %s: %s; trying again in %g s", what, error.message, RETRY_SECONDS)
            pause = RETRY_SECONDS
        await asyncio.sleep(pause)
