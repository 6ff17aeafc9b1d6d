"""A schema that can't be read: what is told, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from poolkeeper.observed.refs import Key
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store.store import Store
from poolkeeper.workers import boundary
from poolkeeper.workers.servers import schemas
from poolkeeper.workers.servers.schemas import SchemaWatch
from poolkeeper.workers.upstream import Unmeasured

KEY = Key("data", "shop")


class Unreadable:
    failure: Exception | None = Unmeasured("permission denied for table pg_proc")

    async def snapshot(self) -> str:
        if self.failure is not None:
            raise self.failure
        return "1:1:"

    async def schema(self) -> str:
        return "0123"


@pytest.mark.parametrize("failure", [Unmeasured("permission denied"), KeyError("of a reading")])
async def test_it_is_a_problem_once_it_lasts_until_it_is_read(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(key: Key) -> None:
        raise AssertionError("no run is expected")

    async def connected() -> Any:
        return meter

    monkeypatch.setattr(schemas, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(boundary, "LASTING_SECONDS", 0.1)
    watch = SchemaWatch(Store(Settings(namespace="poolkeeper", identity="test")), Queue(work, 1))
    meter = Unreadable()
    assert not watch.problem(KEY)
    meter.failure = failure

    async def polls(seconds: float) -> str:
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            watch.poll(KEY, connected)
            await asyncio.sleep(0.01)
        return watch.problem(KEY)

    assert not await polls(0.05)
    said = await polls(0.15)
    assert str(failure).strip("'") in said
    assert "cached plan must not change result type" in said
    meter.failure = None
    assert not await polls(0.1)
    watch.keep(())
