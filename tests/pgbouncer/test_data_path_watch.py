"""Wedges on a real PgBouncer before a real PostgreSQL: noticed, ended one by one, and never seen where there is
none. A relay in between makes them, as a middlebox does that loses an answer.

Fails without the feature: PgBouncer waits for the lost answer for ever, and the pool is smaller by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolkeeper.budget.assessment import Look
from poolkeeper.budget.request import BudgetRequest, ClientBound
from poolkeeper.budget.shares import Pooled
from poolkeeper.consumers.consent import Consumer
from poolkeeper.data_path import findings, wedges
from poolkeeper.observed.data_path import Wedge
from poolkeeper.observed.poolers import Pod
from poolkeeper.observed.refs import Key
from poolkeeper.workers.servers.consoles import Pooler as Asked
from poolkeeper.workers.servers.consoles import PoolerConsoles
from poolkeeper.workers.servers.data_path import DataPathWatch
from poolkeeper.workers.servers.meters import Meters
from tests.datapath import wire
from tests.pgbouncer.processes import DIRECTORY, ENVIRONMENT, Pooler, Postgres, in_thread, inside, pooler
from tests.pgbouncer.relay import LOSE_ANSWER, LOSE_END, Relay, relay
from tests.pgbouncer.shop import API, WEB, Shop

KEY = Key("data", "shop")
POD = "shop-pooler-1"
NOTICED_SECONDS = 15.0
CAP = 4
NAMES = {WEB: "web/database", API: "api/database"}


@dataclass
class Scene:
    """One pooler behind a relay, and the watch as workers/servers/poll.py drives it, once a second."""

    shop: Shop
    running: Pooler
    way: Relay
    consoles: PoolerConsoles = field(default_factory=PoolerConsoles)
    meters: Meters = field(default_factory=Meters)
    reported: list[tuple[float, tuple[Wedge, ...]]] = field(default_factory=list)
    looks: Mapping[str, Look] = field(default_factory=dict)
    system: str = ""
    instance: str = ""

    def order(self) -> BudgetRequest:
        entries = {
            consumer: (self.shop.entry(consumer), self.shop.session_entry(consumer)) for consumer in NAMES
        }
        return BudgetRequest(
            Pooled("data/shop", 100, None, 1, (), replaceable=True),
            # The operator's own way is another one than the poolers'.
            self.shop.target,
            self.shop.configuration().lines,
            "",
            frozenset(self.shop.session_entry(consumer) for consumer in NAMES),
            self.shop.console(self.running),
            None,
            tuple(ClientBound(name, entries[consumer], 100, False) for consumer, name in NAMES.items()),
            {self.shop.entry(consumer): self.shop.login(consumer) for consumer in NAMES},
        )

    def met(self, key: Key, system: str, instance: str) -> None:
        self.system, self.instance = system, instance

    async def watch(self) -> None:
        order = self.order()
        pod = Pod(POD, "uid", self.running.host, True, False, 0, "", "", running=True, admitted=True)
        watch = DataPathWatch(self.consoles)
        try:
            while True:
                looks = self.looks = await self.consoles.look([Asked("uid", order.access, None)])
                instances = {KEY: self.instance}
                measured, _ = await self.meters.measure(self.system, {KEY: order}, instances, self.met)
                opened = partial(self.meters.opened, KEY, self.system, order, self.instance, self.met)
                found, _ = watch.look(KEY, order, [pod], looks, measured, self.instance, opened)
                self.reported.append((time.monotonic(), found))
                await asyncio.sleep(1)
        finally:
            watch.keep(())

    def kinds(self) -> set[str]:
        """All that was ever reported."""
        return {wedge.kind for _, found in self.reported for wedge in found}

    async def until(self, check: Callable[[tuple[Wedge, ...]], bool], seconds: float) -> tuple[Wedge, ...]:
        end = time.monotonic() + seconds
        while not (self.reported and check(self.reported[-1][1])):
            assert time.monotonic() < end, self.reported[-1:]
            await asyncio.sleep(0.05)
        return self.reported[-1][1]

    def connect(self, consumer: Consumer, *, session: bool = False) -> psycopg.Connection[Any]:
        entry = (self.shop.session_entry if session else self.shop.entry)(consumer)
        return psycopg.connect(**self.shop.connection(self.running, consumer, entry), connect_timeout=5)


@pytest.fixture
async def scene(shop: Shop, server: Postgres, tmp_path: Path) -> AsyncIterator[Scene]:
    with relay(server.host, server.port) as way:
        target = replace(shop.target, port=way.port, sslmode="disable")
        with pooler(tmp_path, shop.configuration(target=target), cap=CAP) as running:
            made = Scene(shop, running, way)
            watching = asyncio.create_task(made.watch())
            await made.until(lambda _: True, 10)
            try:
                yield made
                assert not watching.done(), watching.exception()
            finally:
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching
                await made.consoles.keep(())
                await made.meters.keep(())


def bystanders(scene: Scene, stack: contextlib.ExitStack) -> list[psycopg.Connection[Any]]:
    """Clients that hold server connections by right: in a transaction, and in sessions."""
    idle = stack.enter_context(contextlib.closing(scene.connect(API)))
    idle.execute("BEGIN")
    sessions = [
        stack.enter_context(contextlib.closing(scene.connect(consumer, session=True))) for consumer in NAMES
    ]
    for client in (idle, *sessions):
        client.execute("SELECT 1")
    return [idle, *sessions]


def in_background(stack: contextlib.ExitStack, work: Callable[[], Any]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    stack.callback(thread.join)


async def fails(client: psycopg.Connection[Any], statement: bytes) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        await in_thread(client.execute, b"SELECT '" + statement + b"'")
    return str(caught.value)


def pids(server: Postgres) -> set[int]:
    statement = "SELECT pid FROM pg_stat_activity WHERE usename = 'shop_owner'"
    return {pid for (pid,) in server.execute(statement)}


def asked(server: Postgres, statement: bytes) -> int:
    """The backend that ran this last."""
    rows = server.execute("SELECT pid, query FROM pg_stat_activity WHERE usename = 'shop_owner'")
    [pid] = [pid for pid, query in rows if statement.decode() in query]
    return int(pid)


async def test_a_lost_answer_and_a_lost_end_are_noticed_and_end_those_connections_alone(
    scene: Scene, server: Postgres
) -> None:
    with contextlib.ExitStack() as stack:
        others = bystanders(scene, stack)
        lost, gone, third = (stack.enter_context(contextlib.closing(scene.connect(WEB))) for _ in range(3))
        began = time.monotonic()
        one = asyncio.create_task(fails(lost, LOSE_ANSWER))
        other = asyncio.create_task(fails(gone, LOSE_END))
        await asyncio.sleep(1.5)
        kept = pids(server)
        ended, answered = asked(server, LOSE_END), asked(server, LOSE_ANSWER)
        server.execute(f"SELECT pg_terminate_backend({ended})")
        while not (one.done() and other.done()):
            assert third.execute("SELECT 1").fetchone() == (1,)
            assert time.monotonic() - began < NOTICED_SECONDS
            await asyncio.sleep(0.1)
        print(await one, "|", await other)
        both = await scene.until(lambda found: bool(found) and found[0].number == 2, 3)
        noticed = time.monotonic() - began
        print(f"wedge_noticed_s {noticed:.1f}")
        assert noticed < NOTICED_SECONDS
        assert both == (Wedge(findings.STUCK, POD, "web/database", 2),)
        assert kept - pids(server) == {ended, answered}
        for client in (*others, third):
            client.execute("SELECT 1")
        with scene.connect(WEB) as again:
            assert again.execute("SELECT 1").fetchone() == (1,)


async def test_a_way_that_is_dead_for_a_pooler_is_reported_by_its_probe_and_by_clients_that_wait(
    scene: Scene,
) -> None:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(scene.connect(WEB)))
        client.execute("SELECT 1")
        await asyncio.sleep(2)  # probes are answered
        assert not scene.kinds()
        scene.way.dead.set()
        began = time.monotonic()
        stuck = [stack.enter_context(contextlib.closing(scene.connect(WEB))) for _ in range(2)]
        for each in stuck:
            in_background(stack, partial(failing, each))
        stack.callback(scene.way.dead.clear)
        found = await scene.until(
            lambda found: {wedge.kind for wedge in found} >= {findings.PROBE, findings.CLIENTS_WAIT},
            NOTICED_SECONDS,
        )
        print(f"noticed after {time.monotonic() - began:.1f} s: {found}")
        assert {(wedge.pod, wedge.consumer) for wedge in found} == {(POD, "web/database")}


def failing(client: psycopg.Connection[Any]) -> None:
    with contextlib.suppress(psycopg.Error):
        client.execute("SELECT 1")


async def test_a_busy_pool_long_work_and_slow_clients_are_no_wedge(
    scene: Scene, server: Postgres, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        others = bystanders(scene, stack)
        working = stack.enter_context(contextlib.closing(scene.connect(API)))
        in_background(stack, lambda: working.execute("SELECT pg_sleep(28)"))
        writer, reader = (stack.enter_context(by_hand(scene)) for _ in range(2))
        statement = wire.query(f"SELECT length('{'x' * LENGTH}')")
        writer.send(statement[:-LENGTH])
        reader.send(wire.query(f"SELECT repeat('x', {LENGTH})"))
        busy = asyncio.create_task(pgbench(scene, tmp_path, 30))
        received = held = 0
        for _ in range(30):
            received += len(await in_thread(reader.socket.recv, 400_000))
            await asyncio.sleep(1)
            held += states(server, scene) == ["active", "idle", "idle", "idle in transaction"]
        print(f"held by right while the backends were idle: {held} s")
        assert held > wedges.SUSPECT_SECONDS + wedges.EVIDENCE_SECONDS
        print(await busy)
        assert not scene.kinds(), scene.reported
        writer.send(statement[-LENGTH:])
        assert wire.rows(writer.until_ready()) == [(str(LENGTH),)]
        while received < LENGTH and (part := reader.socket.recv(LENGTH)):
            received += len(part)
        assert received > LENGTH
        for client in (*others, working):
            client.execute("SELECT 1")


LENGTH = 16_000_000
"""Bytes that do not fit into the buffers before the reader, but into those on the way to it."""


def states(server: Postgres, scene: Scene) -> list[str]:
    """Of the backends behind the connections that the pooler holds active for API."""
    active = [row for row in scene.looks["uid"].active if row["database"] == scene.shop.entry(API)]
    rows = server.execute("SELECT pid, state FROM pg_stat_activity WHERE usename = 'shop_owner'")
    known = dict(rows)
    return sorted(known.get(int(row["remote_pid"]), "gone") for row in active)


def by_hand(scene: Scene) -> wire.Connection:
    """A client that sends and reads as slowly as the test likes."""
    parameters = scene.shop.connection(scene.running, API)
    made = wire.Connection(parameters["host"], parameters["port"])
    made.login(parameters["user"], parameters["password"], parameters["dbname"], {})
    return made


async def pgbench(scene: Scene, directory: Path, seconds: int) -> str:
    """As many clients as would keep all of the consumer's connections busy; its report."""
    (directory / "busy.sql").write_text("SELECT 1;\n")
    login = scene.shop.login(WEB)
    words = ["pgbench", "--no-vacuum", f"--file={DIRECTORY}/busy.sql", "--client=12", f"--time={seconds}"]
    words += ["--host", scene.running.host, "--port", str(scene.running.port), "--username", login.name]
    process = await asyncio.create_subprocess_exec(
        *inside("postgres", directory, *words, scene.shop.entry(WEB)),
        env={**ENVIRONMENT, "PGPASSWORD": login.password, "PGSSLMODE": "disable"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert "number of failed transactions: 0 " in output.decode()
    return output.decode()
