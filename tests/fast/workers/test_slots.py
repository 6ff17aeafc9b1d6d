"""A tenant that holds its slots for ever leaves some to others."""

from __future__ import annotations

import asyncio

from poolkeeper.workers.slots import Slots


async def test_a_tenant_gets_half_of_the_slots_at_most() -> None:
    """Attack 17: keepers that accept connections and never answer."""
    slots = Slots(8)
    held: list[str] = []
    answered = asyncio.Event()

    async def change(tenant: str) -> None:
        async with slots.one(tenant):
            held.append(tenant)
            if tenant == "evil":
                await answered.wait()

    tasks = [asyncio.create_task(change("evil")) for _ in range(100)]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await asyncio.gather(*(change("good") for _ in range(20)))
    assert held.count("evil") == 4
    answered.set()
    await asyncio.gather(*tasks)
    assert held.count("evil") == 100


async def test_all_tenants_together_get_no_more_than_there_are() -> None:
    slots, inside, most = Slots(8), 0, 0

    async def change(tenant: str) -> None:
        nonlocal inside, most
        async with slots.one(tenant):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(change(f"{number % 5}") for number in range(100)))
    assert most == 8
