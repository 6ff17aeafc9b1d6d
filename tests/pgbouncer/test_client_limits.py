"""limits.maxClientConnections on a real PgBouncer: it is kept, what clients are told, and its changes."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import psycopg
import pytest

from poolkeeper.consumers.entries import entries
from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.configuration import Configuration, configuration
from poolkeeper.spec.types import Terms
from tests.pgbouncer.processes import DIRECTORY, Pooler, pooler
from tests.pgbouncer.shop import API, WEB, Shop

DOCS = Path(__file__).parents[2] / "docs" / "concepts.md"


def limited(shop: Shop, clients: int | None) -> Configuration:
    """Where WEB may have so many clients at each endpoint of one pooler."""
    terms = {WEB: Terms(max_client_connections=clients)}
    rows = entries(shop.target, [WEB, API], "transaction", terms)
    return configuration(shop.target, rows, shop.logins, shop.certificate, {}, DIRECTORY)


async def shown(running: Pooler, shop: Shop, entry: str) -> dict[str, str]:
    async with console.connect(shop.console(running), 3) as opened:
        return next(row for row in await opened.show("DATABASES") if row["name"] == entry)


def connect(running: Pooler, shop: Shop, entry: str) -> psycopg.Connection:
    return psycopg.connect(**shop.connection(running, WEB, entry), connect_timeout=5)


def test_clients_beyond_the_limit_of_an_endpoint_are_refused_and_told(shop: Shop, tmp_path: Path) -> None:
    with pooler(tmp_path, limited(shop, 2)) as running, contextlib.ExitStack() as clients:
        for entry in (shop.entry(WEB), shop.session_entry(WEB)):
            for _ in range(2):
                clients.enter_context(connect(running, shop, entry))
            with pytest.raises(psycopg.OperationalError, match="client connections exceeded"):
                connect(running, shop, entry)
        # Another consumer does not notice.
        for _ in range(5):
            clients.enter_context(psycopg.connect(**shop.connection(running, API)))


@pytest.mark.parametrize("database", ["postgres", "test_shop", "another consumer's"])
def test_c10_another_database_name_is_answered_in_the_words_that_the_docs_explain(
    shop: Shop, running_pooler: Pooler, database: str
) -> None:
    name = shop.entry(API) if database == "another consumer's" else database
    with pytest.raises(psycopg.OperationalError) as refusal:
        connect(running_pooler, shop, name)
    explained = DOCS.read_text().partition("## Errors from the poolers")[2].partition("\n## ")[0]
    words = re.findall(r"^\| `([^`]+)` \|", explained, re.MULTILINE)
    assert [text for text in words if text in str(refusal.value)] == [words[0]]
    assert "PGDATABASE" in explained


def test_a_place_is_free_again_once_a_client_has_left(shop: Shop, tmp_path: Path) -> None:
    with pooler(tmp_path, limited(shop, 1)) as running:
        for _ in range(5):
            connect(running, shop, shop.entry(WEB)).close()


async def test_the_limit_arrives_changes_and_goes_by_reload_and_drops_no_client(
    shop: Shop, tmp_path: Path
) -> None:
    entry = shop.entry(WEB)
    with pooler(tmp_path, limited(shop, None)) as running, contextlib.ExitStack() as clients:
        assert (await shown(running, shop, entry))["max_client_connections"] == "0"
        there = [clients.enter_context(connect(running, shop, entry)) for _ in range(3)]
        for clients_allowed, text in ((2, "2"), (4, "4"), (None, "0")):
            changed = running.write(limited(shop, clients_allowed))
            assert await running.apply(changed, shop.console(running)) is None
            assert (await shown(running, shop, entry))["max_client_connections"] == text
            for client in there:
                client.execute("SELECT 1")
