"""What the budget relies on, at a real PgBouncer: each pod includes a table of caps of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest

from poolkeeper.budget import allotments
from poolkeeper.budget.assessment import Look
from poolkeeper.budget.division import Caps
from poolkeeper.budget.protocol import Allotment, Reading
from poolkeeper.consumers.consent import Consumer
from poolkeeper.names import CONSOLE_DATABASE
from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.configuration import POD_FILE
from poolkeeper.pgbouncer.console import Console, ConsoleError
from poolkeeper.plan import peers
from poolkeeper.workers.servers import consoles as pooler_consoles
from poolkeeper.workers.servers.consoles import PoolerConsoles
from tests.pgbouncer.processes import DIRECTORY, TABLE, UID, USER, Pooler, Postgres, pooler
from tests.pgbouncer.shop import API, WEB, Shop


@dataclass
class Pod:
    """A pooler with the table of caps that it was allotted last, if any."""

    shop: Shop
    process: Pooler
    allotment: Allotment | None = None

    def put(self, name: str, text: str) -> None:
        path = self.process.directory / f".{name}"
        path.write_text(text)
        os.chown(path, USER, USER)
        path.rename(self.process.directory / name)

    def allot(self, revision: int, *, arrives: bool = True, **caps: int) -> None:
        """Allot a table: `web` and `session` are the consumer's entries. It may arrive later."""
        names = {"web": self.shop.entry(WEB), "session": self.shop.session_entry(WEB)}
        self.allot_table(revision, {names[entry]: cap for entry, cap in caps.items()}, arrives=arrives)

    def allot_table(self, revision: int, table: Caps, *, arrives: bool = True) -> None:
        """Allot a table with entries of any consumer."""
        self.allotment = Allotment(sum(table.values()), revision, table)
        if arrives:
            self.put(TABLE, allotments.table(self.allotment, self.shop.configuration().lines))
        self.put(POD_FILE, peers.lines(1, f"{DIRECTORY}/{TABLE}"))

    @property
    def asked(self) -> pooler_consoles.Pooler:
        return pooler_consoles.Pooler(UID, self.shop.console(self.process), self.allotment)

    async def look(self, consoles: PoolerConsoles) -> Look:
        found = (await consoles.look([self.asked]))[UID]
        entries = tuple(row for row in found.pools if row["database"] != CONSOLE_DATABASE)
        return replace(found, pools=entries)

    async def shrink(self, consoles: PoolerConsoles, seconds: float = 5.0) -> Look:
        """Have it show its table, and give back what it holds above its caps, as the operator does."""
        assert self.allotment is not None
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = await self.look(consoles)
            caps, held = self.allotment.caps, found.reading.held
            above = tuple(entry for entry in held if held[entry] > caps.get(entry, 0))
            if found.reading.revision == self.allotment.revision and not above:
                await consoles.retire({})
                return found
            await consoles.retire({UID: (self.asked, above)})
            await asyncio.sleep(0.1)
        raise AssertionError(f"still above its caps after {seconds} s: {found}")

    @contextlib.asynccontextmanager
    async def console(self) -> AsyncIterator[Console]:
        async with console.connect(self.shop.console(self.process), 5) as opened:
            yield opened

    def client(self, entry: str | None = None) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(**self.shop.connection(self.process, WEB, entry), connect_timeout=5)


async def setting(opened: Console, name: str) -> str:
    return (await opened.settings())[name]


async def fits(pod: Pod, consoles: PoolerConsoles, entry: str, cap: int, seconds: float) -> bool:
    """Whether it comes to hold no more than that by itself."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (await pod.look(consoles)).reading.held[entry] <= cap:
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.fixture
def pod(shop: Shop, tmp_path: Path) -> Iterator[Pod]:
    with pooler(tmp_path, shop.configuration((WEB,)), cap=None) as process:
        yield Pod(shop, process)


@pytest.fixture
async def consoles() -> AsyncIterator[PoolerConsoles]:
    async with PoolerConsoles() as opened:
        yield opened


@contextlib.contextmanager
def load(pod: Pod, clients: int) -> Iterator[list[str]]:
    """So many clients that never rest; the errors they meet."""
    errors: list[str] = []

    def work(stop: threading.Event) -> None:
        try:
            with pod.client() as connection:
                while not stop.is_set():
                    connection.execute("SELECT pg_sleep(0.002)")
        except psycopg.Error as error:
            errors.append(str(error))

    with in_threads(clients, work):
        yield errors


@contextlib.contextmanager
def in_threads(count: int, work: Callable[[threading.Event], None]) -> Iterator[None]:
    """So many at once, until the block ends: they are told then to stop."""
    stop = threading.Event()
    threads = [threading.Thread(target=work, args=(stop,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


async def test_a_pod_without_a_table_holds_nothing_and_can_be_asked(pod: Pod, consoles: PoolerConsoles) -> None:
    with pytest.raises(psycopg.OperationalError, match="no such database"):
        await asyncio.to_thread(pod.client)
    assert await pod.look(consoles) == Look(Reading(0, {}, {}), frozenset(), ())


async def test_a_look_brings_the_table_and_shows_revision_caps_and_backends(
    pod: Pod, consoles: PoolerConsoles
) -> None:
    web, session = pod.shop.entry(WEB), pod.shop.session_entry(WEB)
    pod.allot(1, web=3, session=1)
    shown = Reading(1, {web: 3, session: 1}, {web: 0, session: 0})
    assert await pod.look(consoles) == Look(shown, frozenset(), ())
    with await asyncio.to_thread(pod.client) as client:
        [pid] = client.execute("SELECT pg_backend_pid()").fetchone() or ()
        pod.allot(2, web=5, session=1)
        look = await pod.look(consoles)
        assert look.reading == Reading(2, {web: 5, session: 1}, {web: 1, session: 0})
        assert look.pids == {pid}
        assert [row["database"] for row in look.pools] == [web]
        assert client.execute("SELECT pg_backend_pid()").fetchone() == (pid,)


async def test_nobody_reloads_a_pooler_that_shows_its_table(pod: Pod, consoles: PoolerConsoles) -> None:
    pod.allot(1, web=3)
    for _ in range(3):
        await pod.look(consoles)
    assert pod.process.log().count("RELOAD command issued") == 1


async def test_a_table_that_has_not_arrived_changes_nothing_in_force(
    pod: Pod, consoles: PoolerConsoles
) -> None:
    web = pod.shop.entry(WEB)
    pod.allot(1, web=3)
    await pod.look(consoles)
    with await asyncio.to_thread(pod.client) as client:
        client.execute("SELECT 1")
        (pod.process.directory / TABLE).unlink()
        pod.allot(2, web=5, arrives=False)
        async with pod.console() as opened:
            with pytest.raises(ConsoleError, match="RELOAD failed"):
                await opened.reload()
        found = await pod.look(consoles)
        # Not allotted any more, so it proves nothing; but it is known what is in force.
        assert (found.reading.revision, found.reading.caps, found.reading.held) == (0, {web: 3}, {web: 1})
        assert client.execute("SELECT 1").fetchone() == (1,)
        pod.allot(2, web=5)
        assert (await pod.look(consoles)).reading == Reading(2, {web: 5}, {web: 1})


async def test_a_table_that_was_read_in_part_proves_nothing(pod: Pod, consoles: PoolerConsoles) -> None:
    web = pod.shop.entry(WEB)
    pod.allot(1, web=3)
    await pod.look(consoles)
    pod.allot(2, web=5)
    whole = (pod.process.directory / TABLE).read_text()
    pod.put(TABLE, whole.replace("[databases]\n", "[databases]\nbroken = host\n"))
    found = (await pod.look(consoles)).reading
    assert (found.revision, found.caps) == (0, {web: 3})
    async with pod.console() as opened:
        assert await setting(opened, "syslog_ident") == "caps-2", "the marker alone is new"


async def test_a_console_that_is_gone_is_left_out_and_found_again(
    pod: Pod, consoles: PoolerConsoles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooler_consoles, "RETRY_SECONDS", 0.2)
    pod.allot(1, web=3)
    await pod.look(consoles)
    other = Pod(pod.shop, Pooler(pod.process.directory, pod.process.port + 1), pod.allotment)
    assert await consoles.look([other.asked]) == {}
    end = time.monotonic() + 3
    while not await consoles.look([pod.asked]):
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def test_a_lowered_cap_leaves_transactions_alone_until_they_end(
    pod: Pod, consoles: PoolerConsoles
) -> None:
    web = pod.shop.entry(WEB)
    pod.allot(1, web=6)
    await pod.look(consoles)
    clients = [await asyncio.to_thread(pod.client) for _ in range(6)]
    for client in clients:
        client.execute("BEGIN")
        client.execute("SELECT 1")
    pod.allot(2, web=2)
    await pod.look(consoles)
    await consoles.retire({UID: (pod.asked, [web])})
    assert not await fits(pod, consoles, web, 5, 1)
    for client in clients[:4]:
        client.execute("COMMIT")
    assert (await pod.shrink(consoles)).reading.held == {web: 2}
    for client in clients[4:]:
        client.execute("SELECT 1")
        client.execute("COMMIT")
    for client in clients:
        client.close()


async def test_a_lowered_cap_is_reached_under_load_and_nobody_notices(
    pod: Pod, consoles: PoolerConsoles
) -> None:
    web = pod.shop.entry(WEB)
    pod.allot(1, web=8)
    await pod.look(consoles)
    with load(pod, 16) as errors:
        end = time.monotonic() + 5
        while (await pod.look(consoles)).reading.held[web] < 8:
            assert time.monotonic() < end
        pod.allot(2, web=2)
        await pod.shrink(consoles)
        async with pod.console() as opened:
            assert await setting(opened, "server_lifetime") == "3600"
        assert not [held for _ in range(30) if (held := (await pod.look(consoles)).reading.held[web]) > 2]
    assert errors == []


async def test_an_operator_that_was_killed_while_connections_retired_is_cleaned_up_after(
    pod: Pod, consoles: PoolerConsoles
) -> None:
    web = pod.shop.entry(WEB)
    pod.allot(1, web=3)
    await pod.look(consoles)
    async with pod.console() as opened:
        await opened.execute("SET server_lifetime = 0")
        await consoles.retire({UID: (pod.asked, [web])})
        assert await setting(opened, "server_lifetime") == "3600"
        await opened.execute("SET server_lifetime = 0")
        pod.allot(2, web=2)
        await pod.look(consoles)
        assert await setting(opened, "server_lifetime") == "3600"


async def test_the_lifetime_that_the_user_chose_is_set_back(
    shop: Shop, tmp_path: Path, consoles: PoolerConsoles
) -> None:
    chosen = shop.configuration((WEB,), parameters={"server_lifetime": "77"})
    with pooler(tmp_path, chosen, cap=None) as process:
        pod = Pod(shop, process)
        pod.allot(1, web=3)
        await pod.look(consoles)
        await consoles.retire({UID: (pod.asked, [shop.entry(WEB)])})
        async with pod.console() as opened:
            assert await setting(opened, "server_lifetime") == "77"


async def test_a_session_keeps_what_it_has_and_gives_it_back_when_it_ends(
    pod: Pod, consoles: PoolerConsoles
) -> None:
    session = pod.shop.session_entry(WEB)
    pod.allot(1, session=2)
    await pod.look(consoles)
    clients = [await asyncio.to_thread(pod.client, session) for _ in range(2)]
    for client in clients:
        client.execute("SELECT 1")
    pod.allot(2, session=1)
    assert not await fits(pod, consoles, session, 1, 1)
    assert [client.execute("SELECT 1").fetchone() for client in clients] == [(1,), (1,)]
    clients[0].close()
    assert await fits(pod, consoles, session, 1, 2)
    assert clients[1].execute("SELECT 1").fetchone() == (1,)
    clients[1].close()


async def test_once_shown_a_cap_is_never_exceeded_on_the_server(
    pod: Pod, server: Postgres, consoles: PoolerConsoles
) -> None:
    user = pod.shop.target.user
    over: list[tuple[int, int]] = []
    samples = 0
    with psycopg.connect(
        host=server.host, port=server.port, user=server.superuser, password=server.password, dbname="postgres"
    ) as watcher:
        watcher.autocommit = True
        pod.allot(1, web=4)
        await pod.look(consoles)
        with load(pod, 12) as errors:
            for number, cap in enumerate((1, 8, 3, 5, 2, 7, 1, 6, 4, 8, 2, 3), start=2):
                pod.allot(number, web=cap)
                await pod.shrink(consoles)
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


# An entry that goes. PgBouncer 1.26 dies of a RELOAD that takes away what somebody is logging in to.


@dataclass
class Removal:
    """A pod with the entries of two consumers, one of which comes and goes."""

    pod: Pod
    consoles: PoolerConsoles
    entry: str
    revision: int = 0

    def _asked(self, *consumers: Consumer) -> pooler_consoles.Pooler:
        config = self.pod.shop.configuration(consumers)
        rules = config.settings["auth_hba_file"]
        return replace(self.pod.asked, rules=rules, entries=frozenset(config.lines))

    async def look(self, *consumers: Consumer) -> Reading:
        """What the pod shows to an operator that wants these consumers."""
        return (await self.consoles.look([self._asked(*consumers)]))[UID].reading

    async def admit(self, *consumers: Consumer) -> None:
        """These may log in from now on, and no others; the table stays as it is."""
        localised = self.pod.process.localised(self.pod.shop.configuration(consumers))
        for name, text in localised.files.items():
            if name not in (TABLE, POD_FILE):
                self.pod.put(name, text)
        async with self.pod.console() as opened:
            await opened.reload()

    async def allot(self, *consumers: Consumer) -> None:
        """The table has the entries of these from now on."""
        self.revision += 1
        self.pod.allot_table(self.revision, {self.pod.shop.entry(consumer): 2 for consumer in consumers})
        assert (await self.look(*consumers)).revision == self.revision

    async def closed(self) -> bool:
        return self.entry in (await self.look(WEB)).closed

    async def wait_closed(self) -> None:
        async with asyncio.timeout(5):
            while not await self.closed():
                await asyncio.sleep(0.02)


@pytest.fixture
async def removal(pod: Pod, consoles: PoolerConsoles) -> Removal:
    made = Removal(pod, consoles, pod.shop.entry(API))
    await made.admit(WEB, API)
    await made.allot(WEB, API)
    return made


@contextlib.contextmanager
def logging_in(pod: Pod) -> Iterator[None]:
    """A client in the middle of its login to the entry that goes."""
    words = {"user": pod.shop.login(API).name, "database": pod.shop.entry(API)}
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in words.items()) + b"\0"
    with socket.create_connection((pod.process.host, pod.process.port), 5) as client:
        client.sendall(struct.pack("!ii", 8 + len(body), 3 << 16) + body)
        assert client.recv(1) == b"R", "the server asks for the password"
        yield


async def test_an_entry_is_closed_once_those_are_through_who_were_logging_in_to_it(removal: Removal) -> None:
    assert not await removal.closed(), "its login is not refused yet"
    with logging_in(removal.pod):
        await removal.admit(WEB)
        for _ in range(2):
            assert not await removal.closed()
        assert not (await removal.look(WEB, API)).closed, "these rules are not those that are wanted"
    await removal.wait_closed()
    await removal.admit(WEB, API)
    assert not await removal.closed()


async def test_an_operator_that_starts_waits_for_whoever_is_logging_in(removal: Removal) -> None:
    async with PoolerConsoles() as another:
        starting = replace(removal, consoles=another)
        with logging_in(removal.pod):
            await removal.admit(WEB)
            assert not await starting.closed()
        await starting.wait_closed()


async def test_an_entry_goes_and_comes_back_under_a_storm_of_logins(removal: Removal) -> None:
    pod, end = removal.pod, time.monotonic() + 10
    with pod.client() as bystander, storm(pod) as outcomes:
        while time.monotonic() < end:
            await removal.admit(WEB)
            await removal.wait_closed()
            await removal.allot(WEB)
            assert removal.entry not in (await removal.look(WEB)).caps
            await removal.allot(WEB, API)
            await removal.admit(WEB, API)
            await asyncio.sleep(0.1)
        assert bystander.execute("SELECT 1").fetchone() == (1,)
    assert pod.process.process is not None
    assert pod.process.process.poll() is None, pod.process.log()[-500:]
    assert removal.revision > 20
    assert {"served", "no authentication method"} <= outcomes


@contextlib.contextmanager
def storm(pod: Pod) -> Iterator[set[str]]:
    """Clients that log in all the time to the entry that goes; what became of them."""
    outcomes: set[str] = set()
    words = ("no authentication method", "no such database", "database removed")

    def work(stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                with psycopg.connect(**pod.shop.connection(pod.process, API), connect_timeout=5) as connection:
                    connection.execute("SELECT 1")
                outcomes.add("served")
            except psycopg.Error as error:
                outcomes.add(next((word for word in words if word in str(error)), str(error)))

    with in_threads(6, work):
        yield outcomes
