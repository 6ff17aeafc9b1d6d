"""Hosts of every kind, for a real PgBouncer in a pod of one namespace and for the operator in another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolkeeper.consumers.consent import Consumer
from poolkeeper.consumers.entries import login_name
from poolkeeper.credentials.logins import Logins
from poolkeeper.credentials.mint import authorities, mint
from poolkeeper.upstream.target import Target
from tests.pgbouncer.names import Names, of_pod, serving
from tests.pgbouncer.processes import Postgres, pooler
from tests.pgbouncer.shop import Shop

DOMAIN, NODE = "k8s.example.com", "corp.example.com"
ELSEWHERE = "127.0.0.66"
"""No server listens there."""
ZONE = {
    f"pg.data.svc.{DOMAIN}": True,
    f"pg.poolkeeper.svc.{DOMAIN}": False,
    f"pg.other.svc.{DOMAIN}": True,
    f"pg.other.poolkeeper.svc.{DOMAIN}": False,
    f"wrong.data.svc.{DOMAIN}": False,
    f"wrong.poolkeeper.svc.{DOMAIN}": True,
    f"pod.headless.data.svc.{DOMAIN}": True,
    f"pod.headless.svc.{DOMAIN}": False,
    f"elsewhere.example.svc.{DOMAIN}": True,
    f"legacy.{NODE}": True,
    "db.example.org": True,
    "a.b.c.d.e.f.example.org": True,
    f"a.b.c.d.e.f.example.org.data.svc.{DOMAIN}": False,
}
"""Whether the server is there."""
HOSTS = {
    "pg": True,
    "PG": True,
    "wrong": False,
    "pg.other": True,
    "pg.other.svc": True,
    f"pg.other.svc.{DOMAIN}": True,
    f"pg.other.svc.{DOMAIN}.": True,
    "pg.other.svc.": False,
    "pod.headless": True,
    "legacy": True,
    "legacy.": False,
    "db.example.org": True,
    "db.example.org.": True,
    "a.b.c.d.e.f.example.org": True,
    "nowhere": False,
    "127.0.0.1": True,
    "::1": True,
}
_OPERATOR = """
import asyncio, json, sys
from pathlib import Path
from poolkeeper import dns
from poolkeeper.upstream.target import Target
from poolkeeper.workers.upstream import probe

async def main():
    found = dns.read(Path("/etc/resolv.conf").read_text(), "poolkeeper")
    targets = [Target(**item) for item in json.load(sys.stdin)]
    seen = [await probe(target, 5, found.names(target.host, "data")) for target in targets]
    print(json.dumps([[item.reachable, item.reason, item.message] for item in seen]))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def names(server: Postgres) -> Iterator[Names]:
    with serving() as made:
        made.addresses |= {name: (server.host if right else ELSEWHERE,) for name, right in ZONE.items()}
        yield made


def by_operator(directory: Path, targets: list[Target]) -> list[Any]:
    """What the operator's logins come to in a pod of its own namespace."""
    (directory / "operator.conf").write_text(of_pod("poolkeeper", DOMAIN, NODE))
    bind = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        bind,
        str(directory / "operator.conf"),
        sys.executable,
        "-c",
        _OPERATOR,
    ]
    asked = json.dumps([asdict(target) for target in targets])
    ran = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return list(json.loads(ran.stdout))


def by_pooler(directory: Path, names: Names, targets: list[Target]) -> dict[str, bool]:
    """Whether clients reach the server through a pooler in a pod of the PooledDatabase's namespace, by host: it
    has an entry for each."""
    (mounted := directory / "pooler").mkdir()
    names.etc(mounted, of_pod("data", DOMAIN, NODE))
    consumers = [Consumer("web", f"host-{number}") for number, _ in enumerate(targets)]
    logins = {login_name(each): mint(login_name(each)) for each in consumers}
    shop = Shop(targets[0], Logins(mint("poolkeeper"), logins, None, authorities()))
    whole = shop.configuration(consumers, {"query_wait_timeout": "3"})
    lines = dict(whole.lines)
    for each, target in zip(consumers, targets, strict=True):
        entry = shop.entry(each)
        lines[entry] = lines[entry].replace(f"host='{targets[0].host}'", f"host='{target.host}'")
    with pooler(mounted, replace(whole, lines=lines)) as running:

        def reached(consumer: Consumer) -> bool:
            try:
                with psycopg.connect(**shop.connection(running, consumer)) as client:
                    return client.execute("SELECT 1").fetchone() == (1,)
            except psycopg.OperationalError:
                return False

        with ThreadPoolExecutor(len(consumers)) as threads:
            found = list(threads.map(reached, consumers))
    return {target.host: answer for target, answer in zip(targets, found, strict=True)}


def test_operator_and_pooler_come_to_the_same_server_f1(shop: Shop, names: Names, tmp_path: Path) -> None:
    targets = [replace(shop.target, host=host) for host in HOSTS]
    reached = {item.host: found for item, found in zip(targets, by_operator(tmp_path, targets), strict=True)}
    assert {host: found[0] for host, found in reached.items()} == HOSTS, reached
    assert reached["nowhere"][1] == "DnsFailed"
    assert "tried nowhere.data.svc.k8s.example.com and 4 more names" in reached["nowhere"][2]
    assert by_pooler(tmp_path, names, targets) == HOSTS


@pytest.mark.parametrize("host", ["elsewhere.example", f"elsewhere.example.svc.{DOMAIN}"])
def test_verify_full_checks_the_name_as_it_is_written(
    host: str, shop: Shop, server: Postgres, names: Names, tmp_path: Path
) -> None:
    """The server's certificate is for elsewhere.example alone; the poolers check it, and the operator does."""
    ca = (server.directory / "ca.crt").read_text()
    target = replace(shop.target, host=host, sslmode="verify-full", ca=ca)
    right = host == "elsewhere.example"
    with (
        server.setting("ssl_cert_file", "/tmp/stranger.crt"),
        server.setting("ssl_key_file", "/tmp/stranger.key"),
    ):
        [[reachable, reason, _]] = by_operator(tmp_path, [target])
        assert (reachable, reason) == (right, "Reachable" if right else "TlsFailed")
        assert by_pooler(tmp_path, names, [target]) == {host: right}
