"""Computes in a thread what would block the event loop: making logins, and plans for many consumers.

A login takes two milliseconds, and a plan half a millisecond for each consumer: anyone who may annotate
namespaces decides how many those are. The computing is pure, so it needs no lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TypeVar

from poolkeeper.credentials import mint
from poolkeeper.credentials.logins import Login
from poolkeeper.observed.refs import Key
from poolkeeper.plan.plan import Plan, plan
from poolkeeper.plan.world import World
from poolkeeper.settings import Settings

T = TypeVar("T")

MANY = 50
"""From how many consumers on a plan is computed in the thread."""
AT_ONCE = 250
"""Maximum number of logins that are made until they are stored, so that a restart loses no more."""


class Offload:
    """One thread for all PooledDatabases: several would take turns with the event loop more often."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "offload")

    async def plan(self, key: Key, world: World, settings: Settings, now: datetime) -> Plan:
        """What plan.plan() answers."""
        if len(world.logins.consumers) < MANY:
            return plan(key, world, settings, now)
        return await self._run(lambda: plan(key, world, settings, now))

    async def mint(self, lacking: Collection[str], minted: dict[str, Login]) -> None:
        """Make logins of the names that lack a stored one, and add them to `minted`: AT_ONCE at most, including
        those of them that are in it and not stored yet."""
        new = sorted(set(lacking) - minted.keys())
        some = new[: max(0, AT_ONCE - (len(lacking) - len(new)))]
        if some:
            minted |= await self._run(lambda: {name: mint.mint(name) for name in some})

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
