"""Pooler pods that only the API server knows, with a real PgBouncer each; the tests do kubelet's part."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from poolkeeper import names
from poolkeeper.pgbouncer.configuration import INI, POD_FILE
from tests.apiserver.client import Refused
from tests.apiserver.operator.site import Lane, eventually
from tests.pgbouncer.keeper_process import keeper_command
from tests.pgbouncer.processes import USER, Postgres, initialised, running, serving

LOOPBACK = f"127.{130 + os.getpid() % 100}"
"""Pods of this run have addresses in it, since every pooler listens on the same port."""
_ENTER = """
set -eu
for _ in $(seq 500); do
    if ip link show eth0 >/dev/null 2>&1; then break; fi
    sleep 0.02
done
ip link set lo up
ip address add "$1/30" dev eth0
ip link set eth0 up
ip route add default via "$2"
shift 2
exec "$@"
"""
_interfaces = itertools.count(1)


def bring(files: Mapping[str, str], place: Path) -> None:
    """As kubelet does, which writes the new files while the old ones are still there."""
    for name, text in sorted(files.items(), key=lambda item: item[0] == INI):
        if (place / name).exists() and (place / name).read_text() == text:
            continue
        new = place / f".{name}"
        new.write_text(text)
        os.chown(new, USER, USER)
        new.rename(place / name)


class PoolerPod:
    """A pooler pod; its PgBouncer reads the files that the Secret holds, brought again and again.

    It counts as let in already, and listens at its own address alone, which is one of loopback.
    """

    gate = False

    def __init__(self, lane: Lane, number: int, place: Path, address: str = "") -> None:
        self.lane, self.name = lane, f"pooler-{number}"
        self.address = address or f"{LOOPBACK}.{int(lane.name[-4:]) % 250}.{number}"
        self.place = place
        place.mkdir()
        lane.make_pod(self.name, self.address, gate=self.gate)

    def mount(self) -> None:
        files = self.lane.secret(self.lane.data, names.config_name("shop"))
        if files is None:
            return  # deleted with its PooledDatabase: what is mounted stays
        try:
            pod = self.lane.get("Pod", self.name)
        except Refused:
            return  # the test has removed it
        own = pod["metadata"].get("annotations", {}).get(names.PEER_ANNOTATION, "")
        files[POD_FILE] = self._own_file(own)
        bring(files, self.place)
        for gone in {item.name for item in self.place.glob("caps-*.ini")} - files.keys():
            (self.place / gone).unlink()

    def _own_file(self, lines: str) -> str:
        return f"listen_addr = {self.address}\n{lines}\n"

    def _command(self) -> list[str]:
        return keeper_command(self.place)

    def _connect(self, process: subprocess.Popen[bytes]) -> None:
        """Nothing to do: loopback is everybody's."""

    @contextmanager
    def pgbouncer(self) -> Iterator[None]:
        """The process, while the block runs; a further one is a restarted container's."""
        self.mount()
        os.chown(self.place, USER, USER)
        before = self.log().count("process up")
        with running(self._command(), self.place / "pgbouncer.log", signal.SIGQUIT) as process:
            self._connect(process)
            eventually(lambda: self.log().count("process up") > before, 10)
            over = threading.Event()
            kubelet = threading.Thread(target=self._follow, args=(over,))
            kubelet.start()
            try:
                yield
            finally:
                over.set()
                kubelet.join()

    def _follow(self, over: threading.Event) -> None:
        while not over.wait(0.2):
            self.mount()
            if self.gate:
                with suppress(Refused):  # the pod is gone
                    self.lane.let_in(self.name)

    def connect(self) -> psycopg.Connection[Any]:
        """As a client of the consumer that has its Secret in the lane's web namespace."""
        secret = self.lane.secret(self.lane.web, "database")
        assert secret is not None
        return psycopg.connect(
            host=self.address,
            port=names.POOLER_PORT,
            user=secret["PGUSER"],
            password=secret["PGPASSWORD"],
            dbname=secret["PGDATABASE"],
            connect_timeout=5,
            autocommit=True,
        )

    def log(self) -> str:
        path = self.place / "pgbouncer.log"
        return path.read_text() if path.exists() else ""

    def commands(self) -> list[str]:
        """What its console was told, in order."""
        return re.findall(r" LOG (PAUSE|RESUME|RELOAD)\b", self.log())


class WaitingPod(PoolerPod):
    """A pooler pod with its gate, and with a network of its own: it is just as the operator wants it."""

    gate = True

    def __init__(self, lane: Lane, number: int, place: Path) -> None:
        self._number = next(_interfaces)
        self._gateway, own = (f"{Network.PREFIX}.{4 * (self._number % 60) + end}" for end in (5, 6))
        super().__init__(lane, number, place, own)

    def _own_file(self, lines: str) -> str:
        return lines

    def _command(self) -> list[str]:
        enter = ["unshare", "--net", "sh", "-c", _ENTER, "sh", self.address, self._gateway]
        return [*enter, *super()._command()]

    def _connect(self, process: subprocess.Popen[bytes]) -> None:
        own, theirs = os.readlink("/proc/self/ns/net"), f"/proc/{process.pid}/ns/net"
        eventually(lambda: os.readlink(theirs) != own, 5)
        name = f"pk{os.getpid() % 10000}x{next(_interfaces)}"
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
        # The last one's end goes a moment after its process.
        eventually(lambda: f" {self._gateway}/30 " not in _ip("address", "show"), 5)
        _ip("address", "add", f"{self._gateway}/30", "dev", name)
        _ip("link", "set", name, "up")


class Network:
    """An address of this machine that pods with a network of their own reach."""

    PREFIX = f"172.29.{os.getpid() % 250}"
    SERVER = f"{PREFIX}.1"

    @classmethod
    @contextmanager
    def postgres(cls, directory: Path) -> Iterator[Postgres]:
        """A PostgreSQL server there."""
        _ip("address", "replace", f"{cls.SERVER}/32", "dev", "lo")
        try:
            made = initialised(directory, cls.SERVER)
            with (directory / "data/pg_hba.conf").open("a") as rules:
                rules.write(f"host all all {cls.PREFIX}.0/24 scram-sha-256\n")
            with serving(made) as served:
                yield served
        finally:
            _ip("address", "delete", f"{cls.SERVER}/32", "dev", "lo")


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def written_within(lane: Lane, seconds: float) -> list[Any]:
    """What is written in the time to come."""
    before = len(lane.writes())
    time.sleep(seconds)
    return lane.writes()[before:]


def quiet(lane: Lane, seconds: float) -> None:
    """Nothing is written for so long."""
    late = written_within(lane, seconds)
    assert not late, f"settled, and then wrote {late}"
