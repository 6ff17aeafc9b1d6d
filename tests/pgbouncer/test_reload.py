"""A RELOAD while PgBouncer makes connections to the server: releases up to 1.26.1 do not survive it unaided."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg
import pytest

from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.console import CALM_SECONDS
from tests.pgbouncer import processes
from tests.pgbouncer.processes import Pooler, Postgres, in_thread, pooler
from tests.pgbouncer.shop import WEB, Shop

SSL_REQUEST_BYTES = 8
SLOW_SECONDS = 0.4


@dataclass
class Upstream:
    """A way to the server on which TLS handshakes take their time. Its end may also never answer at all."""

    server_port: int
    answers: bool = True
    port: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            request = await reader.readexactly(SSL_REQUEST_BYTES)
            if not self.answers:
                self.begun.set()
                await reader.read()
                return
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.server_port)
            server_writer.write(request)
            writer.write(await server_reader.readexactly(1))
            hello = await reader.read(65536)
            self.begun.set()
            await asyncio.sleep(SLOW_SECONDS)
            server_writer.write(hello)
            await asyncio.gather(_copied(reader, server_writer), _copied(server_reader, writer))
        writer.close()


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def upstream(shop: Shop, answers: bool = True) -> AsyncIterator[Upstream]:
    made = Upstream(shop.target.port, answers)
    listener = await asyncio.start_server(made.connected, "127.0.0.1", 0)
    async with listener:
        made.port = listener.sockets[0].getsockname()[1]
        yield made


@contextlib.contextmanager
def behind(shop: Shop, way: Upstream, directory: Path) -> Iterator[Pooler]:
    configuration = shop.configuration((WEB,), target=replace(shop.target, port=way.port))
    with pooler(directory, configuration) as running:
        yield running


def asks(shop: Shop, running: Pooler) -> object:
    with psycopg.connect(**shop.connection(running, WEB), connect_timeout=5) as client:
        return client.execute("SELECT 1").fetchone()


async def login_begins(shop: Shop, running: Pooler, way: Upstream) -> asyncio.Task[object]:
    """A client for whom the pooler is just now making a connection to the server."""
    way.begun.clear()
    client = asyncio.create_task(in_thread(asks, shop, running))
    await asyncio.wait_for(way.begun.wait(), 3)
    return client


@pytest.mark.parametrize("sslmode", ["require", "verify-ca"])
async def test_a_reload_meets_no_handshake_with_the_server(
    shop: Shop, server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslmode: str
) -> None:
    """What the process frees is overwritten here at once: else only some such RELOADs would end it."""
    monkeypatch.setitem(processes.ENVIRONMENT, "MALLOC_PERTURB_", "165")
    monkeypatch.setitem(processes.ENVIRONMENT, "GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
    authority = None if sslmode == "require" else (server.directory / "ca.crt").read_text()
    verifying = replace(shop, target=replace(shop.target, sslmode=sslmode, ca=authority))
    async with upstream(verifying) as way:
        with behind(verifying, way, tmp_path) as running:
            async with console.connect(shop.console(running), 3) as opened:
                for _ in range(2):
                    client = await login_begins(shop, running, way)
                    await opened.reload()
                    assert await client == (1,)
                    await opened.execute("RECONNECT")


async def test_a_server_that_never_answers_holds_no_reload_up_for_long(shop: Shop, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with upstream(shop, answers=False) as way:
        with behind(shop, way, tmp_path) as running:
            client = await login_begins(shop, running, way)
            moved = running.write(shop.configuration((WEB,)))
            start = loop.time()
            assert await running.apply(moved, shop.console(running)) is None
            assert CALM_SECONDS <= loop.time() - start < 2 * CALM_SECONDS
            with contextlib.suppress(psycopg.OperationalError):
                await client
            assert await in_thread(asks, shop, running) == (1,)
