"""Standing connections to the consoles of pooler pods: read what pods hold, and make them show their tables.

Logging in for every poll would cost a pooler more than the poll itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from types import TracebackType

from poolkeeper.budget import allotments
from poolkeeper.budget.assessment import Look
from poolkeeper.budget.division import Caps
from poolkeeper.budget.protocol import Allotment
from poolkeeper.names import CONSOLE_DATABASE
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.console import COMMAND_FAILED, Console, ConsoleError
from poolkeeper.pgbouncer.retirement import retiring
from poolkeeper.upstream import faults

CONSOLE_SECONDS = 1.0
"""Maximum time for the login and each command: other poolers should not wait for one that is out of reach."""
RETRY_SECONDS = 2.0
SLOWEST_RETRY_SECONDS = 15.0
MUTE_SECONDS = 4.0
"""How long the pause before the next try is once a console counts as no longer answering, not just busy."""
RETIRE_SECONDS = 0.3
"""How long to wait for connections above their cap; meanwhile every transaction takes a new one."""
RETIRE_PAUSE_SECONDS = 0.5
SLOWEST_RETIRE_SECONDS = 8.0
_POLL_SECONDS = 0.02
_RULES = "auth_hba_file"
_POOL_NUMBERS = (
    *("cl_waiting", "sv_active", "sv_active_cancel", "sv_being_canceled", "sv_idle", "sv_used", "sv_tested"),
    *("sv_login", "maxwait", "maxwait_us"),
)
_CONNECTION_TEXTS = ("id", "database", "state", "link", "request_time", "replication")
_DIGITS = 19
_LOGGING_IN, _NO_ENTRY = "cl_login", "(nodb)"


@dataclass(frozen=True)
class Pooler:
    """A pod whose console is polled. `rules` is the path of the login rules that admit to these `entries` only;
    empty if unknown."""

    uid: str
    access: ConsoleAccess
    allotment: Allotment | None
    rules: str = ""
    entries: frozenset[str] = frozenset()


@dataclass
class _Opened:
    access: ConsoleAccess
    stack: contextlib.AsyncExitStack
    console: Console
    logging_in: dict[str, frozenset[str]] = field(default_factory=dict)
    """By entry that takes no logins any more: the IDs of clients that were in the middle of one before."""


class PoolerConsoles:
    """The consoles by pod UID. To be closed in the end, as the context manager does."""

    def __init__(self) -> None:
        self._opened: dict[str, _Opened] = {}
        self._failed: dict[str, tuple[float, float]] = {}
        """When to retry, and the pause before that."""
        self._retired: dict[str, tuple[float, float]] = {}

    async def __aenter__(self) -> PoolerConsoles:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.keep(())

    async def keep(self, uids: Collection[str]) -> None:
        """Close all consoles but these."""
        for uid in self._opened.keys() - set(uids):
            await self._close(uid)
        for known in (self._failed, self._retired):
            for uid in known.keys() - set(uids):
                del known[uid]

    def mute(self, uid: str) -> bool:
        """Whether a console has not answered for some time, and isn't expected to."""
        return uid in self._failed and self._failed[uid][1] >= MUTE_SECONDS

    async def look(self, poolers: Iterable[Pooler]) -> dict[str, Look]:
        """What these poolers show, each after a RELOAD if it lags behind its table. Poolers that don't answer
        are left out."""
        asked = tuple(poolers)
        answers = await asyncio.gather(*map(self._look, asked))
        return {pooler.uid: look for pooler, look in zip(asked, answers, strict=True) if look is not None}

    async def _look(self, pooler: Pooler) -> Look | None:
        now = asyncio.get_running_loop().time()
        due, pause = self._failed.get(pooler.uid, (now, RETRY_SECONDS / 2))
        if now < due:
            return None
        try:
            look = await _ask(await self._open(pooler), pooler)
        except (ConsoleError, KeyError, ValueError):
            await self._close(pooler.uid)
            pause = min(pause * 2, SLOWEST_RETRY_SECONDS)
            self._failed[pooler.uid] = (now + pause, pause)
            return None
        self._failed.pop(pooler.uid, None)
        return look

    async def sockets(self, uid: str) -> list[dict[str, str]]:
        """SHOW SOCKETS of a pooler that answered the last poll. Raises ConsoleError."""
        return await self._known(uid).show("SOCKETS")

    async def close_client(self, uid: str, client: str) -> None:
        """Close a client's connection, and with it a server connection that waits for an answer to that client.
        Raises ConsoleError."""
        await self._known(uid).execute(f"KILL_CLIENT {client}")

    def _known(self, uid: str) -> Console:
        if uid not in self._opened:
            raise ConsoleError(faults.UNAVAILABLE, "the connection to its console was closed")
        return self._opened[uid].console

    async def retire(self, surplus: Mapping[str, tuple[Pooler, Collection[str]]]) -> None:
        """Make poolers close what these entries hold above their caps, after the transactions there.

        Nothing else closes it: PgBouncer closes no connection because a cap fell. server_lifetime 0 closes all
        idle connections of the process, so it is set only for a moment, and ever less often if transactions
        last.
        """
        await asyncio.gather(*(self._retire(pooler, entries) for pooler, entries in surplus.values()))
        for uid in self._retired.keys() - surplus.keys():
            del self._retired[uid]

    async def _retire(self, pooler: Pooler, entries: Collection[str]) -> None:
        now = asyncio.get_running_loop().time()
        due, pause = self._retired.get(pooler.uid, (now, RETIRE_PAUSE_SECONDS / 2))
        opened = self._opened.get(pooler.uid)
        if now < due or opened is None or pooler.allotment is None:
            return
        try:
            await _give_back(opened.console, pooler.allotment.caps, entries)
        except (ConsoleError, KeyError, ValueError):
            await self._close(pooler.uid)
        pause = min(pause * 2, SLOWEST_RETIRE_SECONDS)
        self._retired[pooler.uid] = (asyncio.get_running_loop().time() + pause, pause)

    async def _open(self, pooler: Pooler) -> _Opened:
        opened = self._opened.get(pooler.uid)
        if opened is not None and opened.access == pooler.access:
            return opened
        await self._close(pooler.uid)
        stack = contextlib.AsyncExitStack()
        made = await stack.enter_async_context(console.connect(pooler.access, CONSOLE_SECONDS))
        opened = self._opened[pooler.uid] = _Opened(pooler.access, stack, made)
        return opened

    async def _close(self, uid: str) -> None:
        opened = self._opened.pop(uid, None)
        if opened is not None:
            await opened.stack.aclose()


async def _ask(opened: _Opened, asked: Pooler) -> Look:
    """Poll one console. Its table is read after the table's revision, and so is no older than that."""
    pooler, allotment = opened.console, asked.allotment
    settings = await pooler.settings()
    if allotment is not None and allotments.revision(settings) != allotment.revision:
        try:
            await pooler.reload()
        except ConsoleError as error:
            if error.reason != COMMAND_FAILED:  # else the table's file has not arrived yet
                raise
        settings = await pooler.settings()
    allotted = None if allotment is None else allotment.caps
    databases = [row for row in await pooler.show("DATABASES") if row["name"] != CONSOLE_DATABASE]
    connections = await pooler.show("SERVERS")
    pids = {int(row["remote_pid"]) for row in connections if row["database"] != CONSOLE_DATABASE}
    reading = allotments.reading(settings, databases, allotted)
    refused = reading.caps.keys() - asked.entries if settings[_RULES] == asked.rules else frozenset()
    reading = replace(reading, closed=await _closed(opened, refused))
    clients = {row["name"]: int(row["current_client_connections"]) for row in databases}
    present = {entry: number for entry, number in clients.items() if number}
    active = tuple(row for row in connections if row["state"] == "active")
    paused = frozenset(row["name"] for row in databases if row["paused"] != "0" or row["disabled"] != "0")
    pools = tuple(await pooler.show("POOLS"))
    check(pools, connections)
    return Look(reading, frozenset(pids), pools, present, active, paused)


def check(pools: Iterable[Mapping[str, str]], connections: Iterable[Mapping[str, str]]) -> None:
    """Raise KeyError or ValueError unless SHOW POOLS and SHOW SERVERS have the columns that are read. A forged
    console fails alone then, and not the poll of all poolers on its server."""
    for rows, columns in ((pools, _POOL_NUMBERS), (connections, ("remote_pid",))):
        for row in rows:
            for column in columns:
                value = row[column]
                if not (value.isdecimal() and len(value) < _DIGITS):
                    raise ValueError(f"{column} is no number")
    for row in connections:
        for column in _CONNECTION_TEXTS:
            row[column]


async def _closed(opened: _Opened, refused: Set[str]) -> frozenset[str]:
    """Of the entries that just refused logins, those to which no client is in the middle of one. The console
    may not show yet which entry a client wants; later clients don't matter."""
    known = {entry: ids for entry, ids in opened.logging_in.items() if entry in refused}
    if known.keys() != refused or any(known.values()):
        rows = [row for row in await opened.console.show("SOCKETS") if row["state"] == _LOGGING_IN]
        for entry in refused:
            here = frozenset(row["id"] for row in rows if row["database"] in (entry, _NO_ENTRY))
            known[entry] = known.get(entry, here) & here
    opened.logging_in = known
    return frozenset(entry for entry, ids in known.items() if not ids)


async def _give_back(pooler: Console, caps: Caps, entries: Collection[str]) -> None:
    async with retiring(pooler):
        loop = asyncio.get_running_loop()
        end = loop.time() + RETIRE_SECONDS
        while loop.time() < end and await _above(pooler, caps, entries):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)


async def _above(pooler: Console, caps: Caps, entries: Collection[str]) -> bool:
    held = {row["name"]: int(row["current_connections"]) for row in await pooler.show("DATABASES")}
    return any(held.get(entry, 0) > caps.get(entry, 0) for entry in entries)
