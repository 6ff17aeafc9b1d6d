"""Watches the data path of the poolers on a server: ends stuck server connections, and probes each pooler.

It uses what the poll of the server has read already (poll.py). Only if that is suspicious, it asks PostgreSQL
and a console for more, in the background. A PooledDatabase's own role sees its backends and may end them, so
that it needs no right beyond those that every role has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from poolkeeper.budget.assessment import Look
from poolkeeper.budget.request import BudgetRequest
from poolkeeper.budget.servers import Measured
from poolkeeper.data_path import findings, wedges
from poolkeeper.data_path.findings import Outcome, Probed, Reports, Waits
from poolkeeper.data_path.wedges import Active, Connection, Held, Holds, Sockets
from poolkeeper.observed.data_path import Wedge
from poolkeeper.observed.poolers import Pod
from poolkeeper.observed.refs import Key
from poolkeeper.pgbouncer.console import ConsoleError
from poolkeeper.plan.reloads import serves
from poolkeeper.workers import upstream
from poolkeeper.workers.boundary import Trouble, unexpected
from poolkeeper.workers.servers.consoles import PoolerConsoles
from poolkeeper.workers.upstream import Echo, Meter, Unmeasured

log = logging.getLogger(__name__)

JUDGE_EVERY_SECONDS = 0.9
"""How often PostgreSQL and the consoles are asked about suspects at most."""
PROBE_EVERY_SECONDS = 4.0
"""How often each pooler is probed."""
PROBE_AGAIN_SECONDS = 1.0
"""How long until a pooler is probed again after a failed probe."""
PROBE_SECONDS = 2.5
"""Maximum duration of a probe."""
RETIRE_EVERY_SECONDS = 600.0
"""How long after a pod of a PooledDatabase was retired another one may be. No other pod fixes a fault that
recurs."""


@dataclass
class _Probing:
    """The probes of one pod."""

    due: float = 0.0
    entry: str = ""
    begun: float = 0.0
    task: asyncio.Task[Echo] | None = None


@dataclass
class _Seen:
    """What is known of the poolers of one PooledDatabase."""

    holds: Holds = field(default_factory=dict)
    instance: str = ""
    waits: Waits = field(default_factory=dict)
    probes: dict[str, Probed] = field(default_factory=dict)
    probing: dict[str, _Probing] = field(default_factory=dict)
    ended: list[Wedge] = field(default_factory=list)
    """Connections ended since the last poll."""
    reports: Reports = field(default_factory=dict)
    judging: Trouble = field(default_factory=Trouble)
    """Why suspects can't be asked about."""
    probes_fail: Trouble = field(default_factory=Trouble)
    """Why the operator itself can't probe."""
    retired: tuple[str, float] = ("", 0.0)
    """The pod that was last to be retired, and since when it was."""
    task: asyncio.Task[None] | None = None
    """Asks about the suspects."""
    due: float = 0.0
    """When the suspects may be asked about again."""

    def cancel(self) -> None:
        for task in (self.task, *(item.task for item in self.probing.values())):
            if task is not None:
                task.cancel()


class DataPathWatch:
    """The PooledDatabases on one database cluster. To be closed in the end, by keep()."""

    def __init__(self, consoles: PoolerConsoles) -> None:
        self._consoles = consoles
        self._seen: dict[Key, _Seen] = {}

    def keep(self, keys: Collection[Key]) -> None:
        """Forget all PooledDatabases but these."""
        for key in self._seen.keys() - set(keys):
            self._seen.pop(key).cancel()

    def look(
        self,
        key: Key,
        order: BudgetRequest,
        pods: Sequence[Pod],
        looks: Mapping[str, Look],
        measured: Measured | None,
        instance: str,
        connected: Callable[[], Awaitable[Meter]],
    ) -> tuple[tuple[Wedge, ...], str]:
        """Take in one more poll of a PooledDatabase's poolers: returns what to report, and the UID of a pod to
        retire (empty for none). `measured`: its server, after the polls of `looks`; None: it can't be measured,
        so that a fault may be the server's. `connected` returns the connection of the PooledDatabase's own
        role, or raises Unmeasured. Waits for nothing."""
        now = asyncio.get_running_loop().time()
        seen = self._seen.setdefault(key, _Seen())
        named = {pod.uid: pod.name for pod in pods}
        shown = {uid: look for uid, look in looks.items() if uid in named}
        serving = {pod.uid for pod in pods if serves(pod)}
        self._take_in_probes(seen, order, serving, shown, measured is not None, now)
        if measured is None:
            seen.holds, seen.waits = {}, {}
        else:
            seen.holds = _held(seen, order, named, shown, measured, instance, now)
            if not wedges.suspects(seen.holds, now):
                seen.judging.note("", now)
            seen.waits = findings.waits(seen.waits, shown, now)
            self._probe(key, seen, order, pods, shown, now)
            idle = seen.task is None or seen.task.done()
            if idle and now >= seen.due and wedges.suspects(seen.holds, now):
                seen.due = now + JUDGE_EVERY_SECONDS
                seen.task = asyncio.create_task(self._judge(key, seen, order, named, connected))
        current = [*findings.current(seen.waits, seen.probes, named, order.clients, now), *seen.ended]
        seen.instance, seen.ended = instance, []
        seen.reports = findings.report(seen.reports, current, now)
        return findings.wedges(seen.reports), _silent(seen, now)

    def problem(self, key: Key) -> str:
        """What of a PooledDatabase's data path can't be watched, and why; empty if all can."""
        seen, now = self._seen.get(key), asyncio.get_running_loop().time()
        if seen is None:
            return ""
        return seen.judging.lasting(now) or seen.probes_fail.lasting(now)

    # Server connections

    async def _judge(
        self,
        key: Key,
        seen: _Seen,
        order: BudgetRequest,
        named: Mapping[str, str],
        connected: Callable[[], Awaitable[Meter]],
    ) -> None:
        """Ask PostgreSQL and the consoles about the suspects, and end the stuck ones: one of each pooler at a
        time, so that a mistake does not end them all."""
        loop = asyncio.get_running_loop()
        suspects = wedges.suspects(seen.holds, loop.time())
        problem = ""
        try:
            meter = await connected()
            backends = await meter.backends({held.active.pid for held in suspects.values()})
            resting = {uid for (uid, _), held in suspects.items() if wedges.at_rest(held, backends)}
            sockets = {uid: await self._sockets(uid) for uid in sorted(resting)}
            for connection, held in suspects.items():
                judged = wedges.judge(
                    held, backends, sockets.get(connection.uid, {}), connection.id, loop.time()
                )
                _store(seen, connection, held, judged)
            ended: set[str] = set()
            for connection, held in wedges.stuck(seen.holds, loop.time()).items():
                if connection.uid not in ended and await self._end(
                    key, seen, order, named[connection.uid], connection, held, meter
                ):
                    ended.add(connection.uid)
        except Unmeasured as error:
            problem = f"backends of server connections without an answer can't be checked: {error}"
            log.info("%s/%s: %s", key.namespace, key.name, problem)
        except Exception as error:
            problem = unexpected("the search for stuck server connections", error)
        seen.judging.note(problem, loop.time())

    async def _sockets(self, uid: str) -> dict[str, Sockets]:
        """A console's pairs of clients and servers; empty if it does not answer: the next poll shows it."""
        try:
            return pairs(await self._consoles.sockets(uid))
        except (ConsoleError, KeyError, ValueError):
            return {}

    async def _end(
        self,
        key: Key,
        seen: _Seen,
        order: BudgetRequest,
        pod: str,
        connection: Connection,
        held: Held,
        meter: Meter,
    ) -> bool:
        """End a stuck connection; returns whether anything was done to it. First PostgreSQL ends its backend,
        but only if that has rested to that moment: the client gets PostgreSQL's own error. If that has no
        effect, the pooler closes its client."""
        now = asyncio.get_running_loop().time()
        where = f"{key.namespace}/{key.name}: pooler {pod}: entry {held.active.entry}"
        first = held.terminated is None
        try:
            if wedges.kills(held, now):
                if not held.client:
                    return False
                await self._consoles.close_client(connection.uid, held.client)
                log.warning("%s: closed the client of a stuck connection", where)
            else:
                if not first or not await meter.terminate(held.active.pid, held.changed):
                    return False
                log.warning("%s: ended backend %s of a stuck connection", where, held.active.pid)
        except (Unmeasured, ConsoleError) as error:
            log.warning("%s: a stuck connection: %s", where, error)
        _store(seen, connection, held, replace(held, terminated=held.terminated or now))
        if first:
            consumers = {entry: bound.consumer for bound in order.clients for entry in bound.entries}
            wedge = Wedge(findings.STUCK, pod, consumers.get(held.active.entry, held.active.entry), 1)
            seen.ended.append(wedge)
        return True

    # Probes

    def _take_in_probes(
        self,
        seen: _Seen,
        order: BudgetRequest,
        serving: Collection[str],
        looks: Mapping[str, Look],
        measured: bool,
        now: float,
    ) -> None:
        """Take in finished probes. Each counts once its console was polled after it, which shows whether the
        probe may have failed."""
        for uid in (seen.probing.keys() | seen.probes.keys()) - set(serving):
            item = seen.probing.pop(uid, None)
            seen.probes.pop(uid, None)
            if item is not None and item.task is not None:
                item.task.cancel()
        for uid, item in seen.probing.items():
            if item.task is None or not item.task.done() or uid not in looks:
                continue
            echo, item.task = item.task.result(), None
            seen.probes_fail.note(echo.failed, now)
            excused = not measured or findings.excusable(looks[uid], item.entry, order.clients)
            said = None if echo.failed or (echo.said and excused) else echo.said
            outcome = Outcome(item.entry, item.begun, said, echo.silent)
            seen.probes[uid] = findings.probed(seen.probes.get(uid, Probed()), outcome, now)
            item.due = now + (PROBE_AGAIN_SECONDS if said or echo.failed else PROBE_EVERY_SECONDS)

    def _probe(
        self,
        key: Key,
        seen: _Seen,
        order: BudgetRequest,
        pods: Sequence[Pod],
        looks: Mapping[str, Look],
        now: float,
    ) -> None:
        for pod in pods:
            item = seen.probing.setdefault(pod.uid, _Probing())
            if pod.uid not in looks or not serves(pod) or item.task is not None or now < item.due:
                continue
            known = seen.probes.get(pod.uid, Probed())
            entry = findings.to_probe(looks[pod.uid], order.logins, order.clients, item.entry, known)
            if entry:
                access = replace(order.access, ip=pod.ip)
                login = order.logins[entry]
                probe = asyncio.create_task(upstream.through_pooler(access, login, entry, PROBE_SECONDS))
                item.entry, item.begun, item.task = entry, now, probe


def _held(
    seen: _Seen,
    order: BudgetRequest,
    named: Mapping[str, str],
    looks: Mapping[str, Look],
    measured: Measured,
    instance: str,
    now: float,
) -> dict[Connection, Held]:
    """The active connections, after one more poll. Those on another instance of the server say nothing about
    this one. Replication keeps connections for as long as its clients like, as sessions do."""
    before = seen.holds if instance == seen.instance else {}
    active = {
        Connection(uid, row["id"]): Active(
            row["database"], int(row["remote_pid"]), row["link"], row["request_time"]
        )
        for uid, look in looks.items()
        for row in look.active
        if row["database"] in order.lines
        and row["database"] not in order.fixed
        and row["replication"] == "none"
    }
    backends = (item.pid for item in measured.backends if item.user == order.target.user)
    present = {key: held for key, held in before.items() if key.uid in named}
    return wedges.hold(present, active, looks, backends, now)


def _silent(seen: _Seen, now: float) -> str:
    uid = findings.retire(seen.probes, now)
    before, at = seen.retired
    if uid and uid != before:
        if before and now - at < RETIRE_EVERY_SECONDS:
            return ""
        seen.retired = (uid, now)
    return uid


def _store(seen: _Seen, connection: Connection, before: Held, after: Held) -> None:
    """Store what is known of a connection, unless the connection has moved on since."""
    known = seen.holds.get(connection)
    if known is not None and (known.active, known.since) == (before.active, before.since):
        seen.holds = {**seen.holds, connection: replace(after, known=known.known)}


def pairs(rows: Sequence[Mapping[str, str]]) -> dict[str, Sockets]:
    """Pairs from SHOW SOCKETS, by the ID of the server connection. A message in part has a rest to come
    (pkt_remain); what a client has not read yet waits in the buffer of the server connection (send_avail)."""
    clients = {row["ptr"]: row for row in rows if row["type"] == "C"}
    found = {}
    for row in rows:
        if row["type"] == "S":
            client = clients.get(row["link"], {})
            blamed = int(row["send_avail"]) > 0 or int(client.get("pkt_remain", 0)) > 0
            found[row["id"]] = Sockets(client.get("id", ""), blamed)
    return found
