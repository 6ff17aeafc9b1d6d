"""One PostgreSQL server for all tests here, and what most of them start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from poolkeeper.upstream.target import Target
from tests.pgbouncer.processes import Pooler, Postgres, pooler, postgres
from tests.pgbouncer.shop import Shop


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    directory = tmp_path_factory.mktemp("postgres")
    with postgres(directory) as made:
        yield made


@pytest.fixture(scope="session")
def shop(server: Postgres) -> Shop:
    password = "a pass'word\\ of: @all/?#% kïnds"
    server.create_role("shop_owner", password)
    server.create_database("shop")
    return Shop(Target(server.host, server.port, "shop", "shop_owner", password, "require", None))


@pytest.fixture
def running_pooler(shop: Shop, tmp_path: Path) -> Iterator[Pooler]:
    """A pooler on the shop's plain configuration."""
    with pooler(tmp_path, shop.configuration()) as made:
        yield made
