"""Standing connections to the servers of one database cluster, which measure servers and read schemas.

Any PooledDatabase's login can measure its server; if that fails, another one's is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from poolkeeper.budget.request import BudgetRequest
from poolkeeper.budget.servers import Measured
from poolkeeper.host_port import host_port
from poolkeeper.observed.refs import Key
from poolkeeper.upstream.target import Target
from poolkeeper.workers import upstream
from poolkeeper.workers.upstream import MEASURE_SECONDS, Meter, Unmeasured

log = logging.getLogger(__name__)

GIVEN = "given "

Met = Callable[[Key, str, str], None]
"""Receives where a PooledDatabase's upstream is: system and instance of servers.Identity."""


def given(order: BudgetRequest) -> str:
    """Name of a server that can't be measured, but whose PooledDatabase specifies how much it may take. A bare
    host is another server in each namespace."""
    host = order.target.host
    if "." not in host and order.names is not None and order.names.tried:
        host = order.names.tried[0].rstrip(".")
    return f"{GIVEN}{host_port(host, order.target.port)}"


@dataclass(frozen=True)
class _Opened:
    """A connection, and where it leads."""

    target: Target
    instance: str
    stack: contextlib.AsyncExitStack
    meter: Meter


class Meters:
    """The connections, by the PooledDatabase whose login they use. To be closed in the end, by keep()."""

    def __init__(self) -> None:
        self._opened: dict[Key, _Opened] = {}
        self._failed: dict[Key, float] = {}

    async def keep(self, keys: Collection[Key]) -> None:
        """Close all connections but these."""
        for key in self._opened.keys() - set(keys):
            await self._close(key)

    def pids(self) -> frozenset[int]:
        """The operator's own backends."""
        return frozenset(opened.meter.pid for opened in self._opened.values())

    async def measure(
        self, system: str, orders: Mapping[Key, BudgetRequest], instances: Mapping[Key, str], met: Met
    ) -> tuple[Measured | None, str]:
        """The server's current state, or in words why it is unknown. At most one login is tried: of those that
        failed, the one longest ago."""
        # Those that failed lately come last: a login that stalls must not hold up what another one measures.
        for key in sorted(orders, key=lambda key: self._failed.get(key, 0.0)):
            order = orders[key]
            if key in self._opened:
                opened = self._opened[key]
                if (opened.target, opened.instance) != (order.target, instances[key]):
                    await self._close(key)  # it leads to where the upstream was
                    continue
                try:
                    return await opened.meter.measure(), ""
                except Unmeasured as error:
                    log.info("%s/%s: measuring: %s", key.namespace, key.name, error)
                    self._failed[key] = asyncio.get_running_loop().time()
                    await self._close(key)
        key = min(orders, key=lambda key: self._failed.get(key, 0.0))
        try:
            return await self._open(key, system, orders[key], met), ""
        except Unmeasured as error:
            self._failed[key] = asyncio.get_running_loop().time()
            most = [order.pooled.most for order in orders.values() if given(order) == system]
            known = [number for number in most if number is not None]
            if len(known) == len(orders):
                return Measured(sum(known), 0, 0, (), {}, {}), ""
            return None, str(error)

    async def opened(self, key: Key, system: str, order: BudgetRequest, instance: str, met: Met) -> Meter:
        """The connection to this PooledDatabase's database, opened if there is none. Raises Unmeasured."""
        known = self._opened.get(key)
        if known is not None and (
            known.meter.closed or (known.target, known.instance) != (order.target, instance)
        ):
            await self._close(key)
            known = None
        if known is None:
            await self._open(key, system, order, met)
            known = self._opened.get(key)
        if known is None:
            raise Unmeasured("the connection was closed")
        return known.meter

    async def _open(self, key: Key, system: str, order: BudgetRequest, met: Met) -> Measured:
        stack = contextlib.AsyncExitStack()
        try:
            meter = await stack.enter_async_context(
                upstream.measuring(order.target, MEASURE_SECONDS, order.names)
            )
            where = await meter.identify()
            met(key, *where)
            if where[0] != system:
                raise Unmeasured(f"{order.target.host} leads to another server now")
            measured = await meter.measure()
        except BaseException:
            await stack.aclose()
            raise
        if key in self._opened:  # another task was faster
            await stack.aclose()
        else:
            self._opened[key] = _Opened(order.target, where[1], stack, meter)
        return measured

    async def _close(self, key: Key) -> None:
        opened = self._opened.pop(key, None)
        if opened is not None:
            await opened.stack.aclose()
