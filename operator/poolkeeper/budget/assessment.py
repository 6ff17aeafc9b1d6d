"""Turns one poll of a server and its poolers into the wanted caps and the budget report. Pure.

It joins the server's connections (servers.py), the needs (lending.py) and the caps (targets.py) to the View
that protocol.step() decides on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from poolkeeper.budget import lending, servers
from poolkeeper.budget.division import Caps, Division, Limit, Server
from poolkeeper.budget.lending import Need, Sample
from poolkeeper.budget.overhang import explained
from poolkeeper.budget.protocol import Pooler, Reading, Record, View
from poolkeeper.budget.report import Account
from poolkeeper.budget.request import BudgetRequest
from poolkeeper.budget.servers import Measured, Others, Ours
from poolkeeper.budget.shares import Pooled, bottleneck, reserved, shares
from poolkeeper.budget.targets import target
from poolkeeper.observed.poolers import Pod

EXCESS_SECONDS = 5.0
"""How long poolers may hold more than is usable until it is reported: meanwhile they give it back."""
SAMPLE_SECONDS = 0.7
"""How often needs are sampled at most."""


@dataclass(frozen=True)
class Look:
    """What a pooler's console showed: its table, the backends behind its connections, SHOW POOLS, the number of
    connected clients by entry, the active rows of SHOW SERVERS, and the paused or disabled entries."""

    reading: Reading
    pids: frozenset[int]
    pools: tuple[Mapping[str, str], ...]
    clients: Mapping[str, int] = field(default_factory=dict)
    active: tuple[Mapping[str, str], ...] = ()
    paused: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Sight:
    """Everything that one poll found. Names are those of PooledDatabases, `namespace/name`."""

    at: float
    """Seconds on a monotonic clock."""
    orders: Mapping[str, BudgetRequest]
    records: Mapping[str, Record]
    """By name, also of PooledDatabases of which only the Record is known."""
    pods: Mapping[str, Sequence[Pod]]
    """By name."""
    looks: Mapping[str, Look]
    """By pod UID; all were taken before the measurement began."""
    ended: frozenset[str]
    """UIDs of pods that are gone for good, as known before the measurement began."""
    measured: Measured | None
    ours: Ours
    own: frozenset[int]
    """The operator's own backends."""
    coming: frozenset[str]
    """UIDs of pods that will run in a moment, if nothing goes wrong: other pods make room for them already."""


@dataclass(frozen=True)
class Memory:
    """What is kept of a server from poll to poll. An operator that starts without it learns it again."""

    others: Others = field(default_factory=Others)
    server: Server | None = None
    """As last measured."""
    limits: tuple[Limit, ...] = ()
    """CONNECTION LIMITs that PooledDatabases share, as last measured."""
    reserved: int = 0
    """Connections that stay free for the namespaces' reserves, as of the last measurement."""
    need: Need = field(default_factory=Need)
    excess_since: float | None = None


def remember(memory: Memory, sight: Sight) -> Memory:
    """The memory after one more poll."""
    if sight.measured is not None:
        own = sum(backend.pid in sight.own for backend in sight.measured.backends)
        others = memory.others.advance(sight.ours, sight.measured, own, sight.at)
        server, limits = sight.measured.server(others.lasting), _limits(sight, sight.measured)
        kept = reserved(_lasting(server, sight), _databases(sight), limits)
        memory = replace(memory, others=others, server=server, limits=limits, reserved=kept)
    if sight.at - memory.need.at >= SAMPLE_SECONDS:
        memory = replace(memory, need=lending.advance(memory.need, *_sample(sight), memory.limits))
    if _excess(memory, sight) <= 0:
        return replace(memory, excess_since=None)
    return replace(memory, excess_since=sight.at if memory.excess_since is None else memory.excess_since)


def work_out(sight: Sight, memory: Memory, epoch: int) -> tuple[View, dict[str, Division], dict[str, int]]:
    """(the View that step() decides on, the division and the share of each PooledDatabase). Without a
    measurement all caps stay as they are."""
    usable = None
    divisions: dict[str, Division] = {}
    shared: dict[str, int] = {}
    poolers = tuple(_poolers(sight))
    if sight.measured is not None and memory.server is not None:
        usable = sight.measured.server(memory.others.now).usable(memory.reserved)
        databases = memory.need.adjusted(_databases(sight))
        limits = _limits(sight, sight.measured)
        shared = shares(_lasting(memory.server, sight), databases, limits)
        divisions = {
            pooled.name: target(
                pooled,
                shared[pooled.name],
                poolers,
                sight.records[pooled.name],
                bottleneck(configured, shared, limits),
            )
            for pooled, configured in zip(databases, _databases(sight), strict=True)
        }
        divisions = explained(divisions, shared, sight.records, usable)
    wanted: dict[str, Caps] = {
        uid: item.caps
        for name, record in sight.records.items()
        if name not in divisions
        for uid, item in record.allotments.items()
    }
    for division in divisions.values():
        wanted |= division.caps
    view = View(
        epoch=epoch,
        usable=usable,
        ended=frozenset() if usable is None else sight.ended,
        counted=frozenset() if usable is None else frozenset(sight.looks),
        records=sight.records,
        poolers=poolers,
        wanted=wanted,
    )
    return view, divisions, shared


def account(system: str, problem: str, sight: Sight, memory: Memory, shared: Mapping[str, int]) -> Account:
    """The server's part of the budget report."""
    since = memory.excess_since
    lasting = since is not None and sight.at - since > EXCESS_SECONDS
    excess = _excess(memory, sight) if lasting else 0
    return Account(system, problem, memory.server, memory.reserved, shared, excess)


def _limits(sight: Sight, measured: Measured) -> tuple[Limit, ...]:
    logins = {name: (order.target.user, order.target.database) for name, order in sight.orders.items()}
    return servers.limits(measured, logins, sight.ours)


def _excess(memory: Memory, sight: Sight) -> int:
    if memory.server is None:
        return 0
    return sum(record.bound for record in sight.records.values()) - memory.server.usable(memory.reserved)


def _lasting(server: Server, sight: Sight) -> int:
    """What the PooledDatabases may have together, reserves included: the pods of others that are known to hold
    connections there keep theirs."""
    others = sum(record.bound for name, record in sight.records.items() if name not in sight.orders)
    return max(0, server.usable(0) - others)


def _databases(sight: Sight) -> tuple[Pooled, ...]:
    """PooledDatabases that have connections come first: if there are too few, they keep theirs."""
    return tuple(
        sorted(
            (order.pooled for order in sight.orders.values()),
            key=lambda pooled: (not sight.records[pooled.name].allotments, pooled.name),
        )
    )


def _poolers(sight: Sight) -> list[Pooler]:
    return [
        Pooler(
            pod.uid,
            name,
            pod.running or pod.uid in sight.coming,
            pod.admitted,
            pod.terminating,
            sight.looks[pod.uid].reading if pod.uid in sight.looks else None,
        )
        for name, pods in sight.pods.items()
        for pod in pods
    ]


def _sample(sight: Sight) -> tuple[Sample, Sequence[Pooled], dict[str, dict[str, int]]]:
    databases = _databases(sight)
    uses, caps, partial = {}, {}, set()
    for pooled in databases:
        entries = [item.entry for item in pooled.consumers]
        shown = [sight.looks[pod.uid].pools for pod in sight.pods[pooled.name] if pod.uid in sight.looks]
        uses[pooled.name] = lending.uses(entries, shown)
        if len(shown) < len(sight.pods[pooled.name]):
            partial.add(pooled.name)
        caps[pooled.name] = {
            entry: sum(item.caps.get(entry, 0) for item in sight.records[pooled.name].allotments.values())
            for entry in entries
        }
    return Sample(sight.at, uses, frozenset(partial)), databases, caps
