"""Moves a pooler's server connections to where the upstream is now.

RECONNECT ends every connection after its transaction, so that no client notices. But it ends connections in the
middle of a login at once, and a client that waits for one of them fails. So the operator waits for a moment
without any, and sends RECONNECT as rarely as it can. https://www.pgbouncer.org/usage.html#reconnect-db
"""

from __future__ import annotations

import asyncio

from poolkeeper.names import CONSOLE_DATABASE
from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.console import Console
from poolkeeper.plan.addresses import Reconnect

CONSOLE_SECONDS = 3.0
POLL_SECONDS = 0.1
PROXY_SECONDS = (0.7, 2.0)
"""How long until nodes lead new connections to a Service's new endpoints: most nodes after the first, usually
all after the last."""
FIRST_PAUSE_SECONDS = 0.5
"""How long to wait at least before the next RECONNECT if connections went to the old address again: about four
times while the process may remember that address, then ever less often."""
LAST_PAUSE_SECONDS = 8.0
PATIENCE_SECONDS = 25.0
"""How long to continue once old addresses have expired: connections that still go elsewhere after that go where
the pooler's own resolver leads them."""
_LOGIN_SECONDS = 1.0
_LOGIN_POLL_SECONDS = 0.02
_MARGIN_SECONDS = 0.5


async def follow(task: Reconnect) -> int:
    """Make all server connections leave where the upstream was, and verify it. Those in a transaction or held
    by a session leave after it.

    Returns how many still went elsewhere when the operator gave up. Raises ConsoleError.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    pause = max(FIRST_PAUSE_SECONDS, task.lookup_seconds / 4)
    # Until then, an address in the process's memory or a node's rules may lead back.
    certain = begun + max(task.lookup_seconds, PROXY_SECONDS[-1]) + _MARGIN_SECONDS
    async with console.connect(task.access, CONSOLE_SECONDS) as pooler:
        await _reconnect(pooler)
        said = loop.time()
        again = [begun + seconds for seconds in PROXY_SECONDS] if task.behind_service else []
        while True:
            await asyncio.sleep(POLL_SECONDS)
            addresses = await _connected(pooler)
            stale = sum(map(task.stale, addresses))
            now = loop.time()
            hidden = False
            if again and now >= max(again[0], said + FIRST_PAUSE_SECONDS):
                # Behind a Service's own address, the endpoint at the other end is invisible.
                del again[0]
                hidden = any(address not in task.whereabouts.endpoints for address in addresses)
            if hidden or (stale and now >= said + pause):
                await _reconnect(pooler)
                said = loop.time()
                if now >= begun + task.lookup_seconds:
                    pause = min(pause * 2, max(pause, LAST_PAUSE_SECONDS))
            elif not stale and not again and now >= certain:
                return 0
            elif now >= certain + PATIENCE_SECONDS:
                return stale


async def _reconnect(pooler: Console) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + _LOGIN_SECONDS
    while loop.time() < end:
        if not any(int(row["sv_login"]) for row in await pooler.show("POOLS")):
            break
        await asyncio.sleep(_LOGIN_POLL_SECONDS)
    await pooler.execute("RECONNECT")


async def _connected(pooler: Console) -> list[str]:
    """The addresses of the server connections, except those that end after their transaction."""
    return [
        row["addr"]
        for row in await pooler.show("SERVERS")
        if row["database"] != CONSOLE_DATABASE and row["close_needed"] == "0"
    ]
