"""The tests' end of the agent (see ``agent.py``): orders go to a pod, answers come back as futures."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from e2e.kube import argv, environment

Row = dict[str, str]
_ANSWER_SECONDS = 60.0


class QueryError(Exception):
    """What the agent's client library raised; the message is the server's or the library's."""

    def __init__(self, kind: str, message: str, sqlstate: str | None) -> None:
        super().__init__(f"{kind}: {message}")
        self.sqlstate = sqlstate


class Agent:
    """A database client in the cluster."""

    def __init__(self, namespace: str, pod: str) -> None:
        self.namespace, self.pod = namespace, pod
        program = (Path(__file__).parent / "agent.py").read_text()
        self._process = subprocess.Popen(
            argv("kubectl", "-n", namespace, "exec", "-i", pod, "--", "python", "-u", "-c", program),
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            assert self._process.stderr is not None
            raise RuntimeError(f"the agent did not start: {self._process.stderr.read()}")
        self._ids = itertools.count()
        self._open: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def start(self, order: str, **arguments: Any) -> Future[Any]:
        """Give an order and go on; the future has the answer."""
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._ids)
            self._open[number] = future
            assert self._process.stdin is not None
            line = json.dumps({"id": number, "order": order, "arguments": arguments})
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return future

    def call(self, order: str, **arguments: Any) -> Any:
        """Give an order and wait for the answer. Raises QueryError."""
        return self.start(order, **arguments).result(_ANSWER_SECONDS)

    def query(self, dsn: str, sql: str) -> list[Row]:
        """One query on a fresh connection."""
        rows: list[Row] = self.call("once", dsn=dsn, sql=sql)
        return rows

    def query_soon(self, dsn: str, sql: str, within: float) -> list[Row]:
        """The same, tried again until it succeeds or ``within`` seconds have passed."""
        deadline = time.monotonic() + within
        while True:
            try:
                return self.query(dsn, sql)
            except QueryError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            future = self._open.pop(answer["id"])
            if "error" in answer:
                future.set_exception(QueryError(answer["error"], answer["message"], answer["sqlstate"]))
            else:
                future.set_result(answer["result"])
        for future in self._open.values():
            future.set_exception(RuntimeError("the agent's pod is gone"))


class Session:
    """One connection that stays open, as a context manager."""

    _names = itertools.count()

    def __init__(self, agent: Agent, dsn: str, *, console: bool = False, prepare: int | None = None) -> None:
        self.name = f"session-{next(self._names)}"
        self._agent = agent
        agent.call("open_session", session=self.name, dsn=dsn, console=console, prepare=prepare)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._agent.call("close_session", session=self.name)

    def execute(self, sql: str, parameters: list[Any] | None = None) -> list[Row]:
        return self.start(sql, parameters).result(_ANSWER_SECONDS)

    def start(self, sql: str, parameters: list[Any] | None = None) -> Future[list[Row]]:
        return self._agent.start("execute", session=self.name, sql=sql, parameters=parameters)

    def notifications(self, seconds: float) -> list[str]:
        found: list[str] = self._agent.call("notifications", session=self.name, seconds=seconds)
        return found


class Load:
    """Transactions that go on while something else happens; ``figures`` after the block says how they went."""

    _names = itertools.count()

    def __init__(
        self, agent: Agent, dsn: str, workers: int = 4, work: str = "SELECT count(*) FROM pg_class"
    ) -> None:
        self._agent = agent
        self._name = f"load-{next(self._names)}"
        self._dsn, self._workers, self._work = dsn, workers, work
        self.figures: dict[str, Any] = {}

    def __enter__(self) -> Load:
        self._agent.call("start_load", load=self._name, dsn=self._dsn, workers=self._workers, work=self._work)
        self.more()
        return self

    def __exit__(self, *_: object) -> None:
        self.figures = self._agent.call("stop_load", load=self._name)
        print(f"load: {self.figures}")

    def more(self, transactions: int = 20, within: float = 20.0) -> None:
        """Wait until so many more transactions have succeeded."""
        goal = self._succeeded() + transactions
        deadline = time.monotonic() + within
        while self._succeeded() < goal:
            assert time.monotonic() < deadline, f"the load stands still: {self.now()}"
            time.sleep(0.05)

    def now(self) -> dict[str, Any]:
        figures: dict[str, Any] = self._agent.call("load_figures", load=self._name)
        return figures

    def _succeeded(self) -> int:
        return int(self.now()["succeeded"])
