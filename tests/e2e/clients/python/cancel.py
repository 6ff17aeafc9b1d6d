"""Cancels queries in mid-run, argv[1] of them, and prints how many ended by that as a JSON object."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg

AT_ONCE = 5
QUERY_SECONDS = 20
SOON_SECONDS = 5.0


def cancelled(_: int) -> str:
    """Start a long query on a connection of its own, cancel it; returns how it ended."""
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("SELECT 1")
        timer = threading.Timer(0.3, connection.cancel_safe)
        timer.start()
        began = time.monotonic()
        try:
            connection.execute("SELECT pg_sleep(%s)", (QUERY_SECONDS,))
        except psycopg.errors.QueryCanceled:
            took = time.monotonic() - began
            return "cancelled" if took < SOON_SECONDS else f"cancelled after {took:.0f} s"
        except psycopg.Error as error:
            return f"{type(error).__name__}: {error}"
        return "it ran to its end"


if __name__ == "__main__":
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ends = list(pool.map(cancelled, range(int(sys.argv[1]))))
    print(json.dumps({end: ends.count(end) for end in ends}))
