"""The work queue: no key is lost, none runs twice at a time, failures back off."""

import asyncio
import itertools
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolkeeper import queue
from poolkeeper.queue import Queue, RetryLater


async def drain(worked: Queue[str], seconds: float = 5.0) -> None:
    """Let the queue run until it is idle."""
    runner = asyncio.create_task(worked.run())
    try:
        async with asyncio.timeout(seconds):
            while not worked.idle:
                await asyncio.sleep(0)
    finally:
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)


async def test_a_key_added_many_times_before_it_runs_runs_once() -> None:
    runs: Counter[str] = Counter()

    async def work(key: str) -> None:
        runs[key] += 1

    worked = Queue(work, concurrency=2)
    for _ in range(5):
        worked.add(["a", "b"])
    await drain(worked)
    assert runs == {"a": 1, "b": 1}


async def test_a_key_added_while_it_runs_runs_once_more_and_never_beside_itself() -> None:
    runs = 0
    inside = 0

    async def work(key: str) -> None:
        nonlocal runs, inside
        inside += 1
        assert inside == 1
        runs += 1
        if runs == 1:
            worked.add([key])
            worked.add([key])
        await asyncio.sleep(0.01)
        inside -= 1

    worked = Queue(work, concurrency=4)
    worked.add(["a"])
    await drain(worked)
    assert runs == 2


async def test_what_was_added_before_the_work_caught_up_needs_no_other_run() -> None:
    runs: Counter[str] = Counter()

    async def work(key: str) -> None:
        runs[key] += 1
        worked.add([key])
        worked.caught_up(key)
        if key == "b" and runs[key] == 1:
            worked.add([key])

    worked = Queue(work, concurrency=1)
    worked.add(["a", "b"])
    await drain(worked)
    assert runs == {"a": 1, "b": 2}


async def test_work_that_fails_is_tried_again_with_growing_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "FIRST_DELAY_SECONDS", 0.01)
    delays: list[float] = []
    runs: list[str] = []
    done = asyncio.Event()

    class Told(Queue[str]):
        def add_later(self, key: str, seconds: float) -> None:
            delays.append(seconds)
            super().add_later(key, seconds)

    async def work(key: str) -> None:
        runs.append(key)
        if len(runs) < 5:
            raise RetryLater("not yet")
        done.set()

    worked = Told(work, concurrency=1)
    worked.add(["a"])
    runner = asyncio.create_task(worked.run())
    await asyncio.wait_for(done.wait(), 10)
    runner.cancel()
    assert len(delays) == 4
    assert all(later > earlier * 1.3 for earlier, later in itertools.pairwise(delays))


async def test_one_key_that_always_fails_does_not_keep_others_from_running() -> None:
    runs: Counter[str] = Counter()

    async def work(key: str) -> None:
        runs[key] += 1
        if key == "poison":
            raise RuntimeError("always")

    worked = Queue(work, concurrency=1)
    worked.add(["poison", *map(str, range(100))])
    await drain(worked)
    assert all(runs[str(number)] == 1 for number in range(100))


async def test_keys_of_a_tenant_whose_work_is_slow_hold_up_its_own_only() -> None:
    """Attack 17: processes that accept connections and never answer."""
    began, inside, most = [], 0, 0
    answered = asyncio.Event()

    async def work(key: str) -> None:
        nonlocal inside, most
        began.append(key)
        if key.startswith("slow"):
            inside += 1
            most = max(most, inside)
            await answered.wait()
            inside -= 1

    worked = Queue(work, 8, lambda key: key.partition("/")[0])
    slow = [f"slow/{number}" for number in range(100)]
    worked.add([*slow, "honest/a", "honest/b"])
    runner = asyncio.create_task(worked.run())
    async with asyncio.timeout(5):
        while not {"honest/a", "honest/b"} <= set(began):
            await asyncio.sleep(0)
    assert len(began) == 2 + 8 // 4
    answered.set()
    async with asyncio.timeout(5):
        while not worked.idle:
            await asyncio.sleep(0)
    runner.cancel()
    assert sorted(began) == sorted([*slow, "honest/a", "honest/b"])
    assert most == 8 // 4


async def test_a_sooner_request_wins_over_a_delay_and_a_later_delay_over_none() -> None:
    times: list[float] = []
    loop = asyncio.get_running_loop()

    async def work(key: str) -> None:
        times.append(loop.time())

    worked = Queue(work, concurrency=1)
    runner = asyncio.create_task(worked.run())
    start = loop.time()
    worked.add_later("a", 30)
    worked.add_later("a", 0.05)
    worked.add_later("a", 20)
    await asyncio.sleep(0.2)
    runner.cancel()
    assert len(times) == 1
    assert 0.04 < times[0] - start < 0.2


async def test_the_servers_wish_for_a_delay_is_a_lower_bound() -> None:
    times: list[float] = []
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    async def work(key: str) -> None:
        times.append(loop.time())
        if len(times) == 1:
            raise RetryLater("slow down", after=0.5)
        done.set()

    worked = Queue(work, concurrency=1)
    worked.add(["a"])
    runner = asyncio.create_task(worked.run())
    await asyncio.wait_for(done.wait(), 5)
    runner.cancel()
    assert times[1] - times[0] >= 0.5


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["ok", "again", "fail"])), min_size=1, max_size=40
    ),
    st.integers(1, 9),
    st.sampled_from(["", "ab", "abcd"]),
)
def test_whatever_is_added_the_last_addition_of_every_key_is_seen(
    additions: list[tuple[str, str]], concurrency: int, together: str
) -> None:
    """Level-triggered: after the last addition of a key a whole run of it begins and succeeds."""
    queue_first, queue.FIRST_DELAY_SECONDS = queue.FIRST_DELAY_SECONDS, 0.0

    async def scenario() -> None:
        wanted: dict[str, int] = defaultdict(int)
        seen: dict[str, int] = defaultdict(int)
        fates: dict[str, list[str]] = defaultdict(list)
        running: set[str] = set()

        async def work(key: str) -> None:
            assert key not in running
            running.add(key)
            version = wanted[key]
            await asyncio.sleep(0)
            fate = fates[key].pop(0) if fates[key] else "ok"
            running.discard(key)
            if fate == "fail":
                raise RetryLater("once")
            if fate == "again":
                wanted[key] += 1
                worked.add([key])
            seen[key] = version

        worked = Queue(work, concurrency, lambda key: together if key in together else key)
        runner = asyncio.create_task(worked.run())
        for key, fate in additions:
            wanted[key] += 1
            fates[key].append(fate)
            worked.add([key])
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            while seen != wanted:
                await asyncio.sleep(0.001)
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)

    try:
        asyncio.run(scenario())
    finally:
        queue.FIRST_DELAY_SECONDS = queue_first
