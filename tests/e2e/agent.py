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
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import psycopg

CONNECT_SECONDS = 6
CONSOLE_SECONDS = 0.5
VANISHED_MS = 2000
MOST_CONSOLES = 24
LIMITS = "max_connections", "superuser_reserved_connections", "reserved_connections"
ACTIVITY = """SELECT pid, extract(epoch FROM backend_start)::float8, coalesce(usename, ''),
    coalesce(rolsuper, false), coalesce(host(client_addr), ''), coalesce(client_port, 0), application_name
  FROM pg_stat_activity LEFT JOIN pg_roles ON pg_roles.oid = usesysid
 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"""
_sessions: dict[str, psycopg.Connection[Any]] = {}
_loads: dict[str, Load] = {}
_samplers: dict[str, Sampler] = {}
_output = threading.Lock()


class Load:
    """Workers that run small transactions, each on a connection of its own, and count what happens."""

    def __init__(self, dsn: str, workers: int, work: str) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.succeeded = 0
        self.failures: list[str] = []
        self.longest = 0.0
        self._threads = [threading.Thread(target=self._work, args=(dsn, work)) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def _work(self, dsn: str, work: str) -> None:
        connection = None
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                if connection is None or connection.closed:
                    connection = psycopg.connect(dsn, connect_timeout=CONNECT_SECONDS)
                with connection.transaction():
                    connection.execute("SELECT txid_current()")
                    connection.execute(work.encode())
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


class Sampler:
    """Writes down again and again who is connected to a server, and right afterwards what poolers' consoles
    show. Backends are numbered in the record, and a console's caps are in it when they change."""

    def __init__(self, dsn: str, period: float) -> None:
        self._dsn, self._period = dsn, period
        self._stop = threading.Event()
        self._consoles: dict[str, psycopg.Connection[Any] | None] = {}
        self._asked: dict[str, Future[Any]] = {}
        self._opening: set[str] = set()
        self._leaving: dict[str, psycopg.Connection[Any]] = {}
        self._numbers: dict[tuple[Any, ...], int] = {}
        self.caps: dict[str, dict[str, int]] = {}
        self._limits: list[Any] = []
        self._samples: list[Any] = []
        self._tables: list[Any] = []
        self._threads = ThreadPoolExecutor(MOST_CONSOLES)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def watch(self, consoles: dict[str, str]) -> None:
        """Ask these consoles from now on, given as connection strings by address, and no others; those with an
        empty one belong to poolers too, but are left alone."""
        for address in self._consoles.keys() - consoles.keys():
            self._consoles.pop(address)
            self.caps.pop(address, None)
        for address, dsn in consoles.items():
            if not dsn:
                self.caps.pop(address, None)
                opened, self._consoles[address] = self._consoles.get(address), None
                if opened is not None:
                    self._leaving[address] = opened
            elif self._consoles.setdefault(address, None) is None and address not in self._opening:
                self._opening.add(address)
                self._threads.submit(self._open, address, dsn)

    def stop(self) -> dict[str, Any]:
        self._stop.set()
        self._thread.join()
        self._threads.shutdown()
        for connection in filter(None, self._consoles.values()):
            connection.close()
        found = {"limits": self._limits, "samples": self._samples, "tables": self._tables}
        return {**found, "backends": [*self._numbers]}

    def _run(self) -> None:
        server, due = None, time.monotonic()
        while not self._stop.is_set():
            try:
                if server is None or server.closed:
                    server = psycopg.connect(self._dsn, autocommit=True, connect_timeout=CONNECT_SECONDS)
                    found = [server.execute(f"SHOW {name}".encode()).fetchone() for name in LIMITS]
                    self._limits.append([time.time(), *(int(row[0]) for row in found if row)])
                rows = server.execute(ACTIVITY.encode()).fetchall()
            except (
                psycopg.Error
            ):  # the server is being restarted; that samples are missing is seen by their times
                time.sleep(self._period)
                continue
            at = time.time()
            backends = [self._numbers.setdefault(row, len(self._numbers)) for row in rows]
            self._samples.append([at, backends, self._read_consoles(at)])
            due = max(due + self._period, time.monotonic())
            self._stop.wait(due - time.monotonic())
        if server is not None:
            server.close()

    def _read_consoles(self, at: float) -> dict[str, Any]:
        """The server connections on each console, None where it doesn't answer in time."""
        for address, leaving in [*self._leaving.items()]:
            if address not in self._asked or self._asked[address].done():  # nobody reads from it
                leaving.close()
                del self._leaving[address]
        found: dict[str, Any] = dict.fromkeys(self._consoles)
        for address, connection in [*self._consoles.items()]:
            if connection is not None and (address not in self._asked or self._asked[address].done()):
                self._asked[address] = self._threads.submit(self._read, connection)
        asked = {
            address: self._asked[address]
            for address in found
            if address in self._asked and self._consoles.get(address) is not None
        }
        wait(asked.values(), CONSOLE_SECONDS)
        for address, future in asked.items():
            if not future.done():
                continue
            if future.exception() is not None:
                self._consoles[address] = None
                del self._asked[address]
                continue
            found[address], caps = future.result()
            if self._consoles.get(address) is None:
                continue
            if self.caps.get(address) != caps:
                self.caps[address] = caps
                self._tables.append([at, address, caps])
        return found

    def _read(self, connection: psycopg.Connection[Any]) -> Any:
        servers, databases = query(connection, "SHOW SERVERS"), query(connection, "SHOW DATABASES")
        links = [[int(row["remote_pid"]), int(row["local_port"]), row["state"]] for row in servers]
        caps = {row["name"]: int(row["max_connections"]) for row in databases if row["name"] != "pgbouncer"}
        return links, caps

    def _open(self, address: str, dsn: str) -> None:
        try:
            # A pod that vanished with its network answers nothing, not even that it is gone.
            opened = connect(f"{dsn}?tcp_user_timeout={VANISHED_MS}", console=True)
            if address in self._consoles:
                self._consoles[address] = opened
        except psycopg.Error:
            pass  # it isn't up yet, or no more; the next watch() tries again
        finally:
            self._opening.discard(address)


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


def start_load(load: str, dsn: str, workers: int, work: str) -> None:
    _loads[load] = Load(dsn, workers, work)


def load_figures(load: str) -> dict[str, Any]:
    return _loads[load].figures()


def stop_load(load: str) -> dict[str, Any]:
    return _loads.pop(load).stop()


def start_sampler(sampler: str, dsn: str, period: float) -> None:
    _samplers[sampler] = Sampler(dsn, period)


def watch_consoles(sampler: str, consoles: dict[str, str]) -> None:
    _samplers[sampler].watch(consoles)


def sampled_caps(sampler: str) -> dict[str, dict[str, int]]:
    return dict(_samplers[sampler].caps)


def stop_sampler(sampler: str) -> dict[str, Any]:
    return _samplers.pop(sampler).stop()


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
        start_sampler,
        watch_consoles,
        sampled_caps,
        stop_sampler,
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
