"""One poll of a server and its poolers: consoles, then the server itself, then what may be written now.

The proof relies on that order (budget/protocol.py): what a console showed counts once the server was measured
after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from poolkeeper import names
from poolkeeper.budget import allotments
from poolkeeper.budget.allotments import Stored
from poolkeeper.budget.assessment import Look, Memory, Sight, account, remember, work_out
from poolkeeper.budget.protocol import Record, Steps, step
from poolkeeper.budget.report import held_up, newsworthy, seen
from poolkeeper.budget.request import BudgetRequest
from poolkeeper.budget.servers import Measured, Ours
from poolkeeper.data_path import client_limits
from poolkeeper.kube.client import Annotate
from poolkeeper.observed.data_path import AtLimit, Wedge
from poolkeeper.observed.poolers import Pod
from poolkeeper.observed.refs import Key
from poolkeeper.plan import peers
from poolkeeper.plan.reloads import reachable
from poolkeeper.queue import Queue
from poolkeeper.store.store import Store
from poolkeeper.workers.boundary import unexpected
from poolkeeper.workers.servers.consoles import Pooler as Asked
from poolkeeper.workers.servers.consoles import PoolerConsoles
from poolkeeper.workers.servers.data_path import DataPathWatch
from poolkeeper.workers.servers.meters import GIVEN, Met, Meters
from poolkeeper.workers.servers.records import Records
from poolkeeper.workers.servers.schemas import SchemaWatch
from poolkeeper.workers.upstream import Meter

LOOK_SECONDS = 1.0
"""How often a server and its poolers are polled while nothing happens."""
PODS_PER_SECOND = 200
"""How many poolers are polled in a second at most: if there are many, each is polled less often."""
SOON_SECONDS = 0.1
"""How long until the next poll while something is under way."""
UNSEEN_SECONDS = 10.0
"""How long a pod that disappeared unseen, while no operator ran, still counts. What it holds is seen on the
server; only what it could still open has to be waited for."""
START_SECONDS = 10.0
"""How long other pods make room for a pod that does not run yet."""
FORGET_SECONDS = 7200.0


class ServerWatch:
    """The servers of one database cluster, with what is kept from poll to poll: connections, and which pods
    were there lately. To be closed in the end."""

    def __init__(self, store: Store, queue: Queue[Key], records: Records, annotate: Annotate) -> None:
        self._store = store
        self._queue = queue
        self._records = records
        self._annotate = annotate
        self._consoles = PoolerConsoles()
        self._meters = Meters()
        self._schemas = SchemaWatch(store, queue)
        self._data_paths = DataPathWatch(self._consoles)
        self._memories: dict[str, Memory] = {}
        """By the first PooledDatabase on a server."""
        self._starting: dict[str, float] = {}
        """When each pod that doesn't run yet appeared, by UID."""
        self._missing: dict[str, float] = {}
        """When each pod that still has an allotment disappeared, by UID."""
        self._crowds: dict[Key, client_limits.Crowds] = {}

    async def aclose(self) -> None:
        """Close all connections."""
        await self.keep(())

    async def keep(self, members: Collection[Key]) -> None:
        """Close what belongs to other PooledDatabases than these."""
        self._schemas.keep(members)
        self._data_paths.keep(members)
        await self._meters.keep(members)
        self._crowds = {key: crowds for key, crowds in self._crowds.items() if key in members}
        pods = [pod for key in members for pod in self._store.pods(key)]
        # A connection to the console of a pod that is to end would keep it from ending.
        await self._consoles.keep([pod.uid for pod in pods if reachable(pod)])

    async def look(
        self,
        system: str,
        orders: Mapping[Key, BudgetRequest],
        instances: Mapping[Key, str],
        frozen: Iterable[Key],
        met: Met,
    ) -> float:
        """Poll one server, which these PooledDatabases are on, and do what may be done now.

        `instances` has what servers.Identity says of each; `frozen` are other PooledDatabases whose poolers
        hold connections there. Returns in how many seconds to poll again."""
        now = asyncio.get_running_loop().time()
        pods = {key: _present(self._store.pods(key)) for key in (*orders, *frozen)}
        ended = self._ended(pods, now)
        stored = {key: self._store.secrets.stored(key) for key in pods}
        records = {key: self._records.of(key) for key in pods}
        asked = tuple(_asked(orders, pods, stored, records))
        looks = await self._consoles.look(asked)
        measured, problem = await self._meters.measure(system, orders, instances, met)
        known = measured is not None and not system.startswith(GIVEN)
        opened = {
            key: partial(self._meters.opened, key, system, order, instances[key], met)
            for key, order in orders.items()
        }
        for key in orders if known else ():
            self._schemas.poll(key, opened[key])
        seen_of_server = measured if known else None
        faults = {
            key: self._watch(key, order, pods[key], looks, seen_of_server, instances[key], opened[key])
            for key, order in orders.items()
        }
        ours = _ours(orders, pods, looks)
        if measured is not None and _unknown(ours, measured, self._meters.pids()):
            # Perhaps opened since the first poll; what was closed since then is in neither.
            later = await self._consoles.look(asked)
            ours = replace(ours, pids=ours.pids | _pids(later))
        sight = Sight(
            at=asyncio.get_running_loop().time(),
            orders={
                order.pooled.name: _without_reserve(order) if system.startswith(GIVEN) else order
                for order in orders.values()
            },
            records={_name(key): record for key, record in records.items()},
            pods={_name(key): present for key, present in pods.items()},
            looks=looks,
            ended=ended,
            measured=measured,
            ours=ours,
            own=self._meters.pids(),
            coming=self._coming(pods, now),
        )
        first = min(sight.orders)
        memory = self._memories[first] = remember(self._memories.get(first, Memory()), sight)
        view, divisions, shared = work_out(sight, memory, self._records.epoch())
        worked_out = account(system, problem, sight, memory, shared)
        steps = step(view)
        if view.usable is not None and sum(record.bound for record in view.records.values()) <= view.usable:
            for key in orders:
                self._store.budgets.fit(key, now)
        wrote = await self._write(system, orders, stored, steps)
        told = await self._tell(orders, pods)
        await self._consoles.retire(_surplus(steps, asked, orders))
        behind = any(
            item.allotment is not None
            and item.uid in looks
            and looks[item.uid].reading.revision != item.allotment.revision
            for item in asked
        )
        for key, order in orders.items():
            name = order.pooled.name
            before = self._store.budgets.get(key)
            report = seen(worked_out, name, divisions.get(name), view, pods[key], before)
            report = replace(report, problems=(*self._records.refusal(key), *report.problems))
            report = held_up(report, [pod for pod in pods[key] if self._consoles.mute(pod.uid)], pods[key])
            at_limit = self._at_limit(key, order, pods[key], looks)
            wedges, silent, unwatched = faults[key]
            report = replace(report, at_limit=at_limit, wedges=wedges, silent=silent, unwatched=unwatched)
            if newsworthy(before, report, settled=not (wrote or told or behind)):
                self._queue.add(self._store.budgets.put(key, report))
        if wrote or told or behind or steps.drain:
            return SOON_SECONDS
        return max(LOOK_SECONDS, len(asked) / PODS_PER_SECOND)

    # Polling

    def _watch(
        self,
        key: Key,
        order: BudgetRequest,
        pods: Sequence[Pod],
        looks: Mapping[str, Look],
        measured: Measured | None,
        instance: str,
        opened: Callable[[], Awaitable[Meter]],
    ) -> tuple[tuple[Wedge, ...], str, str]:
        """What DataPathWatch.look() reports, and what of the data path can't be watched, and why."""
        try:
            wedges, silent = self._data_paths.look(key, order, pods, looks, measured, instance, opened)
        except Exception as error:
            return (), "", unexpected("the search for faults of the data path", error)
        return wedges, silent, self._data_paths.problem(key) or self._schemas.problem(key)

    def _at_limit(
        self, key: Key, order: BudgetRequest, pods: Sequence[Pod], looks: Mapping[str, Look]
    ) -> tuple[AtLimit, ...]:
        """The consumers that fill their part of a pooler's client slots."""
        clients = {pod.name: looks[pod.uid].clients for pod in pods if pod.uid in looks}
        now = asyncio.get_running_loop().time()
        crowds = client_limits.advance(self._crowds.get(key, {}), order.clients, clients, now)
        self._crowds[key] = crowds
        return client_limits.at_limit(crowds)

    def _coming(self, pods: Mapping[Key, Sequence[Pod]], now: float) -> frozenset[str]:
        """Pods that don't run yet, and have not existed for long."""
        starting = [
            pod.uid for present in pods.values() for pod in present if not (pod.running or pod.terminating)
        ]
        self._starting = since(self._starting, starting, now)
        return frozenset(uid for uid in starting if now - self._starting[uid] < START_SECONDS)

    def _ended(self, pods: Mapping[Key, Sequence[Pod]], now: float) -> frozenset[str]:
        """Pods with an allotment that are gone for good: their end was seen, or they have been gone long enough
        for their node to have ended them, even if they were deleted by force. (A node that lost touch may still
        run them.)"""
        missing = {
            uid: key
            for key, present in pods.items()
            for uid in self._records.of(key).allotments.keys() - {pod.uid for pod in present}
        }
        self._missing = since(self._missing, missing, now)
        return frozenset(
            uid
            for uid, key in missing.items()
            if self._store.ended(uid)
            or any(pod.uid == uid for pod in self._store.pods(key))
            or now - self._missing[uid] > UNSEEN_SECONDS
        )

    # Doing

    async def _write(
        self,
        system: str,
        orders: Mapping[Key, BudgetRequest],
        stored: Mapping[Key, Stored | None],
        steps: Steps,
    ) -> bool:
        """Store the Records in place of those that the steps were worked out from; returns whether any may have
        been. The first whose Secret has changed ends it: what follows is worked out again. One that the API
        server refuses holds up no other."""
        keys = {_name(key): key for key in stored}
        wrote = False
        for name, record in steps.records.items():
            key = keys[name]
            before = stored[key]
            if before is None or before != self._store.secrets.stored(key):
                return True
            files = self._store.secrets.pooler_files(key)
            files = (
                allotments.files(record, system, orders[key].lines, files)
                if key in orders
                else allotments.kept(files, record, system)
            )
            done = await self._records.write(key, before, files)
            if self._records.refusal(key):
                continue
            wrote = True
            if not done:
                break
        return wrote

    async def _tell(self, orders: Mapping[Key, BudgetRequest], pods: Mapping[Key, Sequence[Pod]]) -> bool:
        """Annotate the pods whose table changed, so that kubelet delivers it; returns whether any had."""
        work = []
        for key in orders:
            for pod in pods[key]:
                allotment = self._records.of(key).allotments.get(pod.uid)
                if allotment is None or pod.terminating or pod.peer is None:
                    continue
                lines = peers.lines(pod.peer, peers.table_path(pod.uid))
                annotations = {
                    names.ALLOTMENT_ANNOTATION: str(allotment.revision),
                    names.PEER_ANNOTATION: lines,
                }
                if (pod.allotment, pod.lines) != tuple(annotations.values()):
                    work.append(self._annotate(key.namespace, pod.name, pod.uid, annotations))
        return bool(await asyncio.gather(*work))


def since(known: Mapping[str, float], present: Iterable[str], now: float) -> dict[str, float]:
    """Since when each of these pods has been so; what is `known` of other pods is kept for FORGET_SECONDS,
    since a poll of one server says nothing about the pods of another."""
    kept = {uid: at for uid, at in known.items() if now - at < FORGET_SECONDS}
    return kept | {uid: known.get(uid, now) for uid in present}


def _present(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """The pods that may hold connections now or later, in the order in which they are admitted."""
    return tuple(sorted((pod for pod in pods if not pod.stopped), key=lambda pod: (pod.name, pod.uid)))


def _asked(
    orders: Mapping[Key, BudgetRequest],
    pods: Mapping[Key, Sequence[Pod]],
    stored: Mapping[Key, Stored | None],
    records: Mapping[Key, Record],
) -> Iterator[Asked]:
    """The poolers to poll, and for what. If the stored login rules are not those of the order (yet), no entry
    can be known to be closed."""
    for key, order in orders.items():
        item, entries = stored[key], frozenset(order.lines)
        rules = order.rules if item is not None and item.rules == order.rules else ""
        for pod in pods[key]:
            if reachable(pod):
                access = replace(order.access, ip=pod.ip)
                yield Asked(pod.uid, access, records[key].allotments.get(pod.uid), rules, entries)


def _ours(
    orders: Mapping[Key, BudgetRequest], pods: Mapping[Key, Sequence[Pod]], looks: Mapping[str, Look]
) -> Ours:
    return Ours(
        users=frozenset(order.target.user for order in orders.values()),
        pids=_pids(looks),
        addresses=frozenset(
            pod.ip for present in pods.values() for pod in present if pod.ip and pod.uid not in looks
        ),
    )


def _pids(looks: Mapping[str, Look]) -> frozenset[int]:
    return frozenset(pid for look in looks.values() for pid in look.pids)


def _without_reserve(order: BudgetRequest) -> BudgetRequest:
    """For a server that can't be measured: spec.budget.maxConnections says what there is for the poolers."""
    return replace(order, pooled=replace(order.pooled, reserve=0))


def _unknown(ours: Ours, measured: Measured, own: frozenset[int]) -> bool:
    return any(backend.user in ours.users and backend.pid not in own for backend in ours.strangers(measured))


def _surplus(
    steps: Steps, asked: Iterable[Asked], orders: Mapping[Key, BudgetRequest]
) -> dict[str, tuple[Asked, tuple[str, ...]]]:
    """What can be given back: not the connections of sessions, which end when their clients leave."""
    fixed = frozenset(entry for order in orders.values() for entry in order.fixed)
    found = {
        item.uid: (item, tuple(entry for entry in steps.drain.get(item.uid, ()) if entry not in fixed))
        for item in asked
    }
    return {uid: (item, entries) for uid, (item, entries) in found.items() if entries}


def _name(key: Key) -> str:
    return f"{key.namespace}/{key.name}"
