"""What a server that can't be measured is called."""

from __future__ import annotations

import pytest

from poolkeeper.budget.request import BudgetRequest
from poolkeeper.budget.shares import Pooled
from poolkeeper.dns import Dns
from poolkeeper.host_port import host_port
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.upstream.target import Target
from poolkeeper.workers.servers.meters import given


def called(host: str, namespace: str) -> str:
    target = Target(host, 5432, "shop", "shop", "secret", "require", None)
    access = ConsoleAccess("127.0.0.1", 6432, "", "", "")
    names = Dns().names(host, namespace)
    pooled = Pooled(f"{namespace}/shop", 100, 10, 1, ())
    return given(BudgetRequest(pooled, target, {}, "", frozenset(), access, names=names))


@pytest.mark.parametrize("host", ["pg", "PG", "localhost2"])
def test_a_bare_host_is_another_server_in_each_namespace_f1(host: str) -> None:
    assert called(host, "data") != called(host, "other")


@pytest.mark.parametrize(
    "host", ["pg.data", "pg.data.svc", "pg.data.svc.cluster.local", "db.example.com", "10.0.0.1", "fd00::1"]
)
def test_any_other_host_is_the_same_server_everywhere(host: str) -> None:
    assert called(host, "data") == called(host, "other") == f"given {host_port(host, 5432)}"
