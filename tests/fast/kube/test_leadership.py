"""The Lease in a thread of its own: what a blocked event loop does to it, and what a lost Lease to the work."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import pytest

from poolkeeper.kube import leader, leadership
from poolkeeper.kube.client import Cluster, Conflict, Retry
from poolkeeper.kube.leader import LostLease
from poolkeeper.kube.leadership import Leadership
from poolkeeper.observed.refs import Ref
from poolkeeper.settings import Settings

Object = dict[str, Any]


class FakeServer:
    """An API server with one Lease, for clients of any thread."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.answers = True
        self.renewals: list[float] = []
        self._lock = threading.Lock()

    async def connect(self) -> Cluster:
        return cast(Cluster, self)

    async def close(self) -> None:
        pass

    async def get(self, ref: Ref) -> Object | None:
        self._answer()
        with self._lock:
            return None if self.lease is None else {**self.lease, "spec": dict(self.lease["spec"])}

    async def post(self, lease: Object) -> None:
        await self.put({**lease, "metadata": {**lease["metadata"], "resourceVersion": "0"}})

    async def put(self, lease: Object) -> None:
        self._answer()
        with self._lock:
            version = "0" if self.lease is None else self.lease["metadata"]["resourceVersion"]
            if lease["metadata"]["resourceVersion"] != version:
                raise Conflict("Conflict", "outdated")
            metadata = {**lease["metadata"], "resourceVersion": str(int(version) + 1)}
            self.lease = {**lease, "metadata": metadata}
            self.renewals.append(time.monotonic())

    def _answer(self) -> None:
        if not self.answers:
            raise Retry("out of reach")

    @property
    def holder(self) -> str:
        return "" if self.lease is None else self.lease["spec"]["holderIdentity"]


def candidate(server: FakeServer, name: str = "first") -> Leadership:
    connecting: Callable[[], Awaitable[Cluster]] = server.connect
    return Leadership(Settings(namespace="poolkeeper", identity=name), connecting)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture(autouse=True)
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Some times as quick as in a cluster. When the process would have been ended."""
    for module, name, seconds in (
        (leader, "LEASE_SECONDS", 2.4),
        (leader, "RENEW_SECONDS", 1.65),
        (leader, "RETRY_SECONDS", 0.2),
        (leadership, "STOP_SECONDS", 2.25),
        (leadership, "LATE_SECONDS", 0.9),
        (leadership, "_BEAT_SECONDS", 0.05),
        (leadership, "BLOCKED_SECONDS", 6.0),
    ):
        monkeypatch.setattr(module, name, seconds)
    ends: list[float] = []
    monkeypatch.setattr(leadership, "_end", lambda: ends.append(time.monotonic()))
    yield ends
    for thread in threading.enumerate():
        if thread.name == "lease":
            thread.join(5)
            assert not thread.is_alive()


class Work:
    """What a leader does: blocks the event loop for a while, then goes on until it is stopped."""

    def __init__(self, blocks_seconds: float = 0.0) -> None:
        self.began = asyncio.Event()
        self.unblocked = asyncio.Event()
        self.stopped = False
        self._seconds = blocks_seconds

    async def __call__(self) -> None:
        self.began.set()
        try:
            await asyncio.sleep(0.1)
            time.sleep(self._seconds)
            self.unblocked.set()
            await asyncio.Event().wait()
        finally:
            self.stopped = True


async def stop(leading: asyncio.Task[None]) -> None:
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)


async def test_a_blocked_event_loop_does_not_cost_the_lease(server: FakeServer, ended: list[float]) -> None:
    work = Work(blocks_seconds=4.0)
    leading = asyncio.create_task(candidate(server).lead(work))
    await work.began.wait()
    started = time.monotonic()
    await work.unblocked.wait()
    assert time.monotonic() - started >= 4.0
    during = [moment for moment in server.renewals if started + 0.2 < moment < started + 4.0]
    assert len(during) >= 5
    await asyncio.sleep(0.3)
    assert not leading.done()
    assert not ended
    await stop(leading)


async def test_the_lease_is_released_once_the_work_has_stopped(server: FakeServer) -> None:
    work = Work()
    first = candidate(server)
    leading = asyncio.create_task(first.lead(work))
    await work.began.wait()
    assert server.holder == "first"
    assert server.lease is not None
    assert first.term == server.lease["spec"]["leaseTransitions"]
    await stop(leading)
    assert work.stopped
    assert server.holder == ""


async def test_a_candidate_that_never_led_leaves_the_lease_alone(server: FakeServer) -> None:
    leads, waits = Work(), Work()
    first = asyncio.create_task(candidate(server).lead(leads))
    await leads.began.wait()
    second = asyncio.create_task(candidate(server, "second").lead(waits))
    await asyncio.sleep(3.0)
    await stop(second)
    assert server.holder == "first"
    assert not waits.began.is_set()
    await stop(first)


async def test_a_lost_lease_stops_the_work_before_it_runs_out(server: FakeServer, ended: list[float]) -> None:
    work = Work()
    leading = asyncio.create_task(candidate(server).lead(work))
    await work.began.wait()
    server.answers = False
    with pytest.raises(LostLease, match="could not be renewed"):
        await leading
    assert work.stopped
    assert time.monotonic() - server.renewals[-1] < 2.4
    assert not ended


async def test_a_lost_lease_ends_a_process_whose_event_loop_is_blocked(
    server: FakeServer, ended: list[float]
) -> None:
    work = Work(blocks_seconds=4.0)
    leading = asyncio.create_task(candidate(server).lead(work))
    await work.began.wait()
    server.answers = False
    with pytest.raises(LostLease):
        await leading
    assert len(ended) == 1
    assert ended[0] - server.renewals[-1] < 2.4


async def test_work_that_blocks_the_event_loop_for_too_long_gives_the_lease_up(
    server: FakeServer, ended: list[float], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "BLOCKED_SECONDS", 1.0)
    work = Work(blocks_seconds=6.0)
    leading = asyncio.create_task(candidate(server).lead(work))
    await work.began.wait()
    started = time.monotonic()
    with pytest.raises(LostLease, match="has been blocked"):
        await leading
    assert len(ended) == 1
    assert 1.0 <= ended[0] - started < 6.0
    assert server.renewals[-1] < ended[0]
    assert "__call__" in caplog.text, "the log has the stack of what blocks"


async def test_a_failing_connection_ends_the_candidate(server: FakeServer) -> None:
    async def refused() -> Cluster:
        raise Retry("no credentials")

    with pytest.raises(Retry):
        await Leadership(Settings(namespace="poolkeeper", identity="first"), refused).lead(Work())
