"""Schema changes in the soak, and how long prepared statements fail after each.

Run as ``python -m tests.datapath.soak.recovery``. Connections run a prepared query all the time, more of them
than the poolers have server connections. A change's recovery ends when the query has succeeded on each of them
after its last failure.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.rows import dict_row

TEXT = b"SELECT * FROM public.changing WHERE id = %s"
CHANGES = (
    b"ADD COLUMN extra text DEFAULT 'new'",
    b"DROP COLUMN extra",
    b"DROP COLUMN first, ADD COLUMN first text DEFAULT 'first'",
    b"DROP COLUMN name, ADD COLUMN name text DEFAULT 'one'",
)
"""The last two change the order of the columns, and neither their number nor their types."""
PAUSE_SECONDS = 0.05
LEAST_SECONDS = 8.0
"""After the last change, so that its recovery is seen."""
MOST = 500


class Prober:
    """One connection. `since` is the moment from which on its query has not failed, None while it does."""

    def __init__(self, url: str, lifetime: float) -> None:
        self.url, self.lifetime = url, lifetime
        self.statements = self.wrong = self.stale = 0
        self.failed: list[tuple[float, str]] = []
        self.changed = 0.0
        self.since: float | None = None

    async def run(self, end: float) -> None:
        connection: psycopg.AsyncConnection[Any] | None = None
        opened = 0.0
        while time.time() < end:
            began = time.time()
            try:
                if connection is None:
                    connection = await psycopg.AsyncConnection.connect(
                        self.url, autocommit=True, row_factory=dict_row
                    )
                    opened = time.time()
                cursor = await connection.execute(TEXT, [1], prepare=True)
                row = await cursor.fetchone()
                self.statements += 1
                self.wrong += row is None or row["name"] != "one"
                if self.since is None and began >= self.changed:
                    self.since = time.time()
            except psycopg.errors.FeatureNotSupported:
                self.statements += 1
                self.stale += 1
                self.since = None
            except Exception as error:  # whatever it is, it is judged later
                if len(self.failed) < MOST:
                    self.failed.append((time.time(), f"{type(error).__name__}: {error}".strip()))
                self.since = None
                await close(connection)
                connection = None
            if connection and self.lifetime and time.time() - opened > self.lifetime:
                await close(connection)
                connection = None
            await asyncio.sleep(PAUSE_SECONDS)
        await close(connection)


async def close(connection: psycopg.AsyncConnection[Any] | None) -> None:
    if connection is not None:
        with suppress(psycopg.Error):
            await connection.close()


async def change(
    owner: str, probers: list[Prober], end: float, period: float
) -> list[tuple[float, float, int]]:
    """The schema changes: when each was committed, seconds until all had recovered, failures meanwhile."""
    found: list[tuple[float, float, int]] = []
    async with await psycopg.AsyncConnection.connect(owner, autocommit=True) as connection:
        await asyncio.sleep(LEAST_SECONDS / 2)
        while (began := time.time()) < end - LEAST_SECONDS:
            await connection.execute(b"ALTER TABLE public.changing " + CHANGES[len(found) % len(CHANGES)])
            committed = time.time()
            before = sum(prober.stale for prober in probers)
            for prober in probers:
                prober.changed, prober.since = committed, None
            await asyncio.sleep(max(LEAST_SECONDS, period - (time.time() - began)))
            recovered = max(prober.since or time.time() for prober in probers) - committed
            found.append((committed, recovered, sum(prober.stale for prober in probers) - before))
    return found


async def run(job: dict[str, Any]) -> dict[str, Any]:
    probers = [Prober(url, life) for url, life in zip(job["urls"], job["lifetimes"], strict=True)]
    end = time.time() + job["seconds"]
    changes, *_ = await asyncio.gather(
        change(job["owner"], probers, end, job["period"]), *(prober.run(end) for prober in probers)
    )
    return {
        "statements": sum(prober.statements for prober in probers),
        "wrong": sum(prober.wrong for prober in probers),
        "errors": {},
        "detail": [{"changes": changes}, *({"failed": prober.failed, "wrong": []} for prober in probers)],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.load(sys.stdin)))))
