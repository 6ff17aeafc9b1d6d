"""A database client that runs in a pod of the cluster and takes orders as JSON lines on its standard input.

Each order is answered by a line with the same id, as soon as it is done: several run side by side. This file
is given to the Python of the operator's image, which has psycopg, so it imports nothing of the project.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

CONNECT_SECONDS = 6
_sessions: dict[str, psycopg.Connection[Any]] = {}
_loads: dict[str, Load] = {}
_output = threading.Lock()


class Load:
    """Workers that run small transactions, each on a connection of its own, and count what happens."""

    def __init__(self, dsn: str, workers: int) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.succeeded = 0
        self.failures: list[str] = []
        self.longest = 0.0
        self._threads = [threading.Thread(target=self._work, args=(dsn,)) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def _work(self, dsn: str) -> None:
        connection = None
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                if connection is None or connection.closed:
                    connection = psycopg.connect(dsn, connect_timeout=CONNECT_SECONDS)
                with connection.transaction():
                    connection.execute("SELECT txid_current()")
                    connection.execute("SELECT count(*) FROM pg_class")
            except psycopg.Error as error:
                with self._lock:
                    self.failures.append(f"{type(error).__name__}: {error}".strip().replace("\n", " "))
                if connection is not None:
                    connection.close()
                time.sleep(0.05)
            else:
                with self._lock:
                    self.succeeded += 1
                    self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(0.02)
        if connection is not None:
            connection.close()

    def stop(self) -> dict[str, Any]:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.figures()

    def figures(self) -> dict[str, Any]:
        with self._lock:
            failures = {"failed": len(self.failures), "failures": self.failures[:5]}
            return {"succeeded": self.succeeded, "longest": self.longest, **failures}


def connect(dsn: str, *, console: bool = False, prepare: int | None = None) -> psycopg.Connection[Any]:
    connection = psycopg.connect(
        dsn,
        autocommit=True,
        connect_timeout=CONNECT_SECONDS,
        # PgBouncer's console knows the simple protocol only.
        cursor_factory=psycopg.ClientCursor if console else psycopg.Cursor,
    )
    if prepare is not None:
        connection.prepare_threshold = prepare
    return connection


def query(connection: psycopg.Connection[Any], sql: str, parameters: list[Any] | None = None) -> Any:
    cursor = connection.execute(sql.encode(), parameters)
    if cursor.description is None:
        return []
    names = [column.name for column in cursor.description]
    return [dict(zip(names, map(str, row), strict=True)) for row in cursor.fetchall()]


def open_session(session: str, dsn: str, console: bool = False, prepare: int | None = None) -> None:
    _sessions[session] = connect(dsn, console=console, prepare=prepare)


def execute(session: str, sql: str, parameters: list[Any] | None = None) -> Any:
    return query(_sessions[session], sql, parameters)


def close_session(session: str) -> None:
    _sessions.pop(session).close()


def once(dsn: str, sql: str, console: bool = False) -> Any:
    with connect(dsn, console=console) as connection:
        return query(connection, sql)


def notifications(session: str, seconds: float) -> list[str]:
    return [notify.payload for notify in _sessions[session].notifies(timeout=seconds, stop_after=1)]


def await_setting(sessions: list[str], name: str, value: str, seconds: float) -> float:
    """Epoch seconds of the moment when the last of these consoles showed the setting."""
    deadline = time.monotonic() + seconds
    for session in sessions:
        while {row["key"]: row["value"] for row in execute(session, "SHOW CONFIG")}[name] != value:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{session} does not show {name} = {value} after {seconds:.0f} s")
            time.sleep(0.01)
    return time.time()


def start_load(load: str, dsn: str, workers: int) -> None:
    _loads[load] = Load(dsn, workers)


def load_figures(load: str) -> dict[str, Any]:
    return _loads[load].figures()


def stop_load(load: str) -> dict[str, Any]:
    return _loads.pop(load).stop()


_ORDERS: dict[str, Callable[..., Any]] = {
    order.__name__: order
    for order in (
        open_session,
        execute,
        close_session,
        once,
        notifications,
        await_setting,
        start_load,
        load_figures,
        stop_load,
    )
}


def obey(order: dict[str, Any]) -> None:
    answer: dict[str, Any]
    try:
        answer = {"result": _ORDERS[order["order"]](**order["arguments"])}
    except Exception as error:  # whatever it is, the test is to see it
        answer = {
            "error": type(error).__name__,
            "message": str(error),
            "sqlstate": getattr(error, "sqlstate", None),
        }
    with _output:
        print(json.dumps({"id": order["id"], **answer}), flush=True)


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        threading.Thread(target=obey, args=(json.loads(line),), daemon=True).start()
