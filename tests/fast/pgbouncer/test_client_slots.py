"""How a pooler's client slots are divided (C6): never more than there are, and to each consumer its least."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.consumers import entries
from poolkeeper.consumers.consent import Consumer
from poolkeeper.consumers.entries import Entry
from poolkeeper.pgbouncer.client_slots import Party, divide, divisible, exhausted, needed
from poolkeeper.pgbouncer.configuration import divided_slots, with_slots
from poolkeeper.spec.types import Terms
from tests.fast.pgbouncer.test_files import API, TARGET, WEB

LIMITS = st.none() | st.integers(1, 2000)
ANY_NUMBER = st.integers(1, 3000)


@st.composite
def parties(draw: st.DrawFn) -> list[Party]:
    """Any number of consumers, of a few kinds that repeat."""
    kinds = draw(st.lists(st.tuples(st.integers(1, 1000), LIMITS), min_size=1, max_size=8))
    number = draw(ANY_NUMBER)
    return [Party(f"c{index}", *kinds[index % len(kinds)]) for index in range(number)]


@given(st.integers(1, 100_000), parties())
def test_c6_bounds_never_add_up_to_more_than_there_is_and_all_have_their_least(
    max_clients: int, consumers: list[Party]
) -> None:
    slots, bounds = divisible(max_clients), divide(max_clients, consumers)
    assert 1 <= slots <= max_clients
    assert bounds.keys() == {party.name for party in consumers}
    if exhausted(max_clients, bounds):
        assert set(bounds.values()) == {1}
        return
    assert sum(bounds.values()) <= slots
    least = max(1, slots // (2 * len(consumers)))
    for party in consumers:
        most = slots if party.ceiling is None else party.ceiling
        assert min(least, most) <= bounds[party.name] <= most


@given(st.integers(1, 100_000), parties())
def test_c6_no_slot_is_left_unused_that_one_more_for_each_could_take(
    max_clients: int, consumers: list[Party]
) -> None:
    """What the others leave is divided: the rest is smaller than one step of the level would take."""
    slots, bounds = divisible(max_clients), divide(max_clients, consumers)
    if exhausted(max_clients, bounds):
        return
    growing = [party for party in consumers if party.ceiling is None or bounds[party.name] < party.ceiling]
    if growing:
        assert slots - sum(bounds.values()) < len(growing)


@given(st.integers(1, 100_000), st.lists(st.integers(1, 1000), min_size=2, max_size=20))
def test_c6_a_larger_weight_never_gets_less(max_clients: int, weights: list[int]) -> None:
    bounds = divide(max_clients, [Party(f"c{index}", weight) for index, weight in enumerate(weights)])
    ordered = [bounds[f"c{index}"] for index in sorted(range(len(weights)), key=weights.__getitem__)]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize(
    ("max_clients", "consumers", "bounds"),
    [
        (1000, [Party("a")], [940]),
        (1000, [Party("a"), Party("b")], [470, 470]),
        (300, [Party("a"), Party("b"), Party("c")], [91, 91, 91]),
        (1000, [Party("a", 300), Party("b")], [705, 235]),
        # Half of an equal share, whatever the weights.
        (1000, [Party("a", 1000), Party("b", 1)], [705, 235]),
        (1000, [Party("a", 100, 40), Party("b")], [40, 900]),
        (1000, [Party("a", 100, 40), Party("b", 100, 50)], [40, 50]),
        (1, [Party("a")], [1]),
        (2, [Party("a"), Party("b")], [1, 1]),
        (20, [Party(str(number)) for number in range(30)], [1] * 30),
        (100_000, [Party(str(number)) for number in range(3000)], [31] * 3000),
    ],
)
def test_c6_the_division_by_example(max_clients: int, consumers: list[Party], bounds: list[int]) -> None:
    assert list(divide(max_clients, consumers).values()) == bounds


@given(ANY_NUMBER)
def test_c6_the_remedy_against_too_few_slots_is_enough_and_no_more(consumers: int) -> None:
    assert divisible(needed(consumers)) >= consumers > divisible(needed(consumers) - 1)


def test_c6_a_limit_of_clients_on_both_endpoints_leaves_the_rest_to_the_others() -> None:
    terms = {WEB: Terms(max_client_connections=10)}
    rows = entries.entries(TARGET, [WEB, API], "transaction", terms, poolers=2)
    bounds = divided_slots({"max_client_conn": "300"}, rows)
    assert bounds == {entries.login_name(WEB): 10, entries.login_name(API): 265}


def test_c6_max_user_client_connections_stays_a_limit_for_all() -> None:
    rows = entries.entries(TARGET, [WEB, API], "transaction")
    bounds = divided_slots(with_slots({"max_user_client_connections": "7"}, rows), rows)
    assert set(bounds.values()) == {7}


@pytest.mark.parametrize(("consumers", "most", "each"), [(1, 1000, 940), (47, 1000, 20), (48, 1021, 20)])
def test_c6_with_many_consumers_the_default_leaves_each_of_them_twenty(
    consumers: int, most: int, each: int
) -> None:
    rows = entries.entries(TARGET, [Consumer(f"n{number}", "db") for number in range(consumers)], "transaction")
    parameters = with_slots({}, rows)
    assert parameters == {"max_client_conn": str(most)}
    assert set(divided_slots(parameters, rows).values()) == {each}
    assert with_slots({"max_client_conn": "40"}, rows) == {"max_client_conn": "40"}


def test_c6_the_default_is_one_that_could_be_written_too() -> None:
    rows = [Entry(f"e{number}", "shop", f"l{number}", "transaction", "") for number in range(9000)]
    assert with_slots({}, rows) == {"max_client_conn": "100000"}
