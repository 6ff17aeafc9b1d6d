"""One task for each pooler pod whose server connections have to move or be renewed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, Protocol, TypeVar

from poolkeeper.observed.refs import Key
from poolkeeper.pgbouncer.console import ConsoleError
from poolkeeper.queue import Queue
from poolkeeper.workers.boundary import unexpected

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0


class AtPooler(Protocol):
    """Work to do at one pooler; equal items are the same work."""

    @property
    def uid(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def serves(self) -> bool: ...


ItemT = TypeVar("ItemT", bound=AtPooler)


class PoolerTasks(Generic[ItemT]):
    """The tasks under way. `work` gets the PooledDatabase, the item, and whether a task for an earlier item was
    just interrupted; it stores what it did."""

    def __init__(self, queue: Queue[Key], work: Callable[[Key, ItemT, bool], Awaitable[None]]) -> None:
        self._queue = queue
        self._work = work
        self._tasks: dict[Key, dict[str, tuple[ItemT, asyncio.Task[None]]]] = {}

    def order(self, key: Key, wanted: Iterable[ItemT]) -> None:
        """Run exactly this work at the poolers of a PooledDatabase.

        A task that is under way continues, unless another item has replaced its own."""
        known = self._tasks.pop(key, {})
        tasks: dict[str, tuple[ItemT, asyncio.Task[None]]] = {}
        for item in wanted:
            before, task = known.pop(item.uid, (None, None))
            if task is not None and before == item and not task.done():
                tasks[item.uid] = (item, task)
                continue
            interrupted = task is not None and task.cancel()
            tasks[item.uid] = (item, asyncio.create_task(self._run(key, item, interrupted)))
        for _, task in known.values():
            task.cancel()
        if tasks:
            self._tasks[key] = tasks

    async def _run(self, key: Key, item: ItemT, interrupted: bool) -> None:
        try:
            await self._work(key, item, interrupted)
        except (ConsoleError, KeyError, ValueError) as error:
            log.warning("%s/%s: pooler %s: %s", key.namespace, key.name, item.name, error)
            # A pooler that doesn't serve is expected to fail, and nothing waits for it.
            if item.serves:
                self._queue.add_later(key, RETRY_SECONDS)
        except Exception as error:
            said = unexpected(f"the work at pooler {item.name}", error)
            log.warning("%s/%s: %s", key.namespace, key.name, said)
            if item.serves:
                self._queue.add_later(key, RETRY_SECONDS)
        else:
            self._queue.add((key,))
