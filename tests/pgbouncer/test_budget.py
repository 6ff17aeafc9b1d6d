"""What the budget relies on, at a real PgBouncer: each pod includes a table of caps of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest

from poolkeeper import console
from poolkeeper.console import Console, ConsoleError
from poolkeeper.desired.pgbouncer_config import INI, POD_FILE
from tests.pgbouncer.processes import DIRECTORY, USER, Pooler, Postgres, pooler
from tests.pgbouncer.shop import WEB, Shop

TABLE = "caps.ini"
_SETTINGS = "\n[pgbouncer]\n"


@dataclass
class Pod:
    """A pooler whose entries lie in a file of its own, which pod.ini includes or not."""

    shop: Shop
    process: Pooler
    lines: Mapping[str, str]
    """By entry name, without caps."""

    def put(self, name: str, text: str) -> None:
        path = self.process.directory / f".{name}"
        path.write_text(text)
        os.chown(path, USER, USER)
        path.rename(self.process.directory / name)

    def allot(self, revision: int, **caps: int) -> None:
        """Write the pod's table: `web` and `session` are the consumer's entries."""
        names = {"web": self.shop.entry(WEB), "session": self.shop.session_entry(WEB)}
        lines = [f"syslog_ident = caps-{revision}", "[databases]"]
        for entry, cap in caps.items():
            lines.append(f"{self.lines[names[entry]]} max_db_connections={cap} pool_size={cap}")
        self.put(TABLE, "\n".join(lines) + "\n")

    def include(self, name: str | None) -> None:
        self.put(POD_FILE, "peer_id = 1\n" + (f"%include {DIRECTORY}/{name}\n" if name else ""))

    @contextlib.asynccontextmanager
    async def console(self) -> Iterator[Console]:  # type: ignore[misc]
        async with console.connect(self.shop.console(self.process), 5) as opened:
            yield opened

    def client(self, entry: str | None = None) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(**self.shop.connection(self.process, WEB, entry), connect_timeout=5)


async def held(opened: Console, entry: str) -> int:
    return next(
        int(row["current_connections"]) for row in await opened.show("DATABASES") if row["name"] == entry
    )


async def caps(opened: Console) -> dict[str, str]:
    return {
        row["name"]: row["max_connections"]
        for row in await opened.show("DATABASES")
        if row["name"] != "pgbouncer"
    }


async def revision(opened: Console) -> str:
    return next(row["value"] for row in await opened.show("CONFIG") if row["key"] == "syslog_ident")


async def fits(opened: Console, entry: str, cap: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if await held(opened, entry) <= cap:
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.fixture
def pod(shop: Shop, tmp_path: Path) -> Iterator[Pod]:
    configuration = shop.configuration((WEB,))
    table, settings = configuration.files[INI].split(_SETTINGS)
    lines = {line.split(" = ")[0]: line for line in table.splitlines()[1:] if line}
    files = {**configuration.files, INI: "[pgbouncer]\n" + settings}
    with pooler(tmp_path, replace(configuration, files=files)) as process:
        yield Pod(shop, process, lines)


@contextlib.contextmanager
def load(pod: Pod, clients: int) -> Iterator[list[str]]:
    """So many clients that never rest; the errors they meet."""
    stop = threading.Event()
    errors: list[str] = []

    def work() -> None:
        try:
            with pod.client() as connection:
                while not stop.is_set():
                    connection.execute("SELECT pg_sleep(0.002)")
        except psycopg.Error as error:
            errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        stop.set()
        for thread in threads:
            thread.join()


async def test_a_pod_without_a_table_holds_nothing_and_can_be_asked(pod: Pod) -> None:
    with pytest.raises(psycopg.OperationalError, match="no such database"):
        await asyncio.to_thread(pod.client)
    async with pod.console() as opened:
        assert await caps(opened) == {}
        assert await revision(opened) == "pgbouncer"


async def test_a_table_comes_with_a_reload_and_shows_its_revision_and_caps(pod: Pod) -> None:
    web, session = pod.shop.entry(WEB), pod.shop.session_entry(WEB)
    async with pod.console() as opened:
        pod.allot(1, web=3, session=1)
        pod.include(TABLE)
        await opened.reload()
        assert (await revision(opened), await caps(opened)) == ("caps-1", {web: "3", session: "1"})
        with await asyncio.to_thread(pod.client) as client:
            before = client.execute("SELECT pg_backend_pid()").fetchone()
            pod.allot(2, web=5, session=1)
            await opened.reload()
            assert (await revision(opened), await caps(opened)) == ("caps-2", {web: "5", session: "1"})
            assert client.execute("SELECT pg_backend_pid()").fetchone() == before
            assert [row["remote_pid"] for row in await opened.show("SERVERS")] == [str(before[0])]  # type: ignore[index]


async def test_a_table_that_is_not_there_yet_changes_nothing_in_force(pod: Pod) -> None:
    async with pod.console() as opened:
        pod.allot(1, web=3)
        pod.include(TABLE)
        await opened.reload()
        with await asyncio.to_thread(pod.client) as client:
            pod.include("missing.ini")
            with pytest.raises(ConsoleError, match="RELOAD failed"):
                await opened.reload()
            assert await caps(opened) == {pod.shop.entry(WEB): "3"}
            assert client.execute("SELECT 1").fetchone() == (1,)


async def test_a_lowered_cap_leaves_transactions_alone_until_they_end(pod: Pod) -> None:
    web = pod.shop.entry(WEB)
    async with pod.console() as opened:
        pod.allot(1, web=6)
        pod.include(TABLE)
        await opened.reload()
        clients = [await asyncio.to_thread(pod.client) for _ in range(6)]
        for client in clients:
            client.execute("BEGIN")
            client.execute("SELECT 1")
        pod.allot(2, web=2)
        await opened.reload()
        assert not await fits(opened, web, 5, 1)
        for client in clients[:4]:
            client.execute("COMMIT")
        assert await fits(opened, web, 2, 2)
        for client in clients:
            client.close()


async def test_a_lowered_cap_is_reached_under_load_by_retiring_connections(pod: Pod) -> None:
    web = pod.shop.entry(WEB)
    async with pod.console() as opened:
        pod.allot(1, web=8)
        pod.include(TABLE)
        await opened.reload()
        with load(pod, 16) as errors:
            while await held(opened, web) < 8:
                await asyncio.sleep(0.02)
            pod.allot(2, web=2)
            await opened.reload()
            await opened.execute("SET server_lifetime = 0")
            assert await fits(opened, web, 2, 2)
            await opened.execute("SET server_lifetime = 3600")
            assert not [count for _ in range(30) if (count := await held(opened, web)) > 2]
        assert errors == []


async def test_a_session_keeps_what_it_has_and_gives_it_back_when_it_ends(pod: Pod) -> None:
    session = pod.shop.session_entry(WEB)
    async with pod.console() as opened:
        pod.allot(1, session=2)
        pod.include(TABLE)
        await opened.reload()
        clients = [await asyncio.to_thread(pod.client, session) for _ in range(2)]
        for client in clients:
            client.execute("SELECT 1")
        pod.allot(2, session=1)
        await opened.reload()
        assert not await fits(opened, session, 1, 1)
        assert [client.execute("SELECT 1").fetchone() for client in clients] == [(1,), (1,)]
        clients[0].close()
        assert await fits(opened, session, 1, 2)
        assert clients[1].execute("SELECT 1").fetchone() == (1,)
        clients[1].close()


async def test_once_shown_a_cap_is_never_exceeded_on_the_server(pod: Pod, server: Postgres) -> None:
    web, user = pod.shop.entry(WEB), pod.shop.target.user
    over: list[tuple[int, int]] = []
    samples = 0
    with psycopg.connect(
        host=server.host, port=server.port, user=server.superuser, password=server.password, dbname="postgres"
    ) as watcher:
        watcher.autocommit = True
        async with pod.console() as opened:
            pod.allot(1, web=4)
            pod.include(TABLE)
            await opened.reload()
            with load(pod, 12) as errors:
                for number, cap in enumerate((1, 8, 3, 5, 2, 7, 1, 6, 4, 8, 2, 3), start=2):
                    pod.allot(number, web=cap)
                    await opened.reload()
                    assert await revision(opened) == f"caps-{number}"
                    await opened.execute("SET server_lifetime = 0")
                    assert await fits(opened, web, cap, 3)
                    await opened.execute("SET server_lifetime = 3600")
                    # A closed connection's backend takes a moment to end.
                    await asyncio.sleep(0.05)
                    for _ in range(20):
                        row = watcher.execute(
                            "SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [user]
                        ).fetchone()
                        assert row is not None
                        samples += 1
                        if row[0] > cap:
                            over.append((cap, row[0]))
                        await asyncio.sleep(0.005)
            assert errors == []
    assert samples == 240
    assert over == []
