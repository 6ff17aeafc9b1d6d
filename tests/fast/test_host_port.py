"""A host and its port in everything that the operator writes: an IPv6 address has brackets, or its last group
reads as the port."""

from __future__ import annotations

import ast
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import kopf
import psycopg
import pytest

from poolkeeper import __main__
from poolkeeper.budget.request import BudgetRequest
from poolkeeper.budget.shares import Pooled
from poolkeeper.consumers.database_url import jdbc_url, r2dbc_url, url
from poolkeeper.credentials.logins import Login
from poolkeeper.host_port import host_port
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.pgbouncer import console
from poolkeeper.settings import from_environment
from poolkeeper.store.store import Store
from poolkeeper.upstream import libpq, resolver
from poolkeeper.upstream.target import Target
from poolkeeper.workers import upstream
from poolkeeper.workers.servers.meters import given

CODE = Path(__main__.__file__).parent
PORT = 6432
SHOWN = {
    "db.example.com": "db.example.com:6432",
    "10.0.0.1": "10.0.0.1:6432",
    "::1": "[::1]:6432",
    "fd00:10:96::a": "[fd00:10:96::a]:6432",
    "2001:db8:0:1:2:3:4:5": "[2001:db8:0:1:2:3:4:5]:6432",
}


def target(host: str) -> Target:
    return Target(host, PORT, "shop", "owner", "secret", "disable", None)


def access(host: str) -> ConsoleAccess:
    return ConsoleAccess(host, PORT, "secret", "shop-pooler", "")


async def no_console(host: str) -> str:
    with pytest.raises(console.ConsoleError) as caught:
        async with console.connect(access(host), 1.0):
            pass
    return str(caught.value)


async def no_probe(host: str) -> str:
    return (await upstream.probe(target(host), 1.0)).message


async def no_trial(host: str) -> str:
    return (await upstream.trial_login(access(host), Login("web", "secret", ""), "shop", 1.0)).message


async def unnamed_system(host: str) -> str:
    """The identity of a server that does not show its own."""
    answers = iter([libpq.Answer(("", "", "", ""), ((b"17 5432", b"100", b"3", b"0"),))])

    async def execute(*_: object) -> libpq.Answer:
        found = next(answers, None)
        if found is None:
            raise psycopg.OperationalError("permission denied")
        return found

    connection: Any = SimpleNamespace(pid=7, closed=False, address=host)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libpq, "execute", execute)
        return (await upstream.Meter(connection, target(host), 1.0).identify())[0]


async def given_budget(host: str) -> str:
    pooled = Pooled("data/shop", 100, 10, 1, ())
    return given(BudgetRequest(pooled, target(host), {}, "", frozenset(), access(host)))


async def urls(host: str) -> str:
    parts = (host, PORT, "u", "p", "d")
    return f"{url(*parts)} {jdbc_url(*parts)} {r2dbc_url(*parts)}"


WRITERS: dict[str, Callable[[str], Awaitable[str]]] = {
    "a console that can't be reached": no_console,
    "an upstream that can't be reached": no_probe,
    "a trial login that fails": no_trial,
    "a server without an identity": unnamed_system,
    "a server that is not measured": given_budget,
    "URLs": urls,
}


@pytest.fixture(autouse=True)
def _unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object, **__: object) -> Any:
        raise psycopg.OperationalError("Connection refused")

    async def parameters(host: str, *_: object) -> dict[str, str]:
        return {"host": host}

    monkeypatch.setattr(libpq, "connect", connect)
    monkeypatch.setattr(resolver, "parameters", parameters)


@pytest.mark.parametrize("host", SHOWN)
def test_a_host_and_a_port(host: str) -> None:
    assert host_port(host, PORT) == SHOWN[host]
    parts = urlsplit(f"http://{SHOWN[host]}")
    assert (parts.hostname, parts.port) == (host, PORT)


@pytest.mark.parametrize("host", SHOWN)
@pytest.mark.parametrize("writer", WRITERS)
async def test_every_text_with_a_host_and_a_port(writer: str, host: str) -> None:
    said = await WRITERS[writer](host)
    assert SHOWN[host] in said
    assert f"{host}:{PORT}" not in said.replace(SHOWN[host], ""), said


@pytest.mark.parametrize(("pod", "served"), [("10.1.2.3", "0.0.0.0:8080"), ("2001:db8::7", "[::]:8080")])
async def test_the_address_of_the_health_probe(pod: str, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def operator(**settings: Any) -> None:
        asked.append(settings["liveness_endpoint"])

    monkeypatch.setattr(kopf, "operator", operator)
    own = from_environment({"POOLKEEPER_NAMESPACE": "p", "POOLKEEPER_POD": "p", "POOLKEEPER_POD_IP": pod})
    cluster: Any = SimpleNamespace(version=_found)
    queue: Any = None
    await __main__._watch(cluster, Store(own), queue, own, queue)
    assert asked == [f"http://{served}/healthz"]


async def _found(*_: object) -> str:
    return "1"


@pytest.mark.parametrize("path", sorted(CODE.rglob("*.py")), ids=lambda path: str(path.relative_to(CODE)))
def test_nothing_else_joins_a_host_and_a_port(path: Path) -> None:
    if path.name == "host_port.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            for before, colon, after in zip(node.values, node.values[1:], node.values[2:], strict=False):
                joined = isinstance(before, ast.FormattedValue) and isinstance(after, ast.FormattedValue)
                if joined and isinstance(colon, ast.Constant) and colon.value == ":":
                    assert "port" not in ast.unparse(after).lower(), f"{path}:{node.lineno}"
