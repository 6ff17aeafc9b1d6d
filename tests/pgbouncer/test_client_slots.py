"""Client slots on a real PgBouncer (C6): whatever some consumers open, each other one gets in and works.

Fails without the feature: a pooler's max_client_conn then belongs to the consumer that comes first.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from poolkeeper.consumers.consent import Consumer
from poolkeeper.consumers.entries import entries, entry_name, login_name, session_entry_name
from poolkeeper.credentials.mint import mint
from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.client_slots import divisible
from poolkeeper.pgbouncer.configuration import Configuration, configuration
from poolkeeper.spec.types import Terms
from tests.pgbouncer.processes import DIRECTORY, Pooler, pooler
from tests.pgbouncer.shop import API, WEB, Shop

JOBS = Consumer("jobs", "database")
SLOTS = 60
PARAMETERS = {"max_client_conn": str(SLOTS)}
REFUSED = "client connections exceeded \\(max_user_client_connections\\)"


@pytest.fixture(scope="module")
def three(shop: Shop) -> Shop:
    """The shop with a third consumer."""
    logins = {**shop.logins.consumers, login_name(JOBS): mint(login_name(JOBS))}
    return replace(shop, logins=replace(shop.logins, consumers=logins))


def shared(shop: Shop, terms: dict[Consumer, Terms] | None = None, slots: int = SLOTS) -> Configuration:
    rows = entries(shop.target, [WEB, API, JOBS], "transaction", terms or {})
    parameters = {"max_client_conn": str(slots)}
    return configuration(shop.target, rows, shop.logins, shop.certificate, parameters, DIRECTORY)


def connect(running: Pooler, shop: Shop, consumer: Consumer, *, session: bool = False) -> psycopg.Connection:
    name = (session_entry_name if session else entry_name)(shop.target.database, consumer)
    return psycopg.connect(**shop.connection(running, consumer, name), connect_timeout=5)


def greedy(
    stack: contextlib.ExitStack, running: Pooler, shop: Shop, consumer: Consumer
) -> list[psycopg.Connection]:
    """Opens more than the pooler takes at all, on both endpoints by turns; answers what it got."""
    got = []
    for attempt in range(SLOTS + 20):
        try:
            client = connect(running, shop, consumer, session=attempt % 2 == 1)
        except psycopg.OperationalError as refusal:
            if "max_user_client_connections" not in str(refusal):
                raise
        else:
            got.append(stack.enter_context(client))
    return got


@pytest.fixture
def running(three: Shop, tmp_path: Path) -> Iterator[Pooler]:
    with pooler(tmp_path, shared(three)) as made:
        yield made


def works(running: Pooler, shop: Shop, consumer: Consumer) -> None:
    with connect(running, shop, consumer) as client:
        assert client.execute("SELECT 1").fetchone() == (1,)


async def test_c6_one_greedy_consumer_locks_no_other_out(running: Pooler, three: Shop) -> None:
    bound = shared(three).slots[login_name(WEB)]
    assert 1 < bound < SLOTS / 2
    with contextlib.ExitStack() as stack:
        assert len(greedy(stack, running, three, WEB)) == bound
        works(running, three, API)
        works(running, three, JOBS)
        async with console.connect(three.console(running), 3) as opened:
            users = {row["name"]: row["current_client_connections"] for row in await opened.show("USERS")}
        assert users[login_name(WEB)] == str(bound)


async def test_c6_two_greedy_consumers_lock_neither_the_third_nor_the_console_out(
    running: Pooler, three: Shop
) -> None:
    with contextlib.ExitStack() as stack:
        greedy(stack, running, three, WEB)
        greedy(stack, running, three, API)
        third = [stack.enter_context(connect(running, three, JOBS)) for _ in range(5)]
        for client in third:
            assert client.execute("SELECT 1").fetchone() == (1,)
        async with console.connect(three.console(running), 3) as opened:
            assert await opened.show("VERSION")


async def test_c6_with_every_slot_taken_the_console_still_lets_the_operator_in(
    three: Shop, tmp_path: Path
) -> None:
    """All consumers at their bounds and the spare slots taken by clients that never say who they are."""
    with pooler(tmp_path, shared(three)) as running, contextlib.ExitStack() as stack:
        for consumer in (WEB, API, JOBS):
            greedy(stack, running, three, consumer)
        for _ in range(SLOTS - divisible(SLOTS) + 20):
            stack.enter_context(contextlib.closing(_silent(running)))
        async with console.connect(three.console(running), 3) as opened:
            assert await opened.show("VERSION")


def test_c6_a_slot_is_free_again_once_its_client_has_left(running: Pooler, three: Shop) -> None:
    with contextlib.ExitStack() as stack:
        greedy(stack, running, three, WEB)[0].close()
        stack.enter_context(connect(running, three, WEB))
        with pytest.raises(psycopg.OperationalError, match=REFUSED):
            connect(running, three, WEB)


async def test_c6_bounds_change_by_reload_and_drop_no_client(three: Shop, tmp_path: Path) -> None:
    with pooler(tmp_path, shared(three)) as running, contextlib.ExitStack() as stack:
        there = greedy(stack, running, three, WEB)
        for terms, slots in (({WEB: Terms(weight=300)}, SLOTS), ({}, 30), ({}, 90), ({}, SLOTS)):
            changed = running.write(shared(three, terms, slots))
            assert await running.apply(changed, three.console(running)) is None
            async with console.connect(three.console(running), 3) as opened:
                shown = {row["name"]: row["max_user_client_connections"] for row in await opened.show("USERS")}
            assert {name: shown[name] for name in changed.slots} == {
                name: str(bound) for name, bound in changed.slots.items()
            }
            for client in there:
                client.execute("SELECT 1")
            works(running, three, JOBS)


async def test_c6_a_consumer_that_comes_takes_its_share_from_those_that_are_there(
    three: Shop, tmp_path: Path
) -> None:
    def of(*consumers: Consumer) -> Configuration:
        rows = entries(three.target, consumers, "transaction")
        return configuration(three.target, rows, three.logins, three.certificate, PARAMETERS, DIRECTORY)

    with pooler(tmp_path, of(WEB, API)) as running, contextlib.ExitStack() as stack:
        assert len(greedy(stack, running, three, WEB)) == of(WEB, API).slots[login_name(WEB)]
        changed = running.write(of(WEB, API, JOBS))
        assert await running.apply(changed, three.console(running)) is None
        greedy(stack, running, three, API)
        works(running, three, JOBS)


def _silent(running: Pooler) -> socket.socket:
    return socket.create_connection((running.host, running.port), 5)
