"""How long 200 keepers take to leave a pooler: PgBouncer processes, each on a loopback address of its own.

No cluster takes part. The poolers and keepers run as in tests/pgbouncer, the apps and what stands in for the
Service in a process beside this one, so that what is measured is the operator's drain and the processes' part.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from e2e.bench.figures import Figure, median
from e2e.cluster.shell import ClusterError, say
from poolkeeper.upstream.target import Target
from poolkeeper.workers.drain import Departure, Keepers
from tests.pgbouncer.keepers import Balancer, Keeper, Load, clients, keeper
from tests.pgbouncer.processes import Pooler, pooler, postgres
from tests.pgbouncer.shop import Shop

KEEPERS = 200
ROUNDS = 5
PAUSE_SECONDS = 2.0
"""Each app makes one transaction, and then waits so long: it has a connection, and seldom needs it."""
SETTLE_SECONDS = 6.0


def run() -> list[Figure]:
    """Takes about a minute and 3 GB."""
    took, moved, failed, done = asyncio.run(_measure())
    return [
        Figure("move_200_s", median(took), "s", 2.0),
        Figure("move_200_max_s", max(took), "s"),
        Figure("move_200_connections", moved, "connections of each round, at the least"),
        Figure("move_200_failed_tx", failed, f"of {done} transactions", 0),
    ]


async def _measure() -> tuple[list[float], int, int, int]:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)
        for part in ("postgres", "one", "two"):
            (directory / part).mkdir()
        server = stack.enter_context(postgres(directory / "postgres"))
        server.create_role("shop_owner", "owners-password")
        server.create_database("shop")
        shop = Shop(Target(server.host, server.port, "shop", "shop_owner", "owners-password", "require", None))
        configuration = shop.configuration(parameters={"max_client_conn": "2000"})
        poolers = [stack.enter_context(pooler(directory / part, configuration)) for part in ("one", "two")]
        apps = stack.enter_context(_apps())
        balancer = Balancer(port=apps.recv())
        say(f"starting {KEEPERS} keepers")
        keepers = [stack.enter_context(keeper(each, directory, shop, balancer)) for each in range(KEEPERS)]
        apps.send([(item.host, item.port) for item in poolers[:1]])
        apps.send([item.connection() for item in keepers])
        took, moved = [], []
        for turn in range(ROUNDS):
            await asyncio.sleep(SETTLE_SECONDS)
            going, staying = poolers[turn % 2], poolers[1 - turn % 2]
            apps.send([(staying.host, staying.port)])
            apps.recv()
            moved.append(len(await clients(going, shop)))
            took.append(await _move(going, keepers, shop))
            say(f"{moved[-1]} connections left in {took[-1]:.2f} s")
        apps.send(None)
        failed, done = apps.recv()
        return took, min(moved), failed, done


async def _move(going: Pooler, keepers: Sequence[Keeper], shop: Shop) -> float:
    """From the moment that the pooler has left the endpoints until its console shows nobody but ours."""
    seen = [item.seen for item in keepers]
    begun = time.monotonic()
    now = asyncio.get_running_loop().time()
    outcome = await Keepers().drain(Departure(shop.console(going), now - 5, now + 30), lambda: seen)
    if not outcome.empty or outcome.unreached:
        raise ClusterError(f"the pooler did not get empty: {sorted(set(outcome.unreached.values()))[:3]}")
    return time.monotonic() - begun


@contextlib.contextmanager
def _apps() -> Any:
    """The process of apps and Service, as the end of a pipe: it says its port, takes where connections are to
    go, then what the apps connect to, then again where connections are to go; None ends it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve_apps, args=(there,), daemon=True)
    process.start()
    try:
        yield here
    finally:
        here.close()
        process.join(10)
        if process.is_alive():
            process.kill()


def _serve_apps(pipe: Connection) -> None:
    with contextlib.suppress(EOFError):
        asyncio.run(_run_apps(pipe))


async def _run_apps(pipe: Connection) -> None:
    load = Load()
    async with Balancer().running() as balancer, contextlib.AsyncExitStack() as stack:
        pipe.send(balancer.port)
        balancer.serving = await asyncio.to_thread(pipe.recv)
        for parameters in await asyncio.to_thread(pipe.recv):
            await stack.enter_async_context(load.on(1, PAUSE_SECONDS, **parameters))
            await asyncio.sleep(PAUSE_SECONDS / KEEPERS)
        while (serving := await asyncio.to_thread(pipe.recv)) is not None:
            balancer.serving = serving
            pipe.send(None)
    pipe.send((len(load.failures), load.done))
    for failure in load.failures[:3]:
        say(f"failed: {failure}")
