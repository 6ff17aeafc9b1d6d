"""The keyed work queue: a key waits at most once, is worked on by one worker at a time, and is never lost.

Level-triggered: adding a key says that something about it changed, not what. A key added while its work runs
is worked on once more afterwards. Failed work is retried with growing delays. Keys belong to tenants, and work
that is slow holds up its own tenant's keys only.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

KeyT = TypeVar("KeyT", bound=Hashable)

FIRST_DELAY_SECONDS = 0.2
LAST_DELAY_SECONDS = 30.0


class RetryLater(Exception):
    """Work that should be retried, `after` seconds if given; not a defect, so no traceback is logged."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Queue(Generic[KeyT]):
    """A queue of keys. `work` gets a key and returns in how many seconds to requeue it; None: when something
    changes. Of the workers, `concurrency`, a quarter at most work for one `tenant`."""

    def __init__(
        self,
        work: Callable[[KeyT], Awaitable[float | None]],
        concurrency: int,
        tenant: Callable[[KeyT], Hashable] = lambda key: key,
    ) -> None:
        self._work = work
        self._concurrency = concurrency
        self._tenant = tenant
        self._busy: Counter[Hashable] = Counter()
        self._held: defaultdict[Hashable, deque[KeyT]] = defaultdict(deque)
        self._ready: asyncio.Queue[KeyT] = asyncio.Queue()
        self._waiting: set[KeyT] = set()
        self._running: set[KeyT] = set()
        self._again: set[KeyT] = set()
        self._timers: dict[KeyT, tuple[float, asyncio.TimerHandle]] = {}
        self._failures: dict[KeyT, int] = {}
        self._started: dict[KeyT, float] = {}

    def add(self, keys: Iterable[KeyT]) -> None:
        """Queue these keys, to be worked on as soon as possible."""
        for key in keys:
            if key in self._running:
                self._again.add(key)
            elif key not in self._waiting:
                self._cancel_timer(key)
                self._waiting.add(key)
                self._ready.put_nowait(key)

    def caught_up(self, key: KeyT) -> None:
        """Note that the running work has just read all that is known: only a later add() needs another run."""
        self._again.discard(key)

    def add_later(self, key: KeyT, seconds: float) -> None:
        """Queue a key after this many seconds, unless something else queues it sooner."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        known = self._timers.get(key)
        if key in self._waiting or (known is not None and known[0] <= due):
            return
        self._cancel_timer(key)
        self._timers[key] = (due, loop.call_later(seconds, self.add, (key,)))

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs; keys with a delay do not count."""
        return not self._waiting and not self._running

    def slowest_seconds(self) -> float:
        """How long the longest running work has been running."""
        now = time.monotonic()
        return max((now - started for started in self._started.values()), default=0.0)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            key = await self._ready.get()
            tenant = self._tenant(key)
            if self._busy[tenant] >= max(1, self._concurrency // 4):
                self._held[tenant].append(key)
                continue
            self._busy[tenant] += 1
            self._waiting.discard(key)
            self._running.add(key)
            self._started[key] = time.monotonic()
            delay = await self._attempt(key)
            self._started.pop(key)
            self._running.discard(key)
            self._release(tenant)
            if key in self._again:
                self._again.discard(key)
                self.add((key,))
            elif delay is not None:
                self.add_later(key, delay)

    def _release(self, tenant: Hashable) -> None:
        self._busy[tenant] -= 1
        if held := self._held.get(tenant):
            self._ready.put_nowait(held.popleft())
        else:
            self._held.pop(tenant, None)
        if not self._busy[tenant]:
            del self._busy[tenant]

    async def _attempt(self, key: KeyT) -> float | None:
        """Run the work once; returns the delay that it asks for, or the backoff after a failure."""
        try:
            delay = await self._work(key)
        except RetryLater as error:
            log.info("%s: %s", key, error)
            backoff = self._backoff(key)
            return backoff if error.after is None else max(error.after, backoff)
        except Exception:
            log.exception("%s: reconciling failed", key)
            return self._backoff(key)
        self._failures.pop(key, None)
        return delay

    def _backoff(self, key: KeyT) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay: float = min(FIRST_DELAY_SECONDS * 2 ** min(failures - 1, 16), LAST_DELAY_SECONDS)
        return delay * random.uniform(0.8, 1.2)  # noqa: S311

    def _cancel_timer(self, key: KeyT) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer[1].cancel()
