"""Drains a pooler pod that has to go, so that no client behind a keeper notices.

The pod leaves the Service's endpoints. The pod's console then shows which keepers still hold connections to it.
Each of these retires its connections, and its new ones lead to other pods. Since the terminating pod is polled
repeatedly, nothing has to be remembered: if the operator's end cuts a drain short, the next operator begins it
again. Clients without a keeper are closed shortly before the pod's grace ends, one at a time, when they are
idle.

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
from poolkeeper.workers.slots import Slots

CONCURRENCY = 64
"""Keepers' consoles that are open at one time."""
ENDPOINTS_SECONDS = 1.0
"""Maximum time, usually, until no new connection reaches a terminating pod."""
CLOSING_SECONDS = 5.0
"""How long before the end of the pod's grace the operator begins to close clients without a keeper."""
LAST_SECONDS = 0.5
"""How long before the end of the grace the process gets a SHUTDOWN: it then closes its connections itself."""
RETRY_SECONDS = 3.0
CONSOLE_SECONDS = 3.0
POLL_SECONDS = 0.1
_SLOWEST_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Departure:
    """A terminating pooler pod. `begun` (its deletion) and `end` (of its grace) are times of the event loop."""

    access: ConsoleAccess
    begun: float
    end: float


@dataclass(frozen=True)
class Drained:
    """A drain's outcome. `unreached`: keepers that could not be asked to leave, and why; they leave later."""

    empty: bool
    unreached: Mapping[KeeperConsole, str]


@dataclass
class _Attempts:
    """What a drain knows of the keepers that it has found connected."""

    running: dict[KeeperConsole, asyncio.Task[None]] = field(default_factory=dict)
    problems: dict[KeeperConsole, str] = field(default_factory=dict)
    next: dict[KeeperConsole, float] = field(default_factory=dict)
    """When each keeper may be asked to retire again."""
    pauses: dict[KeeperConsole, float] = field(default_factory=dict)

    def ended(self, keeper: KeeperConsole) -> None:
        del self.running[keeper]


class Keepers:
    """Access to keepers' consoles for changes: one change per keeper at a time, and not too many in total."""

    def __init__(self) -> None:
        self._slots = Slots(CONCURRENCY)
        self._locks: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def alone(self, access: ConsoleAccess, namespace: str) -> AsyncIterator[None]:
        """Keep other tasks from changing this keeper: a RELOAD, say, would undo what a drain has set.

        `namespace` is that of its pod."""
        lock = self._locks.setdefault((access.ip, access.port), asyncio.Lock())
        async with lock, self._slots.one(namespace):
            yield

    async def retire(self, keeper: KeeperConsole) -> str | None:
        """Make a keeper close its present connections, each after its transaction, and open new ones.

        Returns None, or in words what went wrong. A connection whose transaction lasts longer stays until the
        keeper's server_lifetime is over.
        """
        async with self.alone(keeper.access, keeper.namespace):
            try:
                await retirement.retire(keeper.access)
            except ConsoleError as error:
                return error.message
            except KeyError as error:  # of something that poses as a keeper
                return f"its console's tables lack {error}"
            return None

    async def drain(self, departure: Departure, keepers: Callable[[], Iterable[KeeperConsole]]) -> Drained:
        """Drain the pod. Ends when the pod is empty or its grace is over, whatever a console answers.

        `keepers` returns all current keepers of the PooledDatabase; none for as long as no other pod can take
        them in.
        """
        loop = asyncio.get_running_loop()
        attempts = _Attempts()
        empty = False
        try:
            while loop.time() < departure.end:
                try:
                    # Held to the end: a process that is shutting down accepts no new connection.
                    async with console.connect(departure.access, CONSOLE_SECONDS) as pod:
                        await _sleep_until(departure.begun + ENDPOINTS_SECONDS)
                        empty = await self._empty(pod, departure, keepers, attempts)
                    break
                except ConsoleError as error:
                    # The pod can't show its clients. Keepers that were asked to retire before are left alone.
                    known = tuple(keepers())
                    self._start((item for item in known if item not in attempts.next), attempts)
                    if known and error.reason == faults.CONNECTION_REFUSED:
                        break  # it has ended or is shutting down: it accepts no client any more
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
        """Whether the pod became empty before its grace ended. Raises ConsoleError if its console is lost."""
        loop = asyncio.get_running_loop()
        end = departure.end - LAST_SECONDS
        closing = max(departure.begun + ENDPOINTS_SECONDS, departure.end - CLOSING_SECONDS)
        pause = POLL_SECONDS
        first = True
        while (now := loop.time()) < end:
            clients = present(await pod.show("CLIENTS"))
            # A client that did not learn that the pod left may still connect, until the process begins to shut
            # down.
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
        """Make these keepers retire their connections, except those that are doing so or have just failed."""
        now = asyncio.get_running_loop().time()
        for keeper in keepers:
            if keeper in attempts.running or now < attempts.next.get(keeper, now):
                continue
            task = asyncio.create_task(self._attempt(keeper, attempts))
            attempts.running[keeper] = task
            task.add_done_callback(lambda _, keeper=keeper: attempts.ended(keeper))  # type: ignore[misc]

    async def _attempt(self, keeper: KeeperConsole, attempts: _Attempts) -> None:
        problem = await self.retire(keeper)
        attempts.problems.pop(keeper, None)
        if problem is not None:
            attempts.problems[keeper] = problem
        # In a large cluster new connections may lead to the pod for a while: don't retire all the time.
        pause = min(attempts.pauses.get(keeper, POLL_SECONDS) * 2, RETRY_SECONDS)
        attempts.pauses[keeper] = pause
        attempts.next[keeper] = asyncio.get_running_loop().time() + (
            pause if problem is None else RETRY_SECONDS
        )


async def _close(pod: Console, clients: Iterable[str]) -> None:
    """Close clients' connections one at a time."""
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
