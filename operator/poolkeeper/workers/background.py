"""Background work of a PooledDatabase: pooler pods are drained, moved to where their upstream is, and
renew their server connections; keepers are reconfigured.

How long it takes is up to apps and networks, so a run must not wait for it. Each task queues its PooledDatabase
when it ends, and the next run reports the outcome.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from poolkeeper.kube.client import Annotate, ClusterError
from poolkeeper.observed.consoles import Shown
from poolkeeper.observed.poolers import Moved, Renewed
from poolkeeper.observed.refs import Key
from poolkeeper.pgbouncer import console, retirement
from poolkeeper.pgbouncer.clients import KeeperConsole
from poolkeeper.pgbouncer.console import Answer
from poolkeeper.plan.addresses import Reconnect, listed
from poolkeeper.plan.reloads import Leaving, Reload
from poolkeeper.plan.renewal import Renewal
from poolkeeper.queue import Queue
from poolkeeper.store.store import Store
from poolkeeper.workers import failover
from poolkeeper.workers.boundary import unexpected
from poolkeeper.workers.drain import Departure, Keepers
from poolkeeper.workers.pooler_tasks import PoolerTasks
from poolkeeper.workers.slots import Slots

log = logging.getLogger(__name__)

UPDATES = 32
"""Keepers that are reconfigured at one time."""
UPDATE_SECONDS = 4.0
PATIENCE_SECONDS = 1.5
"""How long a run waits for keepers to follow: reachable keepers take half a second."""


class Background:
    """The tasks under way: at most one per pooler pod that terminates or follows its upstream, and one per
    PooledDatabase for its keepers."""

    def __init__(self, store: Store, queue: Queue[Key], annotate: Annotate) -> None:
        self._store = store
        self._queue = queue
        self._annotate = annotate
        self._keepers = Keepers()
        self._drains: dict[Key, dict[str, asyncio.Task[None]]] = {}
        self._moving: dict[Key, tuple[KeeperConsole, ...]] = {}
        self._updates: dict[Key, asyncio.Task[None]] = {}
        self._reconnects = PoolerTasks(queue, self._reconnect)
        self._renewals = PoolerTasks(queue, self._renew)
        self._slots = Slots(UPDATES)

    def drain(self, key: Key, leaving: Iterable[Leaving], moving: tuple[KeeperConsole, ...]) -> None:
        """Drain these pods: all of the PooledDatabase that terminate now. Each is drained only once."""
        present = {pod.uid: pod for pod in leaving}
        known = self._drains.pop(key, {})
        drains = {uid: task for uid, task in known.items() if uid in present or not task.done()}
        for uid, pod in present.items():
            if uid not in drains:
                drains[uid] = asyncio.create_task(self._drain(key, pod))
        self._moving.pop(key, None)
        if drains:
            self._drains[key] = drains
            self._moving[key] = moving

    async def _drain(self, key: Key, pod: Leaving) -> None:
        now = asyncio.get_running_loop().time()
        departure = Departure(pod.access, now - pod.since, now + pod.left)
        log.info("%s/%s: drains pooler pod %s", key.namespace, key.name, pod.name)
        try:
            outcome = await self._keepers.drain(departure, lambda: self._moving.get(key, ()))
        except Exception as error:
            log.warning("%s/%s: pod %s: %s", key.namespace, key.name, pod.name, unexpected("its drain", error))
            return
        text = "is empty" if outcome.empty else "was not seen empty"
        log.info("%s/%s: pooler pod %s %s", key.namespace, key.name, pod.name, text)
        for keeper, problem in outcome.unreached.items():
            log.warning("%s/%s: keeper %s: %s", key.namespace, key.name, keeper.name, problem)
            self._store.processes.unshow(keeper.process)  # so it is checked again, and gets into the status
        self._queue.add((key,))

    def reconnect(self, key: Key, wanted: Iterable[Reconnect]) -> None:
        """Move these poolers to where the upstream is: all that may still be connected elsewhere."""
        self._reconnects.order(key, wanted)

    async def _reconnect(self, key: Key, item: Reconnect, interrupted: bool) -> None:
        if interrupted:  # just after a RECONNECT, maybe
            await asyncio.sleep(failover.FIRST_PAUSE_SECONDS)
        log.info("%s/%s: pooler %s leaves %s", key.namespace, key.name, item.name, listed(item.left))
        left = await failover.follow(item)
        seconds = self._store.upstreams.seconds_since_move(key)
        self._store.processes.moved[item.uid] = Moved(item.whereabouts, seconds, left)

    def renew(self, key: Key, wanted: Iterable[Renewal]) -> None:
        """Renew the server connections of these poolers."""
        self._renewals.order(key, wanted)

    async def _renew(self, key: Key, item: Renewal, _: bool) -> None:
        log.info("%s/%s: pooler %s renews its server connections", key.namespace, key.name, item.name)
        begun = asyncio.get_running_loop().time()
        left = await retirement.renew(item.access, item.entries)
        seconds = asyncio.get_running_loop().time() - begun
        self._store.processes.renewed[item.uid] = Renewed(item.cause, seconds, left)

    async def update(self, key: Key, reloads: Iterable[Reload]) -> bool:
        """Make these keepers show their configuration. False if it takes longer: its end starts another run."""
        task = self._updates.get(key)
        if task is None:
            task = self._updates[key] = asyncio.create_task(self._update(reloads))
            task.add_done_callback(lambda _: self._updates.pop(key))
        _, late = await asyncio.wait({task}, timeout=PATIENCE_SECONDS)
        if late:
            task.add_done_callback(lambda _: self._queue.add((key,)))
        return not late

    async def _update(self, reloads: Iterable[Reload]) -> None:
        await asyncio.gather(*(self._update_one(reload) for reload in reloads))

    async def _update_one(self, reload: Reload) -> None:
        config = reload.configuration
        try:
            where = (reload.namespace, reload.pod, reload.uid)
            # All pods are annotated first, so that every node delivers files while other keepers are updated.
            if reload.annotations and not await self._annotate(*where, reload.annotations):
                return
            space = reload.namespace
            async with self._slots.one(space), self._keepers.alone(reload.access, space):
                answer = await console.apply(reload.access, config, UPDATE_SECONDS)
        except ClusterError as error:
            answer = Answer(error.message)
        except KeyError as error:
            answer = Answer(f"its console's tables lack {error}; it is no keeper")
        except Exception as error:
            answer = Answer(unexpected("the update of its keeper", error))
        shown = Shown(config.generation, reload.restarts, answer.problem or "", answer.version)
        self._store.processes.show(reload.process, shown)
