"""Pauses and resumes entries at the poolers' consoles, in the background, for as long as a pause lasts.

Each transaction entry is paused by itself, for three reasons, all tried on PgBouncer 1.26.1. Sessions then
continue. SHOW DATABASES shows which entries are paused, so that every poll can correct differences. A process
that is shutting down refuses a RESUME of everything, but not that of an entry. Such a process accepts no new
connection, which is why the connection to its console is kept from the beginning.

A pause outlasts the console connection that asked for it and a RELOAD; it ends with the process.

The server may have been restarted in the pause with fewer connections, and all clients that wait ask for one at
once. So poolers resume only once the server was measured since the pause was taken back, and their caps fit it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from poolkeeper.names import CONSOLE_DATABASE
from poolkeeper.observed.consoles import PauseSeen
from poolkeeper.observed.refs import Key
from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.clients import present
from poolkeeper.pgbouncer.console import Console, ConsoleError, Row
from poolkeeper.plan.pause_orders import HeldPooler, Pausing
from poolkeeper.queue import Queue
from poolkeeper.store.store import Store
from poolkeeper.workers import upstream

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.4
CONSOLE_SECONDS = 3.0
PATIENCE_SECONDS = 0.2
"""How long to wait for one entry's transactions before the next entry's turn."""
WARM_SECONDS = 1.0
CONCURRENCY = 4
"""Entries of one pooler that are paused at one time. Each may open one connection to the database first."""
FIT_SECONDS = 5.0
"""How long a resume waits at most for caps that fit the server: it may not be measurable at all."""
CONCLUSIVE_LOOKS = 2
"""Polls in a row that have to find nothing paused: an abandoned command may still take effect."""


class Pauser:
    """The pauses under way: one task for each pooler pod, fed with the latest orders."""

    def __init__(self, store: Store, queue: Queue[Key], measure: Callable[[Key], None]) -> None:
        """`measure` has a PooledDatabase's server measured soon."""
        self._store = store
        self._queue = queue
        self._measure = measure
        self._orders: dict[Key, Pausing] = {}
        self._tasks: dict[Key, dict[str, asyncio.Task[None]]] = {}
        self._changed: dict[Key, asyncio.Event] = {}
        self._taken_back: dict[Key, float] = {}
        """When the order to resume came."""

    def order(self, key: Key, pausing: Pausing | None) -> None:
        """Keep the poolers paused or resumed from now on; None: the pause is over, as the consoles showed."""
        known = self._orders.pop(key, None)
        tasks = self._tasks.setdefault(key, {})
        poolers = set() if pausing is None else {pooler.uid for pooler in pausing.poolers}
        for uid in tasks.keys() - poolers:
            tasks.pop(uid).cancel()
            self._store.processes.paused.pop(uid, None)
        if pausing is None:
            del self._tasks[key]
            self._changed.pop(key, None)
            self._taken_back.pop(key, None)
            return
        begun = known is not None and known.begin
        self._orders[key] = replace(pausing, begin=pausing.begin or begun)
        if pausing.hold:
            self._taken_back.pop(key, None)
        elif key not in self._taken_back:
            self._taken_back[key] = asyncio.get_running_loop().time()
            self._measure(key)
        if known != self._orders[key]:
            if key in self._changed:
                self._changed[key].set()
            self._changed[key] = asyncio.Event()
        for uid in poolers:
            if uid not in tasks or tasks[uid].done():
                tasks[uid] = asyncio.create_task(self._attend(key, uid))

    async def _attend(self, key: Key, uid: str) -> None:
        """Pause and resume one pooler until cancelled."""
        while True:
            problem = ""
            try:
                async with console.connect(self._pooler(key, uid).access, CONSOLE_SECONDS) as opened:
                    await self._keep_looking(key, uid, opened)
            except ConsoleError as error:
                problem = error.message
            except KeyError as error:
                problem = f"its console's tables lack {error}; it is no pooler"
            except Exception:
                log.exception("%s/%s: pause at pooler pod %s", key.namespace, key.name, uid)
                problem = "the operator failed here; its log says why"
            if problem:
                self._note(key, uid, PauseSeen(problem=problem))
            await asyncio.sleep(LOOK_SECONDS)

    async def _keep_looking(self, key: Key, uid: str, opened: Console) -> None:
        """Poll and correct until the pooler is to end and no client is connected to it any more."""
        free = 0
        while True:
            changed, hold = self._changed[key], self._holds(key, uid)
            before = _transactions(await opened.show("DATABASES"))
            if hold and self._orders[key].begin:
                await self._pause(key, uid, opened, [name for name, row in before.items() if _free(row)])
            elif not hold:
                paused = [name for name, row in before.items() if not _free(row)]
                free = 0 if paused else free + 1
                if self._may_resume(key, uid):
                    await _resume(opened, paused)
            now = _transactions(await opened.show("DATABASES"))
            self._note(key, uid, _seen(now.items(), hold, free >= CONCLUSIVE_LOOKS))
            if self._pooler(key, uid).leaving and not present(await opened.show("CLIENTS")):
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), LOOK_SECONDS)

    async def _pause(self, key: Key, uid: str, opened: Console, names: list[str]) -> None:
        """Pause these entries, several at a time."""
        if not names:
            return
        pools = await opened.show("POOLS")
        known = {pool["database"] for pool in pools if pool["cl_active"] != "0"}
        left = iter(names)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(CONCURRENCY, len(names))):
                group.create_task(self._pause_some(key, uid, left, known))

    async def _pause_some(self, key: Key, uid: str, names: Iterator[str], known: set[str]) -> None:
        for first in names:
            name: str | None = first
            with contextlib.suppress(ConsoleError):  # the next poll finds what is not paused yet
                async with console.connect(self._pooler(key, uid).access, CONSOLE_SECONDS) as opened:
                    while name is not None and self._holds(key, uid):
                        if name not in known:
                            await self._warm(key, uid, name)
                        # The entry is paused at once. The answer arrives when its transactions have ended. If
                        # that takes too long, this connection is useless.
                        await opened.execute(f"PAUSE {_quoted(name)}", PATIENCE_SECONDS)
                        name = next(names, None)

    async def _warm(self, key: Key, uid: str, entry: str) -> None:
        """Log in once through an entry without clients. PgBouncer thereby learns the parameters that a server
        sends to its clients; without them a paused entry lets logins wait until the client gives up."""
        login = self._orders[key].logins.get(entry)
        access = self._pooler(key, uid).access
        if login is not None:
            await upstream.trial_login(access, login, entry, WARM_SECONDS)

    def _pooler(self, key: Key, uid: str) -> HeldPooler:
        return next(pooler for pooler in self._orders[key].poolers if pooler.uid == uid)

    def _holds(self, key: Key, uid: str) -> bool:
        return self._orders[key].hold and datetime.now(UTC) < self._pooler(key, uid).until

    def _may_resume(self, key: Key, uid: str) -> bool:
        since = self._taken_back.get(key)
        return (
            since is None
            or datetime.now(UTC) >= self._pooler(key, uid).until
            or self._store.budgets.fits_at(key) >= since
            or asyncio.get_running_loop().time() - since >= FIT_SECONDS
        )

    def _note(self, key: Key, uid: str, seen: PauseSeen) -> None:
        paused = self._store.processes.paused
        if paused.get(uid) != seen:
            paused[uid] = seen
            self._queue.add((key,))


async def _resume(opened: Console, names: Iterable[str]) -> None:
    for name in names:
        try:
            await opened.execute(f"RESUME {_quoted(name)}")
        except ConsoleError as error:
            if error.reason != console.COMMAND_FAILED:  # else it isn't paused, or is gone: the next poll shows
                raise


def _transactions(rows: Iterable[Row]) -> dict[str, Row]:
    """The rows of SHOW DATABASES by entry, without the console and session entries."""
    return {
        row["name"]: row for row in rows if row["name"] != CONSOLE_DATABASE and row["pool_mode"] != "session"
    }


def _free(row: Row) -> bool:
    return row["paused"] == "0"


def _seen(entries: Iterable[tuple[str, Row]], hold: bool, resumed: bool) -> PauseSeen:
    """The state of the pause. An entry is held back once it is paused and has no server connection left."""
    lacking = [name for name, row in entries if _free(row) or row["current_connections"] != "0"]
    return PauseSeen(
        held=hold and not lacking,
        waits_for=lacking[0] if hold and lacking else "",
        resumed=not hold and resumed,
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
