"""Retires server connections: each ends after its transaction, and no client fails.

`server_lifetime = 0` does that. RECONNECT would too, but it also closes connections in the middle of a login,
and fails the clients that wait for those. While the setting is 0, every transaction opens its own connection,
so it is set only for a moment, repeatedly if transactions last.
https://www.pgbouncer.org/config.html#server_lifetime
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Set

from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.console import Console, Row

CONSOLE_SECONDS = 3.0
RETIRE_SECONDS = 0.5
"""How long a process retires connections at a time. PgBouncer closes idle ones every third of a second."""
PAUSE_SECONDS = (0.5, 15.0)
"""How long, at least and at most, until connections that were in a transaction get another chance."""
PAUSE_SHARE = 0.25
"""In between, the pause is this share of the time that the renewal has lasted already."""
PATIENCE_SECONDS = 600.0
_FIRST_POLL_SECONDS, _POLL_SECONDS = 0.025, 0.1
_LIFETIME = "server_lifetime"


@contextlib.asynccontextmanager
async def retiring(opened: Console) -> AsyncIterator[None]:
    """While the block runs, the process closes each server connection as soon as it is idle.

    server_lifetime is reset at the end. Raises ConsoleError if that fails: then a RELOAD resets it.
    """
    before = (await opened.settings())[_LIFETIME]
    await opened.execute(f"SET {_LIFETIME} = 0")
    try:
        yield
    finally:
        if before == "0":  # left by an operator that was killed
            await opened.reload()
        else:
            await opened.execute(f"SET {_LIFETIME} = '{before}'")


async def renew(access: ConsoleAccess, entries: Set[str] | None) -> int:
    """Have a pooler renew all server connections of these entries, None: of all entries.

    Returns when each connection that the pooler had at the beginning has retired, after a transaction of any
    length. After PATIENCE_SECONDS returns how many are left: server_lifetime ends those. Does not wait for
    connections of sessions. Raises ConsoleError.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    old = await retire(access, entries)
    while old and (elapsed := loop.time() - begun) < PATIENCE_SECONDS:
        shortest, longest = PAUSE_SECONDS
        await asyncio.sleep(min(max(elapsed * PAUSE_SHARE, shortest), longest))
        old = await retire(access, entries, old)
    return len(old)


async def retire(
    access: ConsoleAccess, entries: Set[str] | None = None, among: Set[str] | None = None
) -> Set[str]:
    """Have a process retire its connections of these entries, for RETIRE_SECONDS at most.

    `among`: only these IDs. Returns the IDs of those that are still in a transaction. Raises ConsoleError.
    """
    touched = False
    try:
        async with console.connect(access, CONSOLE_SECONDS) as opened:
            old: Set[str] = _movable(await opened.show("SERVERS"), await opened.show("DATABASES"), entries)
            old = old if among is None else old & among
            touched = bool(old) or (await opened.settings())[_LIFETIME] == "0"
            if touched:
                async with retiring(opened):
                    old = await _staying(opened, old)
                touched = False
    finally:
        if touched:
            async with console.connect(access, CONSOLE_SECONDS) as opened:
                await opened.reload()
    return old


async def _staying(opened: Console, old: Set[str]) -> Set[str]:
    """Wait RETIRE_SECONDS at most until none of these connections is left; returns those that are."""
    loop = asyncio.get_running_loop()
    end = loop.time() + RETIRE_SECONDS
    pause = _FIRST_POLL_SECONDS
    while old and loop.time() < end:
        await asyncio.sleep(pause)
        old &= {row["id"] for row in await opened.show("SERVERS")}
        pause = _POLL_SECONDS
    return old


def _movable(servers: Iterable[Row], databases: Iterable[Row], entries: Set[str] | None) -> frozenset[str]:
    """IDs of the connections that will retire soon. One that a session holds stays as long as the session."""
    modes = {row["name"]: row["pool_mode"] for row in databases}
    return frozenset(
        row["id"]
        for row in servers
        if (entries is None or row["database"] in entries)
        and (modes.get(row["database"]) != "session" or row["state"] != "active")
    )
