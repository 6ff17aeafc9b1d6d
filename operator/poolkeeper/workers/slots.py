"""A limit on how much is done at one time, of which no tenant gets all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary


class Slots:
    """At most `total` at one time, and half of them for one tenant: consoles that accept a connection and never
    answer hold up their own namespace's."""

    def __init__(self, total: int) -> None:
        self._all = asyncio.Semaphore(total)
        self._each = max(1, total // 2)
        self._tenants: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def one(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a slot, and hold it."""
        own = self._tenants.setdefault(tenant, asyncio.Semaphore(self._each))
        async with own, self._all:
            yield
