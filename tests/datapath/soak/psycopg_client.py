"""psycopg's part of the soak: ``python -m tests.datapath.soak.psycopg_client``"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg

from tests.datapath.soak.work import MANY, Client, main, token


class Psycopg(Client):
    connection: psycopg.AsyncConnection[Any] | None = None

    @property
    def steps(self) -> Sequence[Callable[[], Awaitable[None]]]:
        return (
            self.own,
            self.transaction,
            self.copies,
            self.changing,
            self.big,
            self.pipeline,
            self.refused,
            self.many,
            self.cursor,
            self.cancelled,
        )

    @property
    def connected(self) -> bool:
        return self.connection is not None

    @property
    def app(self) -> psycopg.AsyncConnection[Any]:
        assert self.connection is not None
        return self.connection

    async def connect(self) -> None:
        self.connection = await psycopg.AsyncConnection.connect(self.url, autocommit=True, prepare_threshold=1)

    async def close(self) -> None:
        if self.connection is not None:
            with suppress(psycopg.Error):
                await self.connection.close()
        self.connection = None

    async def rows(self, text: str, values: Sequence[object] = (), **options: Any) -> list[Any]:
        cursor = await self.app.execute(text.encode(), values or None, **options)
        return await cursor.fetchall()

    async def own(self) -> None:
        for prepare in (True, False):
            mine = token()
            found = await self.rows("SELECT name, %s::text FROM who", [mine], prepare=prepare)
            self.check("own schema", found, [(self.expected, mine)])
        mine = token()
        cursor = psycopg.AsyncClientCursor(self.app)
        await cursor.execute("SELECT name, %s::text FROM who", [mine])
        self.check("own schema", await cursor.fetchall(), [(self.expected, mine)])

    async def transaction(self) -> None:
        async with self.app.transaction(force_rollback=True):
            for n in range(3):
                text = "INSERT INTO work VALUES (%s, %s, %s) RETURNING n"
                self.check("insert", await self.rows(text, [self.name, n, token()]), [(n,)])
            found = await self.rows("SELECT count(*) FROM work WHERE client = %s", [self.name])
            self.check("count", found, [(3,)], 3)

    async def copies(self) -> None:
        lines = self.lines()
        async with self.app.transaction(force_rollback=True), self.app.cursor() as cursor:
            async with cursor.copy("COPY work FROM STDIN") as copy:
                await copy.write(lines)
            back = b""
            text = "COPY (SELECT * FROM work WHERE client = %s ORDER BY n) TO STDOUT"
            async with cursor.copy(text, [self.name]) as copy:
                async for part in copy:
                    back += part
            self.check("copy", back.decode(), lines, 4)

    async def changing(self) -> None:
        cursor = await self.app.execute("SELECT * FROM public.changing WHERE id = %s", [1], prepare=True)
        row = await cursor.fetchone()
        names = [column.name for column in cursor.description or ()]
        self.check("changed table", row and dict(zip(names, row, strict=True))["name"], "one")

    async def big(self) -> None:
        mine = token()
        ((text,),) = await self.rows("SELECT repeat(%s::text, 10000)", [mine])
        self.check("big row", text == mine * 10000, True)
        found = await self.rows("SELECT md5(%s::text)", [text])
        self.check("big parameter", found, [(hashlib.md5(text.encode()).hexdigest(),)])  # noqa: S324

    async def pipeline(self) -> None:
        numbers = [random.randrange(2**31) for _ in range(6)]  # noqa: S311
        async with self.app.pipeline():
            cursors = [await self.app.execute("SELECT %s::int8", [number]) for number in numbers]
        for number, cursor in zip(numbers, cursors, strict=True):
            self.check("pipeline", await cursor.fetchall(), [(number,)])

    async def refused(self) -> None:
        try:
            await self.rows("SELECT 1 / %s", [0])
        except psycopg.errors.DivisionByZero:
            self.check("error", True, True)
        else:
            self.check("error", "no error", "22012")
        self.check("after the error", await self.rows("SELECT 1"), [(1,)])

    async def many(self) -> None:
        for _ in range(3):
            which = random.randrange(MANY)  # noqa: S311
            found = await self.rows(f"SELECT {which} + %s::int4", [self.index], prepare=True)
            self.check("many statements", found, [(which + self.index,)])

    async def cursor(self) -> None:
        async with self.app.transaction(), self.app.cursor("portions") as cursor:
            cursor.itersize = 40
            await cursor.execute("SELECT generate_series(1, 100)")
            self.check("cursor", [row[0] async for row in cursor], list(range(1, 101)), 6)

    async def cancelled(self) -> None:
        """A request to cancel may come too late; the statement then ends by itself."""
        if self.round % 3:
            return
        running = asyncio.create_task(self.rows("SELECT pg_sleep(1.5)"))
        await asyncio.sleep(0.1)
        await self.app.cancel_safe(timeout=10)
        with suppress(psycopg.errors.QueryCanceled):
            await running
        self.check("after the cancel", await self.rows("SELECT %s::int4", [1]), [(1,)], 2)


if __name__ == "__main__":
    main(Psycopg)
