"""What poolers and keepers cost and gain, by pgbench. All are processes of this machine, as in tests/pgbouncer.

Each round asks every way once, and a round's ratios count, so that what else the machine does meanwhile hits
all alike; the figures are medians of the rounds.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from e2e.bench.by_hand import LOGIN, configuration, userlist
from e2e.bench.figures import Figure, median
from e2e.cluster.ports import free_port
from e2e.cluster.shell import ClusterError, say
from poolkeeper.spec import startup_parameters
from poolkeeper.upstream.target import Target
from tests.pgbouncer import debian
from tests.pgbouncer.keeper_process import keeper, keeper_files
from tests.pgbouncer.processes import (
    DIRECTORY,
    ENVIRONMENT,
    USER,
    eventually,
    initialised,
    inside,
    pooler,
    running,
    serving,
)
from tests.pgbouncer.rootfs import substitute
from tests.pgbouncer.shop import WEB, Shop

ROUNDS = 5
SECONDS = 3
CONNECTS = 200
PROTOCOLS, CLIENTS = ("simple", "prepared"), (10, 100)
DIRECT, STOCK, BY_HAND = "direct", "stock", "by hand"
POOLER, STRICT, KEEPER = "pooler", "strict pooler", "keeper"
SUITE = "trixie"
"""The suite of Debian whose PgBouncer ours is built from, and compared with."""
_TPS = re.compile(r"^tps = ([0-9.]+) ", re.MULTILINE)
_OWNER, _PASSWORD = "shop_owner", "owners-password"


@dataclass(frozen=True)
class Way:
    """One way to the database: libpq's parameters, and the processes that its queries go through."""

    parameters: Mapping[str, str]
    processes: Mapping[str, int]

    def environment(self) -> dict[str, str]:
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD"}
        names |= {"dbname": "PGDATABASE", "sslmode": "PGSSLMODE"}
        return {names[key]: value for key, value in self.parameters.items()}


def run() -> list[Figure]:
    """Takes about nine minutes."""
    with _ways() as (ways, scratch):
        return [*_connecting(ways, scratch), *_steady(ways, scratch)]


def _connecting(ways: Mapping[str, Way], scratch: Path) -> list[Figure]:
    """A connection for each transaction."""
    say("pgbench -C")
    rounds = [
        {name: _pgbench(way, scratch, 4, "--connect") for name, way in ways.items()} for _ in range(ROUNDS)
    ]
    found = [
        Figure("connect_ratio", _ratio(rounds, KEEPER, DIRECT), "x straight PostgreSQL", 15, at_least=True)
    ]
    found += [
        Figure(f"connect_{_word(name)}_tps", median([one[name] for one in rounds]), "transactions/s")
        for name in ways
    ]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(CONNECTS):
        for name, way in ways.items():
            began = time.monotonic()
            with psycopg.connect(**_arguments(way)) as connection:
                connection.execute("SELECT 1")
            times[name].append(time.monotonic() - began)
    found += [
        Figure(f"connect_query_{_word(name)}_ms", 1000 * median(each), "ms") for name, each in times.items()
    ]
    return found


def _steady(ways: Mapping[str, Way], scratch: Path) -> list[Figure]:
    """Connections that stay: each protocol with few and with many clients."""
    found: list[Figure] = []
    for protocol in PROTOCOLS:
        for clients in CLIENTS:
            say(f"pgbench -S -M {protocol}, {clients} clients")
            arguments = ("--protocol", protocol)
            # The server has no room for so many clients without a pooler.
            asked = {name: way for name, way in ways.items() if name != DIRECT or clients < 50}
            rounds = [
                {name: _pgbench(way, scratch, clients, *arguments) for name, way in asked.items()}
                for _ in range(ROUNDS)
            ]
            case = f"{protocol}_{clients}"
            found += [
                Figure(f"engine_ratio_{case}", _ratio(rounds, BY_HAND, STOCK), "x Debian's PgBouncer"),
                Figure(f"pooler_ratio_{case}", _ratio(rounds, POOLER, BY_HAND), "x by hand"),
                Figure(f"keeper_ratio_{case}", _ratio(rounds, KEEPER, BY_HAND), "x by hand"),
                Figure(f"strict_ratio_{case}", _ratio(rounds, STRICT, POOLER), "x isolation Fast"),
            ]
            found += [
                Figure(f"{_word(name)}_{case}_tps", median([one[name] for one in rounds]), "transactions/s")
                for name in asked
            ]
    for ratio, baseline, target in (
        ("engine_ratio", "Debian's PgBouncer", 0.98),
        ("pooler_ratio", "by hand", 0.95),
        ("keeper_ratio", "by hand", None),
    ):
        least = min(figure.value for figure in found if figure.name.startswith(ratio))
        found.append(Figure(ratio, least, f"x {baseline}, the least of the four", target, at_least=True))
    return found + _processor_time(ways[KEEPER], scratch)


def _processor_time(way: Way, scratch: Path) -> list[Figure]:
    """Where a keeper's time goes: of each process on the way, per transaction of ten clients."""
    before = {name: _used(pid) for name, pid in way.processes.items()}
    tps = _pgbench(way, scratch, 10)
    return [
        Figure(f"cpu_{name}_us", (_used(pid) - before[name]) / (tps * SECONDS) * 1e6, "us per transaction")
        for name, pid in way.processes.items()
    ]


def _used(pid: int) -> float:
    """Processor time of one process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pgbench(way: Way, scratch: Path, clients: int, *arguments: str) -> float:
    """Transactions per second of `pgbench -S`. Raises ClusterError where any of them failed."""
    words = ["pgbench", "--no-vacuum", "--select-only", f"--client={clients}", "--jobs=2", f"--time={SECONDS}"]
    done = subprocess.run(
        inside("postgres", scratch, *words, *arguments),
        env=ENVIRONMENT | way.environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS + 60,
    )
    if done.returncode != 0:
        raise ClusterError(f"pgbench: {done.stdout[-500:]} {done.stderr[-500:]}")
    return transactions_per_second(done.stdout)


def transactions_per_second(said: str) -> float:
    """What pgbench's report says. Raises ClusterError where there is none, or a transaction failed."""
    found = _TPS.search(said)
    if found is None or "failed transactions: 0 " not in said:
        raise ClusterError(f"pgbench: {said[-500:]}")
    return float(found[1])


def _ratio(rounds: list[dict[str, float]], one: str, other: str) -> float:
    return median([each[one] / each[other] for each in rounds])


@contextlib.contextmanager
def _ways() -> Iterator[tuple[dict[str, Way], Path]]:
    """PostgreSQL with pgbench's tables, and every way to it; a directory for pgbench itself."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)
        for part in ("postgres", "pooler", "strict", "scratch"):
            (directory / part).mkdir()
        os.chown(directory / "scratch", USER, USER)
        made = initialised(directory / "postgres")
        with (made.directory / "data/postgresql.conf").open("a") as conf:
            conf.write("max_connections = 150\n")  # all ways keep their connections
        server = stack.enter_context(serving(made))
        server.create_role(_OWNER, _PASSWORD)
        server.create_database("shop")
        server.execute(f"ALTER DATABASE shop OWNER TO {_OWNER}")
        direct = {"host": server.host, "port": str(server.port), "user": _OWNER, "password": _PASSWORD}
        direct |= {"dbname": "shop", "sslmode": "disable"}
        shop = Shop(Target(server.host, server.port, "shop", _OWNER, _PASSWORD, "disable", None))
        own = stack.enter_context(pooler(directory / "pooler", shop.configuration()))
        settings = startup_parameters.isolation_settings(startup_parameters.STRICT)
        strict = stack.enter_context(pooler(directory / "strict", shop.configuration(parameters=settings)))
        beside = stack.enter_context(keeper(directory / "keeper", shop, own.port, keeper_files(shop)))
        substitute(STOCK, debian.pgbouncer(SUITE))
        stock = stack.enter_context(_by_hand(STOCK, directory / "stock", direct))
        by_hand = stack.enter_context(_by_hand("pgbouncer", directory / "by-hand", direct))
        login = shop.login(WEB)
        to_pooler = {"host": own.host, "port": str(own.port), "user": login.name, "password": login.password}
        to_pooler |= {"dbname": shop.entry(WEB), "sslmode": "disable"}
        to_keeper = {"host": "127.0.0.1", "port": str(beside.port), "user": "app", "dbname": "shop"}
        to_keeper |= {"sslmode": "disable"}
        pids = {"pooler": _pid(own.log()), "keeper": _pid(beside.log())}
        ways = {
            DIRECT: Way(direct, {}),
            STOCK: Way({**direct, "port": str(stock), "user": LOGIN}, {}),
            BY_HAND: Way({**direct, "port": str(by_hand), "user": LOGIN}, {}),
            POOLER: Way(to_pooler, {"pooler": pids["pooler"]}),
            STRICT: Way({**to_pooler, "port": str(strict.port)}, {}),
            KEEPER: Way(to_keeper, pids),
        }
        _fill(ways[DIRECT], directory / "scratch")
        yield ways, directory / "scratch"


@contextlib.contextmanager
def _by_hand(image: str, directory: Path, upstream: Mapping[str, str]) -> Iterator[int]:
    """The image's PgBouncer as one configures it by hand; gives its port."""
    directory.mkdir()
    port = free_port()
    target = " ".join(f"{key}={upstream[key]}" for key in ("host", "port", "dbname", "user", "password"))
    texts = {
        "pgbouncer.ini": configuration("shop", target, DIRECTORY, port),
        "userlist.txt": userlist(upstream["password"]),
    }
    for name, text in texts.items():
        (directory / name).write_text(text)
    for path in (directory, *directory.iterdir()):
        os.chown(path, USER, USER)
    log = directory / "pgbouncer.log"
    command = inside(image, directory, "pgbouncer", f"{DIRECTORY}/pgbouncer.ini")
    with running(command, log, signal.SIGQUIT):
        eventually(lambda: "process up" in log.read_text())
        yield port


def _fill(way: Way, scratch: Path) -> None:
    words = ["pgbench", "--initialize", "--scale=5", "--quiet"]
    environment = ENVIRONMENT | way.environment()
    subprocess.run(inside("postgres", scratch, *words), env=environment, check=True, capture_output=True)


def _pid(log: str) -> int:
    """The process that wrote a PgBouncer's log."""
    found = re.search(r"\[(\d+)\]", log)
    if found is None:
        raise ClusterError("a PgBouncer wrote nothing to its log")
    return int(found[1])


def _arguments(way: Way) -> dict[str, Any]:
    return {**way.parameters, "autocommit": True}


def _word(name: str) -> str:
    return name.replace(" ", "_")
