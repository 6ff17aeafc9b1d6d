"""Failures of the budget's loop, foreseen or not: each is soon in the status of those whom it concerns."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from poolkeeper.budget.request import BudgetRequest
from poolkeeper.budget.seen import BudgetSeen
from poolkeeper.budget.servers import Identity
from poolkeeper.budget.shares import Pooled
from poolkeeper.kube.client import Retry
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.observed.poolers import Pod
from poolkeeper.observed.refs import Key
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store.store import Store
from poolkeeper.upstream.target import Target
from poolkeeper.workers import boundary
from poolkeeper.workers.servers import loop, meters
from poolkeeper.workers.servers.loop import Budgets
from poolkeeper.workers.servers.meters import Meters
from poolkeeper.workers.upstream import Unmeasured
from tests.fast.worlds import ready_pod

ONE, TWO = Key("a", "shop"), Key("b", "shop")


def order(key: Key, most: int | None = None) -> BudgetRequest:
    pooled = Pooled(f"{key.namespace}/{key.name}", 100, most, 1, (), replaceable=True)
    target = Target(f"{key.namespace}.example", 5432, "shop", "owner", "s3cret", "disable", None)
    access = ConsoleAccess("127.0.0.1", 6432, "", "", "")
    return BudgetRequest(pooled, target, {}, "", frozenset(), access)


class Scene:
    """Two PooledDatabases on two servers of one database cluster. What `failing` has is raised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def work(key: Key) -> None:
            raise AssertionError("no run is expected")

        self.failing: dict[object, Exception] = {}
        self.polls = 0
        self.store = Store(Settings(namespace="poolkeeper", identity="test"))
        self.budgets = Budgets(self.store, Queue(work, 1), lambda: self)  # type: ignore[arg-type, return-value]
        monkeypatch.setattr(Store, "pods", lambda _, key: (ready_pod(1),))
        monkeypatch.setattr(loop, "RETRY_SECONDS", 0.02)
        monkeypatch.setattr(boundary, "_known", set())
        monkeypatch.setattr(Budgets, "_look_where", self._look_where)

    async def _look_where(self, key: Key) -> None:
        if "identify" in self.failing:
            raise self.failing["identify"]
        self.budgets._met(key, "system", f"instance of {key.namespace}")

    async def look(self, system: str, orders: Mapping[Key, BudgetRequest], *_: Any) -> float:
        self.polls += 1
        for key in orders:
            if key in self.failing:
                raise self.failing[key]
            self.store.budgets.put(key, BudgetSeen(server="0a1b2c3d", share=7))
        return 0.02

    async def keep(self, keys: object) -> None:
        if "keep" in self.failing:
            raise self.failing["keep"]

    async def aclose(self) -> None:
        pass

    async def polled(self, times: int = 5) -> None:
        end = self.polls + times
        while self.polls < end:
            await asyncio.sleep(0.01)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    made = Scene(monkeypatch)
    yield made
    tasks = [*made.budgets._tasks.values(), *made.budgets._identifying.values()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def problem(scene: Scene, key: Key) -> str:
    seen = scene.store.budgets.get(key)
    assert seen is not None
    return seen.problem


async def test_a_failing_poll_is_told_by_those_on_that_server_alone_and_logged_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    for key in (ONE, TWO):
        scene.budgets.order(key, order(key))
    await asyncio.wait_for(scene.polled(), 2)
    scene.failing[ONE] = ZeroDivisionError("of a poll")
    await asyncio.wait_for(scene.polled(20), 2)
    seen = scene.store.budgets.get(ONE)
    assert seen is not None
    assert "ZeroDivisionError: of a poll" in seen.problem
    assert seen.share == 7, "what was known is no longer"
    assert not problem(scene, TWO)
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    del scene.failing[ONE]
    await asyncio.wait_for(scene.polled(), 2)
    assert not problem(scene, ONE)


async def test_what_the_api_server_did_not_take_is_no_problem_of_the_server(scene: Scene) -> None:
    scene.budgets.order(ONE, order(ONE))
    await asyncio.wait_for(scene.polled(), 2)
    scene.failing[ONE] = Retry("etcd is busy")
    await asyncio.wait_for(scene.polled(), 2)
    assert not problem(scene, ONE)


async def test_a_failure_before_the_poll_is_told_by_all(scene: Scene) -> None:
    for key in (ONE, TWO):
        scene.budgets.order(key, order(key))
    await asyncio.wait_for(scene.polled(), 2)
    scene.failing["keep"] = KeyError("keep")
    await asyncio.sleep(0.2)
    assert "KeyError" in problem(scene, ONE)
    assert "KeyError" in problem(scene, TWO)


@pytest.mark.parametrize(
    ("failure", "words"),
    [(Unmeasured("no answer within 3 s"), "no answer within 3 s"), (UnicodeError("of a name"), "UnicodeError")],
)
async def test_a_server_that_is_never_identified_is_told_with_the_cause(
    failure: Exception, words: str, scene: Scene
) -> None:
    scene.failing["identify"] = failure
    scene.budgets.order(ONE, order(ONE))
    await asyncio.sleep(0.1)
    assert words in problem(scene, ONE)
    del scene.failing["identify"]
    await asyncio.wait_for(scene.polled(), 2)
    assert not problem(scene, ONE)


async def test_a_limit_that_is_taken_away_leaves_an_unknown_number_and_no_zero_f7(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def unmeasured(*_: object) -> None:
        raise Unmeasured("no such host")

    monkeypatch.setattr(Meters, "_open", unmeasured)
    limited = order(ONE, 10)
    system = meters.given(limited)
    watch = Meters()
    measured, said = await watch.measure(system, {ONE: limited}, {ONE: ""}, lambda *_: None)
    assert measured is not None
    assert measured.max_connections == 10
    assert not said
    assert await watch.measure(system, {ONE: order(ONE)}, {ONE: ""}, lambda *_: None) == (None, "no such host")
    other = replace(limited, pooled=replace(limited.pooled, name="b/shop", most=None))
    both = {ONE: limited, TWO: other}
    assert (await watch.measure(system, both, {ONE: "", TWO: ""}, lambda *_: None))[0] is None


async def test_a_login_that_failed_comes_last_so_that_it_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Key] = []

    class Stalling:
        pid, closed = 1, False

        def __init__(self, key: Key, stalls: bool) -> None:
            self.key, self.stalls = key, stalls

        async def measure(self) -> str:
            asked.append(self.key)
            if self.stalls:
                raise Unmeasured("no answer within 3 s")
            return "measured"

    watch = Meters()

    def opened(key: Key, stalls: bool) -> Any:
        meter: Any = Stalling(key, stalls)
        return meters._Opened(order(key).target, "", contextlib.AsyncExitStack(), meter)

    watch._opened = {ONE: opened(ONE, True), TWO: opened(TWO, False)}
    orders, instances = {ONE: order(ONE), TWO: order(TWO)}, {ONE: "", TWO: ""}
    for _ in range(2):
        measured: Any = await watch.measure("system", orders, instances, lambda *_: None)
        assert measured == ("measured", "")
        watch._opened[ONE] = opened(ONE, True)  # the schema watch opens it again
    assert asked == [ONE, TWO, TWO]


def test_pods_of_a_reported_problem_wait(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: Pod = replace(ready_pod(2), admitted=False)
    monkeypatch.setattr(Store, "pods", lambda _, key: (ready_pod(1), waiting))
    scene.store.budgets.put(ONE, BudgetSeen(server="0a1b2c3d", admissible=frozenset({waiting.uid}), silent="x"))
    scene.budgets._report(ONE, "it failed")
    seen = scene.store.budgets.get(ONE)
    assert seen is not None
    assert seen.waiting == (waiting.name,)
    assert not seen.admissible
    assert not seen.silent


async def test_what_a_server_costs_does_not_depend_on_how_many_there_are(scene: Scene) -> None:
    """The bookkeeping of each poll: 3,000 servers took 10 s of processor time in every second."""
    fleet = [Key("a", f"shop-{number}") for number in range(3000)]
    for number, key in enumerate(fleet):
        scene.budgets._orders[key] = order(key)
        scene.budgets._identities[key] = Identity(f"system-{number}", "instance", 0.0, 0.0)
    began = time.process_time()
    for number, key in enumerate(fleet):
        assert scene.budgets._members(f"system-{number}") == (key,)
        assert scene.budgets._frozen(f"system-{number}") == ()
    assert time.process_time() - began < 0.5
