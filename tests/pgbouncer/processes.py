"""Real PgBouncer and PostgreSQL processes on loopback, out of the images' own file systems.

Each runs in a mount namespace and a chroot of its own, as the user of the image, so that nothing of this
machine's libraries or users matters. The process started here is the server itself, and ends with the test.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from e2e.cluster.ports import free_port
from poolkeeper.budget import allotments
from poolkeeper.budget.protocol import Allotment
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.configuration import INI, POD_FILE, Configuration
from poolkeeper.plan import peers
from tests.pgbouncer import debian
from tests.pgbouncer.rootfs import rootfs, substitute

USER = 65532
UID = "0a1b2c3d-0000-4000-8000-000000000001"
"""Of the pod that a process is."""
TABLE = allotments.table_file(UID)
DIRECTORY = "/tmp"
"""Where a process finds the directory that it was given."""

_ENTER = """
set -eu
root=$1 directory=$2
shift 2
if [ -d "$directory/etc" ]; then mount --bind "$directory/etc" "$root/etc"; fi
mount --bind "$directory" "$root/tmp"
for kernel in dev proc; do if [ -d "$root/$kernel" ]; then mount --rbind "/$kernel" "$root/$kernel"; fi; done
exec chroot --userspec={user}:{user} "$root" "$@"
"""


def inside(image: str, directory: Path, *command: str) -> list[str]:
    """The command line that runs `command` in the image, with `directory` as its /tmp. Needs root.

    A directory `etc` in there becomes its /etc: a resolver of its own, say.
    """
    if os.geteuid() != 0:
        raise RuntimeError("these tests start servers in a chroot as an unprivileged user: run them as root")
    script = _ENTER.replace("{user}", str(USER))
    return ["unshare", "--mount", "sh", "-c", script, "sh", str(rootfs(image)), str(directory), *command]


def use_postgresql(version: str) -> None:
    """Run this PostgreSQL in place of the image's: the one that a package installed here, else Debian's."""
    programs = Path(f"/usr/lib/postgresql/{version}/bin")
    root = Path("/") if (programs / "postgres").exists() else debian.postgresql(version)
    substitute("postgres", root)
    ENVIRONMENT["PATH"] = f"{programs}:{ENVIRONMENT['PATH']}"


ENVIRONMENT = {
    "PATH": "/usr/lib/postgresql/17/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "LC_ALL": "C.UTF-8",
    # Of a build with sanitizers: a process that goes on shows more than its first fault.
    "ASAN_OPTIONS": "halt_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
_SANITIZERS = re.compile(r"^(==\d+==ERROR: \w+Sanitizer|\S+: runtime error: )", re.MULTILINE)


def sanitizer_reports(log: str) -> list[str]:
    """What the sanitizers of a process reported into its log, each with some of the lines that follow."""
    return [log[found.start() : found.start() + 3000] for found in _SANITIZERS.finditer(log)]


def eventually(check: Any, seconds: float = 10.0) -> Any:
    """The first true value of check() within so many seconds."""
    end = time.monotonic() + seconds
    while not (value := check()):
        if time.monotonic() > end:
            raise AssertionError(f"not so after {seconds} s")
        time.sleep(0.02)
    return value


@contextmanager
def running(command: list[str], log: Path, stop: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process while the block runs; it gets the signal `stop` afterwards and SIGKILL 10 s later.

    Raises AssertionError if its sanitizers reported anything: a leak is found at the end.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.send_signal(stop)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    reports = sanitizer_reports(log.read_text(errors="replace"))
    assert not reports, "\n".join(reports)


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL server with TLS on 127.0.0.1 and ::1; authorities and certificates lie in `directory`."""

    port: int
    password: str
    directory: Path
    pid: int
    host: str = "127.0.0.1"
    superuser: str = "postgres"

    def execute(self, statement: str | sql.Composed, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as superuser; returns its rows."""
        with psycopg.connect(
            host=self.host,
            port=self.port,
            user=self.superuser,
            password=self.password,
            dbname=database,
            autocommit=True,
        ) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def create_role(self, name: str, password: str, options: str = "LOGIN") -> None:
        """Make or change a role. (The password goes through the server's own SCRAM code.)"""
        exists = self.execute(sql.SQL("SELECT 1 FROM pg_roles WHERE rolname = {}").format(sql.Literal(name)))
        verb = sql.SQL("ALTER" if exists else "CREATE")
        statement = sql.SQL("{} ROLE {} WITH {} PASSWORD {}").format(
            verb, sql.Identifier(name), sql.SQL(options), sql.Literal(password)
        )
        self.execute(statement)

    def create_database(self, name: str) -> None:
        if not self.execute(sql.SQL("SELECT 1 FROM pg_database WHERE datname = {}").format(sql.Literal(name))):
            # Copying the template through the write-ahead log is the quick way for an empty database.
            statement = "CREATE DATABASE {} TEMPLATE template0 STRATEGY wal_log"
            self.execute(sql.SQL(statement).format(sql.Identifier(name)))

    @contextmanager
    def setting(self, name: str, value: str) -> Iterator[None]:
        """A server setting that lasts for the block, seen in force on both sides of it."""
        [(before,)] = self.execute(f"SHOW {name}")
        try:
            self.change(name, value)
            yield
        finally:
            self.change(name, str(before))

    def change(self, name: str, value: str) -> None:
        self.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
        self.execute("SELECT pg_reload_conf()")
        eventually(lambda: self.execute(f"SHOW {name}") == [(value,)])


@contextmanager
def postgres(
    directory: Path, host: str = "127.0.0.1", port: int = 0, secrets: str = "scram-sha-256"
) -> Iterator[Postgres]:
    """Make a database cluster in `directory` and serve it, at this address of loopback and at ::1."""
    with serving(initialised(directory, host, port, secrets)) as made:
        yield made


def initialised(
    directory: Path, host: str = "127.0.0.1", port: int = 0, secrets: str = "scram-sha-256"
) -> Postgres:
    """A database cluster in `directory` that nobody serves yet, with passwords kept and asked for in this
    way (password_encryption, and the method in pg_hba.conf)."""
    password, port = "superuser's password", port or free_port()
    make_certificates(directory)
    (directory / "pw").write_text(password)
    if rootfs("postgres") == Path("/"):
        # initdb insists on a name for its user, which this machine doesn't have.
        (directory / "etc").mkdir()
        (directory / "etc/passwd").write_text(f"postgres:x:{USER}:{USER}::/:/usr/sbin/nologin\n")
    _give(directory)
    initdb = ["initdb", "-D", f"{DIRECTORY}/data", "-U", "postgres", f"--pwfile={DIRECTORY}/pw", "--no-sync"]
    initdb += [f"--auth={secrets}", "-E", "UTF8", "--locale=C.UTF-8", "--no-instructions"]
    subprocess.run(
        inside("postgres", directory, *initdb), env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL
    )
    settings = {
        "listen_addresses": f"{host},::1" if host == "127.0.0.1" else host,
        "port": str(port),
        "unix_socket_directories": "",
        "fsync": "off",
        "max_connections": "60",
        "log_statement": "none",
        "client_connection_check_interval": "500ms",
    }
    changeable = {
        "ssl": "on",
        "ssl_cert_file": f"{DIRECTORY}/server.crt",
        "ssl_key_file": f"{DIRECTORY}/server.key",
    }
    with (directory / "data/postgresql.conf").open("a") as conf:
        conf.writelines(f"{name} = '{value}'\n" for name, value in (settings | changeable).items())
    return Postgres(port, password, directory, 0, host)


@contextmanager
def serving(cluster: Postgres) -> Iterator[Postgres]:
    """Serve it while the block runs; then its clients' connections are closed."""
    directory = cluster.directory
    log = directory / "postgres.log"
    with running(
        inside("postgres", directory, "postgres", "-D", f"{DIRECTORY}/data"), log, signal.SIGINT
    ) as server:
        made = replace(cluster, pid=server.pid)

        def answers() -> bool:
            assert server.poll() is None, log.read_text()
            try:
                return made.execute("SELECT 1") == [(1,)]
            except psycopg.OperationalError:
                return False

        eventually(answers, 30)
        yield made


@dataclass
class Pooler:
    """A PgBouncer process that runs on the files of a configuration."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    host: str = "127.0.0.1"
    peer: int = 1
    cap: int | Mapping[str, int] | None = 20
    """Of every entry, or by entry, in the table that it is given; None: it gets no table."""

    def write(self, configuration: Configuration, keep: Mapping[str, str] | None = None) -> Configuration:
        """Replace the mounted files, as kubelet does; returns the configuration with this process' port."""
        here = self.localised(configuration)
        present = set(self._files())
        stale = present - set(here.files) - set(keep or {})
        # The file that names the others comes last.
        for name, text in sorted({**(keep or {}), **here.files}.items(), key=lambda item: item[0] == INI):
            path = self.directory / f".{name}"
            if name in present and (self.directory / name).read_text() == text:
                continue
            path.write_text(text)
            os.chown(path, USER, USER)
            path.rename(self.directory / name)
        # Only now, as kubelet does, which writes the new files while the old ones are still there.
        for old in stale:
            (self.directory / old).unlink()
        return here

    def stored(self) -> dict[str, str]:
        return {name: (self.directory / name).read_text() for name in self._files()}

    def localised(self, configuration: Configuration) -> Configuration:
        """The configuration with this process' port, since several run on one machine, and with the files that
        a pod has for itself: its table of caps, and what includes it."""
        ini = configuration.files[INI]
        assert ini.count("\nlisten_port = 6432\n") == 1
        ini = ini.replace("\nlisten_port = 6432\n", f"\nlisten_port = {self.port}\n")
        settings = {**configuration.settings, "listen_port": str(self.port)}
        own = {POD_FILE: peers.lines(self.peer, None)}
        if self.cap is not None:
            caps = dict.fromkeys(configuration.lines, self.cap) if isinstance(self.cap, int) else self.cap
            table = allotments.table(Allotment(sum(caps.values()), 1, caps), configuration.lines)
            own = {POD_FILE: peers.lines(self.peer, f"{DIRECTORY}/{TABLE}"), TABLE: table}
        return replace(configuration, files={**configuration.files, INI: ini, **own}, settings=settings)

    async def apply(
        self, configuration: Configuration, access: ConsoleAccess, timeout: float = 3.0
    ) -> str | None:
        return (await console.apply(access, configuration, timeout)).problem

    def log(self) -> str:
        return (self.directory / "pgbouncer.log").read_text()

    def complaints(self) -> list[str]:
        """Lines of the log that say that something in the files is not as it should be."""
        words = (" WARNING ", " ERROR ", " FATAL ")
        return [line for line in self.log().splitlines() if any(word in line for word in words)]

    def _files(self) -> list[str]:
        suffixes = (".txt", ".conf", ".crt", ".key", ".ini")
        return [path.name for path in self.directory.iterdir() if path.suffix in suffixes]


@contextmanager
def pooler(
    directory: Path, configuration: Configuration, cap: int | Mapping[str, int] | None = 20
) -> Iterator[Pooler]:
    """Start PgBouncer on the files of `configuration`, with this cap for every entry or these; the block begins
    once it listens."""
    made = Pooler(directory, free_port(), cap=cap)
    made.write(configuration)
    _give(directory)
    log = directory / "pgbouncer.log"
    command = inside("pgbouncer", directory, "pgbouncer", f"{DIRECTORY}/{INI}")
    with running(command, log, signal.SIGQUIT) as process:
        made.process = process
        wait_until_it_listens(process, made.log)
        yield made


def wait_until_it_listens(process: subprocess.Popen[bytes], log: Callable[[], str]) -> None:
    """Wait for a PgBouncer, by what it logs; fails with its log if it ends instead."""

    def listens() -> bool:
        assert process.poll() is None, log()
        return "process up" in log()

    eventually(listens)


def _give(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        os.chown(path, USER, USER)


def make_certificates(directory: Path) -> None:
    """ca.crt, and server, stranger (another name) and expired certificates by it; other-ca.crt signs none."""
    if shutil.which("openssl") is None:
        raise RuntimeError("the openssl program is missing: install the package openssl")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for authority in ("ca", "other-ca"):
        openssl(
            *("req", "-x509", *key, "-keyout", f"{authority}.key", "-out", f"{authority}.crt"),
            *("-days", "2", "-subj", f"/CN={authority}"),
        )
    names = {
        "server": "IP:127.0.0.1,DNS:localhost",
        "stranger": "DNS:elsewhere.example",
        "expired": "IP:127.0.0.1",
    }
    for name, alternatives in names.items():
        (directory / f"{name}.ext").write_text(f"subjectAltName = {alternatives}\n")
        openssl("req", "-new", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", "-extfile", f"{name}.ext"),
            *("-CA", "ca.crt", "-CAkey", "ca.key", "-days", "-1" if name == "expired" else "2"),
        )
        (directory / f"{name}.key").chmod(0o600)


async def in_thread(function: Any, *arguments: Any) -> Any:
    """Run something that blocks without stopping the event loop."""
    return await asyncio.to_thread(function, *arguments)
