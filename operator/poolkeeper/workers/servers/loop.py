"""Runs the budget: polls poolers and their servers, and stores what protocol.step() returns.

There is one task for each database cluster. It measures a server over a standing connection and polls the
poolers' consoles over others (poll.py). Every poll works out all caps again, so nothing has to be remembered
over a restart. Only this task changes Records.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from poolkeeper.budget import servers
from poolkeeper.budget.allotments import Stored
from poolkeeper.budget.request import BudgetRequest
from poolkeeper.budget.seen import BudgetSeen
from poolkeeper.budget.servers import Identity
from poolkeeper.grouped import Grouped
from poolkeeper.kube.client import ClusterError
from poolkeeper.observed.poolers import Pod
from poolkeeper.observed.refs import Key
from poolkeeper.queue import Queue
from poolkeeper.store.store import Store
from poolkeeper.workers import upstream
from poolkeeper.workers.boundary import unexpected
from poolkeeper.workers.servers.meters import given
from poolkeeper.workers.servers.poll import ServerWatch
from poolkeeper.workers.upstream import MEASURE_SECONDS, Unmeasured

log = logging.getLogger(__name__)

IDENTIFY_SECONDS = 60.0
"""How often a PooledDatabase's server identity is rechecked, unless the server is measured with its login."""
RETRY_SECONDS = 5.0


class Budgets:
    """The servers that PooledDatabases are on, each polled by a task."""

    def __init__(self, store: Store, queue: Queue[Key], watch: Callable[[], ServerWatch]) -> None:
        self._store = store
        self._queue = queue
        self._watch = watch
        self._orders: dict[Key, BudgetRequest] = {}
        self._seen: dict[Key, tuple[BudgetRequest, tuple[Pod, ...], Stored | None]] = {}
        self._identities: Grouped[Key, Identity] = Grouped(lambda identity: identity.system)
        self._tried: dict[Key, float] = {}
        self._doubted: set[Key] = set()
        self._identifying: dict[Key, asyncio.Task[None]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """By system."""
        self._wake: dict[str, asyncio.Event] = {}

    def order(self, key: Key, order: BudgetRequest | None) -> None:
        """Apply this order to a PooledDatabase from now on; None: what it has stays as it is."""
        if order is None:
            if self._orders.pop(key, None) is not None:
                self._seen.pop(key, None)
                self._tried.pop(key, None)
                self.measure(key)
                self._identities.pop(key, None)
            return
        pods, stored = self._store.pods(key), self._store.secrets.stored(key)
        before = self._orders.get(key)
        self._orders[key] = order
        if not pods and (stored is None or not stored.record.allotments):
            return  # an unused server is not polled
        if before is not None and before.target != order.target:
            self._identities.pop(key, None)
        if before is not None and before.whereabouts != order.whereabouts:
            self._doubted.add(key)
        if key not in self._identities and key not in self._identifying:
            task = self._identifying[key] = asyncio.create_task(self._identify(key))
            task.add_done_callback(lambda _: self._identifying.pop(key))
        if self._seen.get(key) != (order, pods, stored):
            self._seen[key] = (order, pods, stored)
            self.measure(key)

    def measure(self, key: Key) -> None:
        """Measure the server of a PooledDatabase soon."""
        if key in self._identities:
            self._rouse(self._identities[key].system)

    # Which server

    async def _identify(self, key: Key) -> None:
        """Identify the server that a PooledDatabase is on; until it is known, the poolers wait."""
        while key in self._orders:
            order = self._orders[key]
            try:
                await self._look_where(key)
            except Unmeasured as error:
                system = self._presumed(key, order)
                if system:
                    now = asyncio.get_running_loop().time()
                    self._identities[key] = Identity(system, "", now, now)
                else:
                    self._report(key, str(error))
            except Exception as error:
                self._report(key, unexpected("identifying the server", error))
            if key in self._identities:
                self._attend_to(self._identities[key].system)
                return
            await asyncio.sleep(RETRY_SECONDS)

    def _report(self, key: Key, problem: str) -> None:
        """Put into the status why the server is not measured; what was known of it stays."""
        waiting = tuple(pod.name for pod in self._store.pods(key) if not pod.admitted)
        known = self._store.budgets.get(key) or BudgetSeen()
        seen = replace(
            known, problem=problem, waiting=waiting, admissible=frozenset(), wedges=(), unwatched="", silent=""
        )
        self._queue.add(self._store.budgets.put(key, seen))

    def _presumed(self, key: Key, order: BudgetRequest) -> str:
        """The server that a PooledDatabase was on when it was last measured. If it never was, but the spec says
        how much it may take, a server of its own; else empty."""
        stored = self._store.secrets.stored(key)
        if stored is not None and stored.server:
            return stored.server
        return given(order) if order.pooled.most is not None else ""

    async def _look_where(self, key: Key) -> None:
        """Identify a PooledDatabase's server once. Raises Unmeasured."""
        self._doubted.discard(key)
        self._tried[key] = asyncio.get_running_loop().time()
        order = self._orders[key]
        async with upstream.measuring(order.target, MEASURE_SECONDS, order.names) as meter:
            self._met(key, *await meter.identify())

    def _met(self, key: Key, system: str, instance: str) -> None:
        if key not in self._orders:  # it was dropped meanwhile
            return
        now = asyncio.get_running_loop().time()
        known = self._identities.get(key) or Identity(system, instance, now, now)
        self._identities[key] = known.seen(system, instance, now)
        if known.system != system:
            self._rouse(known.system)
            self._attend_to(system)

    def _attend_to(self, system: str) -> None:
        if system not in self._tasks:
            self._wake[system] = asyncio.Event()
            self._tasks[system] = asyncio.create_task(self._attend(system))
        self._rouse(system)

    def _rouse(self, system: str) -> None:
        if system in self._wake:
            self._wake[system].set()

    # One database cluster

    async def _attend(self, system: str) -> None:
        """Poll the servers of a system for as long as a PooledDatabase uses one."""
        async with contextlib.aclosing(self._watch()) as watch:
            while members := self._members(system):
                self._wake[system].clear()
                pause = RETRY_SECONDS
                try:
                    await watch.keep(members)
                    await self._look_again(members)
                    keys = {self._orders[key].pooled.name: key for key in self._members(system)}
                    groups = servers.apart({name: self._identities[key] for name, key in keys.items()})
                    orders = [{keys[name]: self._orders[keys[name]] for name in group} for group in groups]
                    frozen = self._frozen(system)
                    pauses = await asyncio.gather(
                        *(self._look(watch, system, group, frozen) for group in orders)
                    )
                    pause = min(pauses, default=0.0)
                except Exception as error:
                    problem = unexpected("polling the server", error)
                    for key in members:
                        self._report(key, problem)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake[system].wait(), pause)
            del self._tasks[system], self._wake[system]

    async def _look(
        self, watch: ServerWatch, system: str, orders: Mapping[Key, BudgetRequest], frozen: Iterable[Key]
    ) -> float:
        """Poll one server. A failure concerns the PooledDatabases there, and those on no other server."""
        try:
            return await watch.look(system, orders, self._instances(orders), frozen, self._met)
        except ClusterError as error:  # the API server; what it did not take is worked out again
            log.info("the server %s: %s", system, error.message)
        except Exception as error:
            problem = unexpected("polling the server and its poolers", error)
            for key in orders:
                self._report(key, problem)
        return RETRY_SECONDS

    def _members(self, system: str) -> tuple[Key, ...]:
        return tuple(key for key in sorted(self._identities.within(system)) if key in self._orders)

    def _instances(self, keys: Iterable[Key]) -> dict[Key, str]:
        return {key: self._identities[key].instance for key in keys}

    def _frozen(self, system: str) -> tuple[Key, ...]:
        """PooledDatabases that hold connections of the system although their needs are unknown: their spec is
        invalid, or they are being deleted."""
        return tuple(
            key
            for key in sorted(self._store.secrets.stored_on(system) - self._identities.keys())
            if (stored := self._store.secrets.stored(key)) is not None and stored.record.allotments
        )

    async def _look_again(self, members: Iterable[Key]) -> None:
        """Identify servers again, if it is in doubt whether two are the same, or after a long time."""
        now = asyncio.get_running_loop().time()
        known = {key: self._identities[key] for key in members}
        latest = max((identity.since for identity in known.values()), default=now)
        due = [
            key
            for key, identity in known.items()
            if key in self._doubted
            or (
                (identity.at < latest or not identity.instance or now - identity.at > IDENTIFY_SECONDS)
                and now - self._tried.get(key, -RETRY_SECONDS) >= RETRY_SECONDS
            )
        ]
        outcomes = await asyncio.gather(*map(self._look_where, due), return_exceptions=True)
        for key, outcome in zip(due, outcomes, strict=True):
            if isinstance(outcome, Exception) and not isinstance(outcome, Unmeasured):
                self._report(key, unexpected("identifying the server", outcome))
