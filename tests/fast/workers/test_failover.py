"""Poolers that follow their upstream beside the runs: once each, again when it moves again, never too often."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.observed.poolers import Moved
from poolkeeper.observed.refs import Key
from poolkeeper.observed.upstream import Whereabouts
from poolkeeper.pgbouncer.console import ConsoleError
from poolkeeper.plan.addresses import Reconnect
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store.store import Store
from poolkeeper.workers import failover, pooler_tasks
from poolkeeper.workers.background import Background

KEY = Key("data", "shop")
ACCESS = ConsoleAccess("10.0.0.1", 6432, "secret", "shop-pooler.data.svc", "")
NOW = Whereabouts("pg.data.svc", frozenset({"10.9.0.2"}))
ITEM = Reconnect("uid", "shop-pooler-1", ACCESS, NOW, frozenset({"10.9.0.1"}), False, 2.0, serves=True)


@dataclass
class Scene:
    background: Background
    store: Store
    queue: Queue[Key]
    begun: list[Reconnect] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    fault: Exception | None = None

    async def follow(self, item: Reconnect) -> int:
        self.begun.append(item)
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return 0

    def moved(self) -> dict[str, Moved]:
        return self.store.processes.moved


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    async def work(key: Key) -> None:
        raise AssertionError("nobody works here")

    async def annotate(*_: object) -> bool:
        raise AssertionError("nothing is annotated here")

    store, queue = Store(Settings(namespace="poolkeeper", identity="test")), Queue(work, 1)
    made = Scene(Background(store, queue, annotate), store, queue)
    monkeypatch.setattr(failover, "follow", made.follow)
    monkeypatch.setattr(failover, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(pooler_tasks, "RETRY_SECONDS", 0.05)
    return made


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert "secret" not in caplog.text


async def test_asked_for_again_it_goes_on_and_its_end_is_told(scene: Scene) -> None:
    for _ in range(3):
        scene.background.reconnect(KEY, [ITEM])
        await asyncio.sleep(0)
    assert scene.begun == [ITEM]
    scene.background.reconnect(KEY, [replace(ITEM, serves=False)])
    await asyncio.sleep(0.01)
    assert scene.begun == [ITEM], "readiness is no reason to begin again"
    scene.gate.set()
    await asyncio.sleep(0.01)
    assert scene.moved()["uid"].whereabouts == NOW
    assert not scene.queue.idle


async def test_an_upstream_that_moves_again_begins_again_a_moment_later(scene: Scene) -> None:
    scene.background.reconnect(KEY, [ITEM])
    await asyncio.sleep(0.01)
    further = replace(ITEM, whereabouts=replace(NOW, addresses=frozenset({"10.9.0.3"})))
    scene.background.reconnect(KEY, [further])
    await asyncio.sleep(0.01)
    assert scene.begun == [ITEM], "never twice within the pause"
    await asyncio.sleep(0.1)
    assert scene.begun == [ITEM, further]
    scene.gate.set()
    await asyncio.sleep(0.01)
    assert scene.moved()["uid"].whereabouts == further.whereabouts


async def test_what_is_not_wanted_any_more_ends(scene: Scene) -> None:
    scene.background.reconnect(KEY, [ITEM])
    await asyncio.sleep(0.01)
    scene.background.reconnect(KEY, [])
    scene.gate.set()
    await asyncio.sleep(0.01)
    assert scene.moved() == {}


@pytest.mark.parametrize("serves", [True, False])
async def test_a_console_out_of_reach_is_tried_again_where_the_pooler_serves(
    scene: Scene, serves: bool
) -> None:
    scene.fault = ConsoleError("Timeout", "console at 10.0.0.1:6432: no answer within 3 s")
    scene.gate.set()
    scene.background.reconnect(KEY, [replace(ITEM, serves=serves)])
    await asyncio.sleep(0.01)
    assert scene.moved() == {}
    assert scene.queue.idle
    await asyncio.sleep(0.1)
    assert scene.queue.idle != serves
