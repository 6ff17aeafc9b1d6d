"""Who is on a pooler, and what follows from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.pgbouncer.clients import Client, KeeperConsole, holders, present, suspects, to_close


def keeper(name: str, ip: str, login: str = "web") -> KeeperConsole:
    return KeeperConsole(name, "web", name, login, ConsoleAccess(ip, 6432, "secret", "web.keeper", ""))


def client(
    number: int, address: str = "10.0.0.1", login: str = "web", idle: bool = True, since: str = ""
) -> Client:
    return Client(str(number), address, login, idle, since)


ONE, TWO = keeper("one", "10.0.0.1"), keeper("two", "10.0.0.2")


ROW = {
    "id": "1",
    "addr": "10.0.0.1",
    "user": "web",
    "state": "active",
    "link": "0x1",
    "request_time": "t",
    "database": "shop",
}


def test_consoles_are_no_clients() -> None:
    assert present([ROW, {**ROW, "database": "pgbouncer"}]) == (client(1, idle=False, since="t"),)


@pytest.mark.parametrize(
    ("state", "link", "idle"),
    [
        ("active", "0x1", False),
        ("active", "", True),
        ("idle", "", True),
        ("waiting", "", False),
        ("waiting_cancel_req", "", False),
    ],
)
def test_a_client_is_idle_without_a_server_whatever_its_version_calls_that(
    state: str, link: str, idle: bool
) -> None:
    assert present([{**ROW, "state": state, "link": link}]) == (client(1, idle=idle, since="t"),)


def test_a_keeper_is_known_by_its_address_and_login_together() -> None:
    """A pod may have keepers of two consumers, and apps that come without one."""
    other = keeper("other", "10.0.0.1", "reports")
    assert holders([client(1)], [ONE, TWO, other]) == {ONE: True}
    assert holders([client(1, login="reports", idle=False)], [ONE, TWO, other]) == {other: False}


def test_one_idle_connection_makes_it_worth_while_to_ask_a_keeper() -> None:
    assert holders([client(1, idle=False), client(2)], [ONE]) == {ONE: True}
    assert holders([client(1, idle=False), client(2, idle=False)], [ONE]) == {ONE: False}


def test_an_address_that_is_no_keepers_puts_keepers_of_its_login_under_suspicion() -> None:
    strange = keeper("strange", "10.0.0.3", "reports")
    assert suspects([client(1), client(2, "192.0.2.1")], [ONE, TWO, strange]) == {ONE, TWO}
    assert suspects([client(1)], [ONE, TWO, strange]) == set()


def test_the_longest_idle_is_closed_first_and_nobody_in_a_transaction() -> None:
    clients = [client(1, since="12:02"), client(2, since="12:01"), client(3, since="12:00", idle=False)]
    assert to_close(clients, 0.1, 10) == ["2"]
    assert to_close(clients, 0.1, 0) == ["2", "1"]


@given(st.integers(0, 2000), st.floats(0.5, 20))
def test_the_idle_ones_are_gone_in_time(count: int, left: float) -> None:
    clients = [client(number) for number in range(count)]
    while left > 0.1:
        closed = set(to_close(clients, 0.1, left))
        clients = [item for item in clients if item.id not in closed]
        left -= 0.1
    assert set(to_close(clients, 0.1, left)) == {item.id for item in clients}
    assert len(clients) <= count / 2 + 1
