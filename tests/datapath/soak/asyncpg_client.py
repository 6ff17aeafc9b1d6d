"""asyncpg's part of the soak: ``python -m tests.datapath.soak.asyncpg_client``"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import asyncpg

from tests.datapath.soak.work import MANY, Client, main, token


class Asyncpg(Client):
    connection: asyncpg.Connection | None = None
    stale = (asyncpg.exceptions.ProtocolError,)

    @property
    def steps(self) -> Sequence[Callable[[], Awaitable[None]]]:
        return (
            self.own,
            self.transaction,
            self.copies,
            self.changing,
            self.big,
            self.refused,
            self.many,
            self.cursor,
            self.cancelled,
        )

    @property
    def connected(self) -> bool:
        return self.connection is not None

    @property
    def app(self) -> Any:
        assert self.connection is not None
        return self.connection

    async def connect(self) -> None:
        # It reads no `options` in a URL.
        url, _, _ = self.url.partition("?")
        settings = {} if self.expected == "public" else {"search_path": self.expected}
        self.connection = await asyncpg.connect(url, ssl=False, timeout=60, server_settings=settings)

    async def close(self) -> None:
        if self.connection is not None:
            with suppress(Exception):
                await self.connection.close(timeout=5)
        self.connection = None

    async def own(self) -> None:
        for _ in range(3):
            mine = token()
            found = await self.app.fetchrow("SELECT name, $1::text FROM who", mine)
            self.check("own schema", tuple(found), (self.expected, mine))

    async def transaction(self) -> None:
        transaction = self.app.transaction()
        await transaction.start()
        for n in range(3):
            text = "INSERT INTO work VALUES ($1, $2, $3) RETURNING n"
            self.check("insert", await self.app.fetchval(text, self.name, n, token()), n)
        count = await self.app.fetchval("SELECT count(*) FROM work WHERE client = $1", self.name)
        self.check("count", count, 3, 3)
        await transaction.rollback()

    async def copies(self) -> None:
        lines = self.lines()
        transaction = self.app.transaction()
        await transaction.start()
        await self.app.copy_to_table("work", source=io.BytesIO(lines.encode()))
        back = io.BytesIO()
        text = "SELECT * FROM work WHERE client = $1 ORDER BY n"
        await self.app.copy_from_query(text, self.name, output=back)
        self.check("copy", back.getvalue().decode(), lines, 4)
        await transaction.rollback()

    async def changing(self) -> None:
        row = await self.app.fetchrow("SELECT * FROM public.changing WHERE id = $1", 1)
        self.check("changed table", row and row["name"], "one")

    async def big(self) -> None:
        mine = token()
        text = await self.app.fetchval("SELECT repeat($1::text, 10000)", mine)
        self.check("big row", text == mine * 10000, True)
        right = hashlib.md5(text.encode()).hexdigest()  # noqa: S324
        self.check("big parameter", await self.app.fetchval("SELECT md5($1::text)", text), right)

    async def refused(self) -> None:
        try:
            await self.app.fetchval("SELECT 1 / $1::int4", 0)
        except asyncpg.DivisionByZeroError:
            self.check("error", True, True)
        else:
            self.check("error", "no error", "22012")
        self.check("after the error", await self.app.fetchval("SELECT 1"), 1)

    async def many(self) -> None:
        for _ in range(3):
            which = random.randrange(MANY)  # noqa: S311
            found = await self.app.fetchval(f"SELECT {which} + $1::int4", self.index)
            self.check("many statements", found, which + self.index)

    async def cursor(self) -> None:
        async with self.app.transaction():
            found = [row[0] async for row in self.app.cursor("SELECT generate_series(1, 100)", prefetch=40)]
        self.check("cursor", found, list(range(1, 101)), 5)

    async def cancelled(self) -> None:
        """A request to cancel may come too late; the statement then ends by itself."""
        if self.round % 3:
            return
        with suppress(TimeoutError):
            await self.app.execute("SELECT pg_sleep(1.5)", timeout=0.1)
        self.check("after the cancel", await self.app.fetchval("SELECT $1::int4", 1), 1, 2)


if __name__ == "__main__":
    main(Asyncpg)
