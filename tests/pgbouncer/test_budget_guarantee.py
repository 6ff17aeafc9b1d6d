"""A consumer that floods a pooler cannot take what another one is guaranteed: each entry has its own cap."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from e2e.bench.figures import percentile
from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.configuration import Configuration
from tests.pgbouncer.processes import ENVIRONMENT, USER, Pooler, inside, pooler
from tests.pgbouncer.shop import API, WEB, Shop

FLOOD = 200
"""Clients of the one consumer, none of which ever rests."""
CAPS = {WEB: 8, API: 4}
SHARED = sum(CAPS.values())
CLIENTS = 4
"""Of the other consumer: as many as it has connections."""
QUERIES = 100
PAUSE_SECONDS = 0.01
MOST_SECONDS = 0.1
ENOUGH_SECONDS = 3.0


def shared(shop: Shop, connections: int) -> Configuration:
    """One limit for the user that all entries log in with: the same number of connections, and no caps."""
    return shop.configuration(
        (WEB, API), {"max_user_connections": str(connections), "client_login_timeout": "3"}
    )


@contextlib.contextmanager
def flood(made: Pooler, shop: Shop, directory: Path) -> Iterator[None]:
    """200 clients that want half a second each, again and again."""
    script = directory / "flood.sql"
    script.write_text("SELECT pg_sleep(0.5);\n")
    os.chown(directory, USER, USER)
    words = ["pgbench", "--no-vacuum", "--file=/tmp/flood.sql", f"--client={FLOOD}", "--jobs=2", "--time=120"]
    parameters = shop.connection(made, WEB)
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD"}
    names |= {"dbname": "PGDATABASE", "sslmode": "PGSSLMODE"}
    environment = ENVIRONMENT | {name: str(parameters[key]) for key, name in names.items()}
    process = subprocess.Popen(inside("postgres", directory, *words), env=environment)
    try:
        yield
        assert process.poll() is None, "the flood has ended before its time"
    finally:
        process.kill()
        process.wait()


def waits(made: Pooler, shop: Shop) -> list[float]:
    """Seconds that each query of the other consumer took; infinite where a client was not let in at all."""

    def work(_: int) -> list[float]:
        took: list[float] = []
        try:
            connection = psycopg.connect(**shop.connection(made, API))
        except psycopg.OperationalError as error:
            if "client_login_timeout" not in str(error):
                raise
            return [math.inf]
        with connection:
            while len(took) < QUERIES and sum(took) < ENOUGH_SECONDS:
                began = time.monotonic()
                connection.execute("SELECT 1")
                took.append(time.monotonic() - began)
                time.sleep(PAUSE_SECONDS)
        return took

    with ThreadPoolExecutor(CLIENTS) as threads:
        return [seconds for each in threads.map(work, range(CLIENTS)) for seconds in each]


async def flooded_with(made: Pooler, shop: Shop, connections: int) -> bool:
    """Whether the flood has so many connections at work, and the rest of its clients wait."""
    async with console.connect(shop.console(made), 5) as opened:
        pools = {row["database"]: row for row in await opened.show("POOLS")}
    web = pools.get(shop.entry(WEB), {"cl_active": "0", "cl_waiting": "0"})
    return (int(web["cl_active"]), int(web["cl_waiting"])) == (connections, FLOOD - connections)


@pytest.mark.parametrize("kept", [True, False], ids=["caps", "one limit for all"])
async def test_a_flood_takes_nothing_of_another_consumer_s_guarantee(
    shop: Shop, tmp_path: Path, kept: bool
) -> None:
    """Without caps the same flood has the other consumer wait: so this test can tell."""
    for part in ("pooler", "flood"):
        (tmp_path / part).mkdir()
    configuration = shop.configuration(CAPS) if kept else shared(shop, SHARED)
    caps = {shop.entry(consumer): cap for consumer, cap in CAPS.items()} if kept else SHARED
    with pooler(tmp_path / "pooler", configuration, caps) as made:
        with flood(made, shop, tmp_path / "flood"):
            end = time.monotonic() + 10
            while not await flooded_with(made, shop, CAPS[WEB] if kept else SHARED):
                assert time.monotonic() < end, "the flood does not come"
            flooded = percentile(waits(made, shop), 99)
        idle = percentile(waits(made, shop), 99)
    print(f"p99 beside the flood {1000 * flooded:.1f} ms, without it {1000 * idle:.1f} ms")
    # A machine that is busy with something else makes everybody wait.
    assert (flooded < max(MOST_SECONDS, 5 * idle)) == kept
