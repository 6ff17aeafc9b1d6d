"""Keepers, and what stands between them and the poolers, as processes of this machine.

Every keeper has a loopback address of its own, from which the poolers also see it come: `Balancer` does what
kube-proxy does with a Service, and leaves the source address as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from poolkeeper.credentials.certificates import issue
from poolkeeper.credentials.logins import Login, keeper_console
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.clients import KeeperConsole
from tests.pgbouncer.processes import DIRECTORY, USER, Pooler, inside, running, wait_until_it_listens
from tests.pgbouncer.shop import WEB, Shop

PORT = 6432
APP = "app"
DATABASE = "shop"
SESSION = "shop.session"
NAME = "keeper.shop"
"""In the keepers' certificate."""
_NETWORK = 20 + 2 * (os.getpid() % 100)
"""Keepers of this run have addresses in 127.<this>, and call the Service in the next one: runs don't meet."""


@dataclass
class Balancer:
    """Passes connections on to one of `serving`, any of them, by (host, port). Those made already stay."""

    port: int = 0
    serving: list[tuple[str, int]] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Balancer]:
        server = await asyncio.start_server(self._pass_on, "0.0.0.0", 0)  # noqa: S104
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A keeper that calls the address 127.n+1.x.y is seen to come from its own, 127.n.x.y."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        called = writer.get_extra_info("sockname")[0]
        source = _neighbour(called, -1)
        try:
            if not self.serving:
                raise OSError("no endpoint")
            host, port = random.choice(self.serving)  # noqa: S311
            there = await asyncio.open_connection(host, port, local_addr=(source, 0))
        except OSError:
            writer.transport.abort()
            return
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))
        for end in (writer, there[1]):
            end.transport.abort()


def _neighbour(address: str, step: int) -> str:
    first, network, *rest = address.split(".")
    return ".".join([first, str(int(network) + step), *rest])


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass
class Keeper:
    """A PgBouncer in front of the service."""

    number: int
    directory: Path
    shop: Shop
    process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"127.{_NETWORK}.{self.number // 250}.{self.number % 250 + 1}"

    @property
    def service(self) -> str:
        return _neighbour(self.host, 1)

    @property
    def console(self) -> Login:
        return keeper_console(self.shop.authorities.keepers, self.shop.login(WEB).name)

    @property
    def access(self) -> ConsoleAccess:
        authority = self.shop.authorities.keepers.certificate
        return ConsoleAccess(self.host, PORT, self.console.password, NAME, authority)

    @property
    def seen(self) -> KeeperConsole:
        """As the operator knows it."""
        return KeeperConsole(self.host, "web", f"keeper-{self.number}", self.shop.login(WEB).name, self.access)

    def connection(self, database: str = DATABASE) -> dict[str, Any]:
        """libpq's parameters for the app beside it."""
        return {
            "host": self.host,
            "port": PORT,
            "user": APP,
            "dbname": database,
            "sslmode": "disable",
            "autocommit": True,
        }

    def write(self, balancer: Balancer, **settings: object) -> None:
        """Its files. The consoles' way of all keepers: over TLS, by a login of its own."""
        shop, login = self.shop, self.shop.login(WEB)
        certificate = issue(shop.authorities.keepers, NAME, datetime.now(UTC))
        upstream = f"host={self.service} port={balancer.port} user={login.name} password={login.password}"
        chosen = {
            "listen_addr": self.host,
            "listen_port": PORT,
            "unix_socket_dir": "",
            "auth_type": "hba",
            "auth_file": f"{DIRECTORY}/userlist.txt",
            "auth_hba_file": f"{DIRECTORY}/hba.conf",
            "admin_users": self.console.name,
            "client_tls_sslmode": "allow",
            "client_tls_cert_file": f"{DIRECTORY}/tls.crt",
            "client_tls_key_file": f"{DIRECTORY}/tls.key",
            "client_tls_ca_file": f"{DIRECTORY}/tls.crt",
            "ignore_startup_parameters": "extra_float_digits,options",
            "server_tls_sslmode": "require",
            "server_login_retry": 1,
            "server_lifetime": 20,
            "default_pool_size": 4,
            **settings,
        }
        ini = [
            "[databases]",
            f"{DATABASE} = {upstream} dbname={shop.entry(WEB)} pool_mode=transaction",
            f"{SESSION} = {upstream} dbname={shop.session_entry(WEB)} pool_mode=session",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in chosen.items()),
        ]
        hba = [
            f"host {DATABASE} {APP} 127.0.0.0/8 trust",
            f'host "{SESSION}" {APP} 127.0.0.0/8 trust',
            f"hostssl pgbouncer {self.console.name} 127.0.0.0/8 scram-sha-256",
        ]
        texts = {
            "pgbouncer.ini": ini,
            "hba.conf": hba,
            "tls.crt": [certificate.certificate],
            "tls.key": [certificate.key],
            "userlist.txt": [f'"{APP}" ""', f'"{self.console.name}" "{self.console.verifier}"'],
        }
        self.directory.mkdir(exist_ok=True)
        for name, lines in texts.items():
            (self.directory / name).write_text("\n".join(lines) + "\n")
        for path in (self.directory, *self.directory.iterdir()):
            os.chown(path, USER, USER)

    def log(self) -> str:
        return (self.directory / "pgbouncer.log").read_text()


@contextmanager
def keeper(
    number: int, directory: Path, shop: Shop, balancer: Balancer, **settings: object
) -> Iterator[Keeper]:
    """Start a keeper; the block begins once it listens."""
    made = Keeper(number, directory / f"keeper-{number}", shop)
    made.write(balancer, **settings)
    command = inside("pgbouncer", made.directory, "pgbouncer", f"{DIRECTORY}/pgbouncer.ini")
    with running(command, made.directory / "pgbouncer.log", signal.SIGQUIT) as process:
        made.process = process
        wait_until_it_listens(process, made.log)
        yield made


@dataclass
class Load:
    """Transactions, one after the other on each of several connections, until the block ends."""

    done: int = 0
    failures: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def on(self, connections: int, pause: float = 0.0, **parameters: Any) -> AsyncIterator[Load]:
        over = asyncio.Event()
        ended = asyncio.create_task(over.wait())

        async def client() -> None:
            connection = None
            while not over.is_set():
                try:
                    if connection is None or connection.closed:
                        connection = await psycopg.AsyncConnection.connect(**parameters)
                    async with connection.transaction():
                        await connection.execute("SELECT 1")
                        await connection.execute("SELECT 2")
                    self.done += 1
                except psycopg.Error as error:
                    self.failures.append(str(error).strip())
                    connection = None
                if pause:
                    await asyncio.wait({ended}, timeout=pause)
            if connection is not None:
                await connection.close()

        tasks = [asyncio.create_task(client()) for _ in range(connections)]
        try:
            yield self
        finally:
            over.set()
            await asyncio.gather(*tasks)


async def clients(pooler: Pooler, shop: Shop) -> list[dict[str, str]]:
    """SHOW CLIENTS of a pooler without the console's."""
    async with console.connect(shop.console(pooler), 3) as opened:
        return [row for row in await opened.show("CLIENTS") if row["database"] != "pgbouncer"]
