"""Emptying a pooler pod that has to go, so that nobody who reaches it through a keeper notices.

The pod leaves the Service's endpoints. Its own console then tells which keepers still hold connections to it;
each of them retires its connections, and the new ones lead to other pods. Since the dying pod is asked again
and again, nothing has to be remembered: a drain that is cut short by the operator's end begins anew. Clients
without a keeper are closed shortly before the pod's grace ends, one after the other, when they are idle.

Nothing depends on it. Keepers' server_lifetime and the pod's grace do the same without an operator, slower.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from poolkeeper.desired.deployment import LEAVE_ENDPOINTS_SECONDS
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.pgbouncer import console, retirement
from poolkeeper.pgbouncer.clients import KeeperConsole, holders, present, suspects, to_close
from poolkeeper.pgbouncer.console import Console, ConsoleError
from poolkeeper.upstream import faults

CONCURRENCY = 64
"""Keepers' consoles that are open at one time."""
ENDPOINTS_SECONDS = 1.0
"""How long it takes at most, usually, until no new connection is led to a terminating pod."""
CLOSING_SECONDS = 5.0
"""So long before the pod's grace ends, clients without a keeper begin to be closed."""
LAST_SECONDS = 0.5
"""So long before it ends, the process is told to end: it then closes its connections itself."""
RETRY_SECONDS = 3.0
CONSOLE_SECONDS = 3.0
POLL_SECONDS = 0.1
_SLOWEST_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Departure:
    """A terminating pooler pod. `begun`, its deletion, and `end`, of its grace, are times of the event loop."""

    access: ConsoleAccess
    begun: float
    end: float


@dataclass(frozen=True)
class Drained:
    """How it went. `unreached`: keepers that could not be told to leave, and why; they leave later."""

    empty: bool
    unreached: Mapping[KeeperConsole, str]


@dataclass
class _Attempts:
    """What a drain knows of the keepers that it has met."""

    running: dict[KeeperConsole, asyncio.Task[None]] = field(default_factory=dict)
    problems: dict[KeeperConsole, str] = field(default_factory=dict)
    next: dict[KeeperConsole, float] = field(default_factory=dict)
    """When each may be told to retire again."""
    pauses: dict[KeeperConsole, float] = field(default_factory=dict)

    def ended(self, keeper: KeeperConsole) -> None:
        del self.running[keeper]


class Keepers:
    """The way to keepers' consoles, for whoever changes something there: one at a time, and not too many."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._locks: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def alone(self, access: ConsoleAccess) -> AsyncIterator[None]:
        """Nobody else changes this keeper meanwhile: a RELOAD, say, would undo what a drain has set."""
        lock = self._locks.setdefault((access.ip, access.port), asyncio.Lock())
        async with lock, self._slots:
            yield

    async def retire(self, access: ConsoleAccess) -> str | None:
        """Have a keeper leave the connections that it has now, each after its transaction, and make new ones.

        None, or in words what went wrong. What is in a transaction for longer stays, and goes when the keeper's
        server_lifetime is over.
        """
        async with self.alone(access):
            try:
                await retirement.retire(access)
            except ConsoleError as error:
                return error.message
            except KeyError as error:  # of something that poses as a keeper
                return f"its console's tables lack {error}"
            return None

    async def drain(self, departure: Departure, keepers: Callable[[], Iterable[KeeperConsole]]) -> Drained:
        """Empty the pod. Ends when it is empty, or when its grace is over; raises nothing.

        `keepers` answers with all of the PooledDatabase, as they are then; with none, for as long as there is
        no other pod to take them in.
        """
        loop = asyncio.get_running_loop()
        attempts = _Attempts()
        empty = False
        try:
            while loop.time() < departure.end:
                try:
                    # Held to the end: a process that is shutting down lets nobody in any more.
                    async with console.connect(departure.access, CONSOLE_SECONDS) as pod:
                        await _sleep_until(departure.begun + ENDPOINTS_SECONDS)
                        empty = await self._empty(pod, departure, keepers, attempts)
                    break
                except ConsoleError as error:
                    # It can't say who is there. Whoever was asked to retire before is left alone.
                    known = tuple(keepers())
                    self._start((item for item in known if item not in attempts.next), attempts)
                    if known and error.reason == faults.CONNECTION_REFUSED:
                        break  # it has ended or is shutting down: it takes nobody in any more
                await _sleep_until(min(loop.time() + RETRY_SECONDS, departure.end))
            await asyncio.gather(*attempts.running.values())
        finally:
            await _cancel(attempts.running.values())
        return Drained(empty, attempts.problems)

    async def _empty(
        self,
        pod: Console,
        departure: Departure,
        keepers: Callable[[], Iterable[KeeperConsole]],
        attempts: _Attempts,
    ) -> bool:
        """Whether the pod got empty before its grace ended. Raises ConsoleError when its console is lost."""
        loop = asyncio.get_running_loop()
        end = departure.end - LAST_SECONDS
        closing = max(departure.begun + ENDPOINTS_SECONDS, departure.end - CLOSING_SECONDS)
        pause = POLL_SECONDS
        first = True
        while (now := loop.time()) < end:
            clients = present(await pod.show("CLIENTS"))
            # Somebody who did not hear that the pod left may still come, until the process begins to shut down.
            if not clients and now >= departure.begun + LEAVE_ENDPOINTS_SECONDS:
                return True
            known = tuple(keepers())
            met = holders(clients, known)
            chosen = {keeper for keeper, idle in met.items() if idle or keeper not in attempts.next}
            self._start(chosen | suspects(clients, known) if first else chosen, attempts)
            if now >= closing:
                await _close(pod, to_close(clients, POLL_SECONDS, end - now))
            busy = now >= closing or any(not task.done() for task in attempts.running.values())
            pause = POLL_SECONDS if busy else min(pause * 1.5, _SLOWEST_POLL_SECONDS)
            first = first and not known
            await _sleep_until(min(loop.time() + pause, end))
        with contextlib.suppress(ConsoleError):  # the answer is the end of the connection
            await pod.execute("SHUTDOWN")
        return False

    def _start(self, keepers: Iterable[KeeperConsole], attempts: _Attempts) -> None:
        """Have these keepers retire what they hold, but for those that are at it or failed just now."""
        now = asyncio.get_running_loop().time()
        for keeper in keepers:
            if keeper in attempts.running or now < attempts.next.get(keeper, now):
                continue
            task = asyncio.create_task(self._attempt(keeper, attempts))
            attempts.running[keeper] = task
            task.add_done_callback(lambda _, keeper=keeper: attempts.ended(keeper))  # type: ignore[misc]

    async def _attempt(self, keeper: KeeperConsole, attempts: _Attempts) -> None:
        problem = await self.retire(keeper.access)
        attempts.problems.pop(keeper, None)
        if problem is not None:
            attempts.problems[keeper] = problem
        # In a large cluster new connections may lead to the pod for a while: not to retire all the time.
        pause = min(attempts.pauses.get(keeper, POLL_SECONDS) * 2, RETRY_SECONDS)
        attempts.pauses[keeper] = pause
        attempts.next[keeper] = asyncio.get_running_loop().time() + (
            pause if problem is None else RETRY_SECONDS
        )


async def _close(pod: Console, clients: Iterable[str]) -> None:
    """Close clients' connections, one after the other."""
    for client in clients:
        try:
            await pod.execute(f"KILL_CLIENT {client}")
        except ConsoleError as error:
            if error.reason != console.COMMAND_FAILED:  # else it has left already
                raise


async def _sleep_until(time: float) -> None:
    await asyncio.sleep(time - asyncio.get_running_loop().time())


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    running = tuple(tasks)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
