"""Cancels queries in mid-run, argv[1] of them, and prints how many ended by that as a JSON object."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

AT_ONCE = 5
QUERY_SECONDS = 20
SOON_SECONDS = 5.0
RUNNING = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = %s"


def connect() -> psycopg.Connection[Any]:
    return psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)


def cancelled(number: int) -> str:
    """Start a long query on a connection of its own, cancel it once it runs; returns how it ended."""
    query = f"SELECT pg_sleep({QUERY_SECONDS}), {number}"
    asked: list[float] = []

    def cancel() -> None:
        """Not earlier: what has not begun can't be cancelled, not at PostgreSQL itself either."""
        with connect() as other:
            while other.execute(RUNNING, (query,)).fetchone() == (0,):
                time.sleep(0.05)
        asked.append(time.monotonic())
        connection.cancel_safe()

    with connect() as connection:
        canceller = threading.Thread(target=cancel, daemon=True)
        canceller.start()
        try:
            connection.execute(query.encode())
        except psycopg.errors.QueryCanceled:
            took = time.monotonic() - asked[0]
            return "cancelled" if took < SOON_SECONDS else f"cancelled after {took:.0f} s"
        except psycopg.Error as error:
            return f"{type(error).__name__}: {error}"
        return "it ran to its end"


if __name__ == "__main__":
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ends = list(pool.map(cancelled, range(int(sys.argv[1]))))
    print(json.dumps({end: ends.count(end) for end in ends}))
