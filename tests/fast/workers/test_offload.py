"""What is computed in a thread: logins in batches that can be stored, and plans for many consumers."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from poolkeeper.credentials import mint
from poolkeeper.credentials.logins import Login
from poolkeeper.plan.plan import plan
from poolkeeper.workers import offload
from poolkeeper.workers.offload import AT_ONCE, MANY, Offload
from tests.fast.worlds import KEY, NOW, SETTINGS, Simulation, body, login, namespaces


async def test_logins_are_made_in_batches_and_the_next_one_once_that_is_stored() -> None:
    needed = {f"login-{number:03}" for number in range(AT_ONCE + 7)}
    minted: dict[str, Login] = {"poolkeeper": login("poolkeeper")}
    working = Offload()
    await working.mint(needed, minted)
    first = minted.keys() - {"poolkeeper"}
    assert first == set(sorted(needed)[:AT_ONCE])
    kept = dict(minted)
    await working.mint(needed, minted)
    assert minted == kept, "nothing is stored yet"
    await working.mint(needed - first, minted)
    assert minted.keys() - {"poolkeeper"} == needed
    assert all(minted[name] == kept[name] for name in first)


async def test_logins_are_made_outside_of_the_event_loops_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    def slow(name: str) -> Login:
        threads.add(threading.current_thread())
        time.sleep(0.05)
        return login(name)

    monkeypatch.setattr(mint, "mint", slow)
    making = asyncio.create_task(Offload().mint({f"login-{number}" for number in range(10)}, {}))
    steps = 0
    while not making.done():
        await asyncio.sleep(0.01)
        steps += 1
    await making
    assert steps > 10
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("count", [3, MANY])
async def test_a_plan_for_many_consumers_is_computed_in_the_thread(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()

    def watched(*arguments: object) -> object:
        threads.add(threading.current_thread())
        return plan(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(offload, "plan", watched)
    known = namespaces()
    known |= {f"app-{number}": known["web"] for number in range(count - 1)}
    selector = {"namespaceSelector": {"matchLabels": {"tier": "apps"}}}
    world = Simulation(resource=body(consumers=[selector]), namespaces=known).world()
    assert len(world.logins.consumers) == count
    assert await Offload().plan(KEY, world, SETTINGS, NOW) == plan(KEY, world, SETTINGS, NOW)
    assert (threading.current_thread() in threads) == (count < MANY)
