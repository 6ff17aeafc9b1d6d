"""The soak's work in Python. A program reads its job in JSON from its standard input, as those of other
languages do, works until the time is over, checks each answer, and prints one report.

A job has `client`, `urls`, for each of them in `expect` the own schema and in `lifetimes` the seconds after
which the connection is closed for a new one (0: never), `seconds`, and in `pause` the mean seconds between two
steps.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

MOST = 500
MANY = 300
STALE = {"0A000", "08P01"}
"""What a changed table may lead to: a stale plan, and another number of columns. The connection goes on."""


class Client:
    """One connection's work. `failed` and `wrong` are pairs of epoch seconds and text; the reader judges
    what of it is explained."""

    stale: tuple[type[Exception], ...] = ()
    """The library's own errors of that kind."""

    def __init__(self, job: dict[str, Any], index: int) -> None:
        self.job, self.index = job, index
        self.url, self.expected = job["urls"][index], job["expect"][index]
        self.name = f"{job['client']}-{index}"
        self.statements = self.wrongs = 0
        self.failed: list[tuple[float, str]] = []
        self.wrong: list[tuple[float, str]] = []
        self.round = index

    @property
    def steps(self) -> Sequence[Callable[[], Awaitable[None]]]:
        raise NotImplementedError

    @property
    def connected(self) -> bool:
        raise NotImplementedError

    async def connect(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        """Must not raise."""
        raise NotImplementedError

    async def run(self) -> None:
        end = time.monotonic() + self.job["seconds"]
        opened, lifetime = 0.0, self.job["lifetimes"][self.index]
        while time.monotonic() < end:
            try:
                if not self.connected:
                    await self.connect()
                    opened = time.monotonic()
                await self.steps[self.round % len(self.steps)]()
            except Exception as error:  # whatever it is, it is judged later
                self.fails(error)
                if getattr(error, "sqlstate", None) not in STALE and not isinstance(error, self.stale):
                    await self.close()
            if lifetime and self.connected and time.monotonic() - opened > lifetime:
                await self.close()
            await asyncio.sleep(self.job["pause"] * random.uniform(0.5, 1.5))  # noqa: S311
            self.round += 1
        if self.connected:
            await self.close()

    def fails(self, error: Exception) -> None:
        if len(self.failed) < MOST:
            self.failed.append((time.time(), f"{type(error).__name__}: {error}".strip()))

    def check(self, what: str, found: object, expected: object, statements: int = 1) -> None:
        self.statements += statements
        if found != expected:
            self.wrongs += 1
            if len(self.wrong) < MOST:
                self.wrong.append((time.time(), f"{what}: {found!r:.150}, not {expected!r:.150}"))

    def lines(self) -> str:
        """As COPY writes 60 rows of `work`."""
        return "".join(f"{self.name}\t{n}\t{token()}\n" for n in range(60))


def token() -> str:
    return secrets.token_hex(8)


def main(made: Callable[[dict[str, Any], int], Client]) -> None:
    """Run a client for each URL and print the report."""
    job = json.load(sys.stdin)
    clients = [made(job, index) for index in range(len(job["urls"]))]

    async def everyone() -> None:
        await asyncio.gather(*(client.run() for client in clients))

    asyncio.run(everyone())
    report = {
        "statements": sum(client.statements for client in clients),
        "wrong": sum(client.wrongs for client in clients),
        "errors": {},
        "detail": [{"failed": client.failed, "wrong": client.wrong} for client in clients],
    }
    print(json.dumps(report))
