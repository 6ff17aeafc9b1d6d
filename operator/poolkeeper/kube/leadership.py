"""The leader's work in the caller's event loop, and its Lease in a thread of its own.

A step that blocks the event loop for some seconds doesn't cost the Lease. A process whose event loop is blocked
for longer than BLOCKED_SECONDS gives the Lease up, and ends: once it ran again it could write next to another
leader. For the same reason it ends if the Lease is lost and its work doesn't stop in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from poolkeeper.kube.client import Cluster, connect
from poolkeeper.kube.leader import Election, LostLease
from poolkeeper.settings import Settings

log = logging.getLogger(__name__)

BLOCKED_SECONDS = 60.0
"""How long the event loop may be blocked until the Lease is given up."""
LATE_SECONDS = 3.0
"""How long the event loop of a process may be blocked that takes the Lease."""
STOP_SECONDS = 7.5
"""How long after its last renewal a leader has stopped working, or ends: before the Lease runs out."""
_BEAT_SECONDS = 0.5


class Leadership:
    """One candidate for one Lease."""

    def __init__(self, settings: Settings, connecting: Callable[[], Awaitable[Cluster]] = connect) -> None:
        """`connecting` opens the connection of the Lease's thread, in that thread."""
        self._settings = settings
        self._connecting = connecting
        self._beat = time.monotonic()
        self._lease: _Lease | None = None
        self.term = 0
        """How often the Lease had been taken when this process took it: more than for every earlier process."""

    @property
    def renewed(self) -> float:
        """When the last renewal that succeeded was sent, on the monotonic clock: no other replica led then."""
        return 0.0 if self._lease is None else self._lease.renewed

    async def lead(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait for the Lease, run `work` while holding it, release it at the end. Raises LostLease."""
        self._beat = time.monotonic()
        lease = _Lease(self._settings, self._connecting, lambda: time.monotonic() - self._beat)
        self._lease = lease
        taken = asyncio.wrap_future(lease.taken)
        over: asyncio.Future[Any] = asyncio.wrap_future(lease.over)
        tasks = [asyncio.create_task(self._keep_beating())]
        lease.start()
        try:
            await asyncio.wait((over, taken), return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                await over
            self.term = await taken
            log.info("%s leads", self._settings.identity)
            working = asyncio.create_task(work())
            tasks.append(working)
            await asyncio.wait({working, over}, return_when=asyncio.FIRST_COMPLETED)
            for item in (over, working):
                if item.done():
                    await item
        finally:
            for task in reversed(tasks):  # the work first: while it stops, the Lease is still renewed
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            lease.stop()
            await asyncio.gather(over, return_exceptions=True)

    async def _keep_beating(self) -> None:
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)


class _Lease(threading.Thread):
    """Takes the Lease, renews it until it is stopped, and releases it then."""

    def __init__(
        self,
        settings: Settings,
        connecting: Callable[[], Awaitable[Cluster]],
        blocked: Callable[[], float],
    ) -> None:
        """`blocked` answers for how many seconds the event loop of the work hasn't run."""
        super().__init__(name="lease", daemon=True)
        self.taken: Future[int] = Future()
        """The term, once the Lease is taken."""
        self.over: Future[None] = Future()
        """Done once the Lease is released; failed if it is lost."""
        for future in (self.taken, self.over):
            future.set_running_or_notify_cancel()  # the waiting task may be cancelled, and these may not
        self._settings = settings
        self._connecting = connecting
        self._blocked = blocked
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self.renewed = 0.0

    def stop(self) -> None:
        """Have the Lease released, from another thread."""
        with contextlib.suppress(RuntimeError):  # the thread has ended
            self._loop.call_soon_threadsafe(self._stopped.set)

    def run(self) -> None:
        """The thread's main function."""
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._campaign())
        except BaseException as error:
            if not self.over.done():
                self.over.set_exception(error)
        else:
            if not self.over.done():
                self.over.set_result(None)

    async def _campaign(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            cluster = await self._connecting()
            stack.push_async_callback(cluster.close)
            election = Election(cluster, self._settings)
            holding = asyncio.create_task(self._hold(election))
            stopped = asyncio.create_task(self._stopped.wait())
            await asyncio.wait({holding, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if holding.done():
                error = holding.exception()
                assert error is not None
                self.over.set_exception(error)
                await self._see_work_stop(election, error)
            else:
                holding.cancel()
                await asyncio.gather(holding, return_exceptions=True)
                await election.release()

    async def _hold(self, election: Election) -> None:
        """Take the Lease and renew it. Raises LostLease."""
        await election.take(lambda: self._blocked() < LATE_SECONDS)
        self.taken.set_result(election.term)
        async for _ in election.renewals():
            self.renewed = election.renewed
            if self._blocked() >= BLOCKED_SECONDS:
                raise LostLease(
                    f"{election.ref} is given up: the operator's event loop has been blocked for"
                    f" {BLOCKED_SECONDS:g} s; report it with the stack in the operator's log"
                )

    async def _see_work_stop(self, election: Election, error: BaseException) -> None:
        """Wait until the work is stopped; end the process before the Lease runs out."""
        if not self.taken.done():
            return
        try:
            async with asyncio.timeout_at(election.renewed + STOP_SECONDS):
                await self._stopped.wait()
        except TimeoutError:
            log.critical("%s; the work does not stop, so the process ends, at:\n%s", error, _main_stack())
            _end()


def _main_stack() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)).rstrip() if frame is not None else "(no stack)"


def _end() -> None:
    """End the process at once: nothing that waits for the event loop would."""
    os._exit(1)
