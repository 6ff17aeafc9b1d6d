"""The protocol by hand in the soak: ``python -m tests.datapath.soak.wire_client``

Lawful sequences are answered as by PostgreSQL itself, byte by byte. Hostile ones run beside them and are
judged by what they do to other clients.

Of the job's `routes` each has a lawful and a hostile client; `direct` is PostgreSQL itself.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from tests.datapath import oracle
from tests.datapath.sequences import LAWFUL, Sequence, hostile, lawful
from tests.datapath.stack import Route
from tests.datapath.wire import Connection, Refused

SEEDS = 8
ANSWER_SECONDS = 60.0
"""Longer than any event holds a transaction up."""
HOSTILE_SECONDS = 1.0
"""Between two hostile sequences of a route, on average."""
MOST = 500

Right = list[tuple[Sequence, oracle.Transcript]]


class Lawful:
    """Sequences over and over on one connection, which has to outlive everything unless `lifetime` ends it."""

    def __init__(self, route: Route, right: Right, lifetime: float) -> None:
        self.route, self.right, self.lifetime = route, right, lifetime
        self.statements = 0
        self.failed: list[tuple[float, str]] = []
        self.wrong: list[tuple[float, str]] = []

    def run(self, seconds: float, pause: float) -> None:
        end, opened = time.monotonic() + seconds, 0.0
        connection: Connection | None = None
        while time.monotonic() < end:
            try:
                if connection is None:
                    connection, opened = self.route.connect(timeout=ANSWER_SECONDS), time.monotonic()
                if not self.play(connection):
                    connection.socket.close()
                    connection = None
            except Exception as error:  # whatever it is, it is judged later
                if len(self.failed) < MOST:
                    self.failed.append((time.time(), f"{self.route.name}: {error!r}"))
                if connection is not None:
                    connection.socket.close()
                connection = None
            if connection and self.lifetime and time.monotonic() - opened > self.lifetime:
                connection.close()
                connection = None
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
        if connection is not None:
            connection.close()

    def play(self, connection: Connection) -> bool:
        """One sequence; whether the connection is good for another."""
        sequence, expected = random.choice(self.right)  # noqa: S311
        got = oracle.play(connection, sequence, ANSWER_SECONDS)
        self.statements += sequence.ready
        difference = oracle.difference(expected, got)
        if not difference:
            return True
        text = f"{self.route.name}: {sequence.name}: {difference}"
        lost = got and got[-1][0] in ("silence", "closed")
        kept = self.failed if lost else self.wrong
        if len(kept) < MOST:
            kept.append((time.time(), text))
        return False


def attack(route: Route, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(Refused):
            oracle.attack(route, hostile(random.randrange(2**31)))  # noqa: S311
        time.sleep(HOSTILE_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311


def answers(direct: Route) -> Right:
    """What PostgreSQL itself answers, each sequence on a connection of its own."""
    found = []
    for kind in LAWFUL:
        for seed in range(SEEDS):
            sequence = lawful(seed, kind)
            connection = direct.connect()
            found.append((sequence, oracle.play(connection, sequence)))
            connection.close()
    return found


def main() -> None:
    job: dict[str, Any] = json.load(sys.stdin)
    right = answers(Route(**job["direct"]))
    routes = [Route(**one) for one in job["routes"]]
    clients = [Lawful(route, right, life) for route, life in zip(routes, job["lifetimes"], strict=True)]
    attackers = [threading.Thread(target=attack, args=(route, job["seconds"])) for route in routes]
    for attacker in attackers:
        attacker.start()
    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(lambda client: client.run(job["seconds"], job["pause"]), clients))
    for attacker in attackers:
        attacker.join()
    report = {
        "statements": sum(client.statements for client in clients),
        "wrong": sum(len(client.wrong) for client in clients),
        "errors": {},
        "detail": [{"failed": client.failed, "wrong": client.wrong} for client in clients],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
