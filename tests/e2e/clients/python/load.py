"""Steady transactions over whatever library a program brings, counted one by one and served as JSON.

POOL_SIZE                 connections of the program's pool (5)
TRANSACTIONS_PER_SECOND   of the whole program (50)
PORT                      GET / gives the counters, POST /reset sets them to zero (8080)
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

POOL_SIZE = int(os.environ.get("POOL_SIZE", "5"))
PERIOD_SECONDS = POOL_SIZE / float(os.environ.get("TRANSACTIONS_PER_SECOND", "50"))
THINK_SECONDS = 0.01
SHOWN_CHARACTERS = 200
MOST_CLASSES = 10

CLIENT = os.environ.get("HOSTNAME", "local")
"""What a row of the table is kept under: pods have names of their own, so programs don't meet in a row."""
_PASSWORD = urlsplit(os.environ.get("DATABASE_URL", "")).password or ""
_STARTED = time.time()


class LostCommit(Exception):
    """A balance is less than what was committed before."""


@dataclass(frozen=True)
class Operations:
    """What a program brings: the first two return the balance of (client, worker)."""

    transaction: Callable[[str, int], int]
    prepared: Callable[[str, int], int]
    single: Callable[[int], Any]


class Counters:
    """Everything that is counted, under one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.running: dict[int, float] = {}
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self._values: dict[str, Any] = {"committed": 0, "failed": 0, "uncaught": 0, "longest_seconds": 0.0}
            self._errors: dict[str, dict[str, Any]] = {}

    def done(self, took: float, error: BaseException | None) -> None:
        with self._lock:
            self._values["committed" if error is None else "failed"] += 1
            self._values["longest_seconds"] = max(self._values["longest_seconds"], took)
            if error is not None:
                self._note(error)

    def uncaught(self, error: BaseException | None) -> None:
        with self._lock:
            self._values["uncaught"] += 1
            self._note(error or RuntimeError("an exception without a value"))

    def document(self) -> dict[str, Any]:
        now = time.monotonic()
        oldest = max((now - began for began in list(self.running.values())), default=0.0)
        with self._lock:
            return {
                "client": CLIENT,
                "started": _STARTED,
                **self._values,
                "errors": self._errors,
                "oldest_seconds": oldest,
            }

    def _note(self, error: BaseException) -> None:
        while error.__cause__ is not None:  # the innermost names the fault
            error = error.__cause__
        kind = " ".join(filter(None, (type(error).__name__, getattr(error, "sqlstate", None))))
        if kind in self._errors:
            self._errors[kind]["count"] += 1
        elif len(self._errors) < MOST_CLASSES:
            at = datetime.now(UTC).isoformat()
            self._errors[kind] = {"count": 1, "first": _shown(error), "at": at}


def _shown(error: BaseException) -> str:
    """An error's text; a library may quote its URL."""
    text = " ".join(str(error).split())[:SHOWN_CHARACTERS]
    for password in filter(None, (_PASSWORD, unquote(_PASSWORD))):
        text = text.replace(password, "***")
    return text


def think() -> None:
    """What an app does between two statements of a transaction."""
    time.sleep(THINK_SECONDS)


def run(operations: Operations) -> None:
    """Run until SIGTERM."""
    counters = Counters()
    # An app may have ended here. This one counts it and goes on, so that it can be counted again.
    threading.excepthook = lambda arguments: counters.uncaught(arguments.exc_value)
    sys.unraisablehook = lambda arguments: counters.uncaught(arguments.exc_value)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    for worker in range(POOL_SIZE):
        threading.Thread(target=_work, args=(operations, worker, counters), daemon=True).start()
    ThreadingHTTPServer(("", int(os.environ.get("PORT", "8080"))), _handler(counters)).serve_forever()


def _work(operations: Operations, worker: int, counters: Counters) -> None:
    known = number = 0
    due = time.monotonic()
    while True:
        began = counters.running[worker] = time.monotonic()
        failure = None
        try:
            known = _one(operations, worker, number, known)
        except Exception as error:
            failure = error
        del counters.running[worker]
        counters.done(time.monotonic() - began, failure)
        number += 1
        # Workers stay in step, so that every connection of the pool is in use at once; a late one
        # doesn't hurry.
        due = max(due + PERIOD_SECONDS, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def _one(operations: Operations, worker: int, number: int, known: int) -> int:
    """One of five is a query by itself, one a prepared statement, the others are transactions."""
    if number % 5 == 3:
        operations.single(worker)
    elif number % 5 == 4:
        operations.prepared(CLIENT, worker)
    else:
        balance = operations.transaction(CLIENT, worker)
        # Every committed transaction added one: whoever reads less than before has lost a commit.
        if balance <= known:
            raise LostCommit(f"balance {balance} after {known}")
        return balance
    return known


def _handler(counters: Counters) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            if self.path == "/reset":
                counters.reset()
            self._answer()

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self) -> None:
            body = (json.dumps(counters.document()) + "\n").encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
