"""A server's connections among namespaces, and among the PooledDatabases of each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from poolkeeper.budget.division import Consumer, Limit
from poolkeeper.budget.shares import Pooled, reserved, shares

WEB = Consumer("web", "web.session")


def pooled(
    name: str, consumers: int = 1, *, weight: int = 100, reserve: int = 0, namespace_weight: int = 100
) -> Pooled:
    """One with so many consumers, each of which needs two connections."""
    each = tuple(Consumer(f"{name}-{number}", f"{name}-{number}.session") for number in range(consumers))
    return Pooled(name, weight, None, 2, each, reserve=reserve, namespace_weight=namespace_weight)


def test_namespaces_get_equal_parts_however_many_pooled_databases_they_have() -> None:
    alone, many = pooled("shop/one"), [pooled(f"crowd/{number}") for number in range(9)]
    given_out = shares(90, [*many, alone])
    assert given_out["shop/one"] == 45
    assert sum(given_out[item.name] for item in many) == 45


def test_weights_divide_a_namespace_s_own_part() -> None:
    heavy, light = pooled("crowd/heavy", weight=1000), pooled("crowd/light", weight=100)
    given_out = shares(66 * 2, [heavy, light, pooled("shop/one")])
    assert given_out == {"crowd/heavy": 60, "crowd/light": 6, "shop/one": 66}


def test_the_platform_weighs_namespaces() -> None:
    one, two = pooled("a/one", namespace_weight=300), pooled("b/two")
    assert shares(80, [one, two]) == {"a/one": 60, "b/two": 20}


def test_what_a_namespace_may_not_have_goes_to_the_others() -> None:
    small = Pooled("small/a", 100, None, 2, (replace(WEB, limit=6),))
    large = Pooled("large/a", 100, None, 2, (WEB,))
    assert shares(50, [small, large]) == {"small/a": 6, "large/a": 44}
    assert shares(50, [small, replace(large, most=10)]) == {"small/a": 6, "large/a": 10}
    none = Pooled("idle/a", 100, None, 0, (WEB,))
    assert shares(50, [none, large]) == {"idle/a": 0, "large/a": 50}


def test_a_reserve_comes_out_of_its_namespace_s_part() -> None:
    modest, greedy = pooled("shop/one", reserve=5), pooled("crowd/one", reserve=1000)
    assert shares(100, [modest]) == {"shop/one": 95}
    assert shares(100, [greedy, modest]) == {"crowd/one": 0, "shop/one": 45}
    assert reserved(100, [greedy, modest]) == 50 + 5
    both = [pooled("shop/one", reserve=5), pooled("shop/two", reserve=9)]
    assert reserved(100, both) == 9, "one namespace's largest counts"
    assert sum(shares(100, both).values()) == 91


def test_floors_that_do_not_all_fit_go_to_the_smallest_first() -> None:
    greedy = pooled("aaa/first", consumers=1000)
    honest = [pooled("data/shop", consumers=3), pooled("data/blog", consumers=2)]
    given_out = shares(40, [greedy, *honest])
    assert given_out == {"aaa/first": 30, "data/shop": 6, "data/blog": 4}


def test_in_a_namespace_the_first_ones_come_first() -> None:
    first, late = pooled("a/first", consumers=5), pooled("a/late", consumers=5)
    assert shares(14, [first, late]) == {"a/first": 10, "a/late": 4}


def test_a_limit_that_several_have_in_common_is_kept_and_the_rest_goes_to_others() -> None:
    parties = [pooled("a/one"), pooled("b/two"), pooled("c/three")]
    limit = Limit(frozenset({"a/one", "b/two"}), 10)
    assert shares(40, parties, [limit]) == {"a/one": 5, "b/two": 5, "c/three": 30}
    same = [pooled("x/one"), pooled("x/two"), pooled("x/three")]
    limit = Limit(frozenset({"x/one", "x/two"}), 10)
    assert shares(40, same, [limit]) == {"x/one": 5, "x/two": 5, "x/three": 30}


def test_limits_that_are_alike_each_count_once() -> None:
    """The role's and the database's, on the same PooledDatabases."""
    both = [Limit(frozenset({"a/one"}), 10)] * 2
    assert shares(40, [pooled("a/one"), pooled("b/two")], both) == {"a/one": 10, "b/two": 30}


NAMESPACES = ("data", "shop", "crowd")
POOLED = st.builds(
    Pooled,
    name=st.builds("{}/{}".format, st.sampled_from(NAMESPACES), st.sampled_from("abcd")),
    weight=st.integers(1, 1000),
    most=st.none() | st.integers(1, 80),
    pods=st.integers(0, 3),
    consumers=st.lists(st.integers(0, 3), max_size=4).map(
        lambda sessions: tuple(
            Consumer(f"e{index}", f"e{index}.session", sessions=number) for index, number in enumerate(sessions)
        )
    ),
    reserve=st.integers(0, 1000),
)
SEVERAL = st.lists(POOLED, max_size=6, unique_by=lambda item: item.name)


def of(namespace: str, given_out: dict[str, int]) -> dict[str, int]:
    return {name: amount for name, amount in given_out.items() if name.startswith(f"{namespace}/")}


@given(st.integers(0, 150), SEVERAL)
def test_never_more_is_given_out_than_there_is(usable: int, databases: list[Pooled]) -> None:
    given_out = shares(usable, databases)
    kept = reserved(usable, databases)
    assert sum(given_out.values()) + kept <= usable
    for item in databases:
        assert (
            0 <= given_out[item.name] <= (usable if item.most is None else max(item.most, 9 * len(NAMESPACES)))
        )
    may_grow = [item for item in databases if item.most is None and item.pods and item.consumers]
    assert not may_grow or sum(given_out.values()) + kept == usable


@given(st.integers(0, 150), SEVERAL, SEVERAL)
def test_nothing_that_a_namespace_writes_takes_from_another_s_equal_part(
    usable: int, honest: list[Pooled], hostile: list[Pooled]
) -> None:
    """Whatever stands in namespace `evil`, the others keep what they would have if it took all that it can."""
    evil = [replace(item, name=f"evil/{item.name[-1]}{index}") for index, item in enumerate(hostile)]
    most_hungry = replace(pooled("evil/a", consumers=200), reserve=0)
    least = shares(usable, [*honest, most_hungry])
    given_out = shares(usable, [*evil, *honest])
    for namespace in NAMESPACES:
        ours = sum(of(namespace, given_out).values())
        assert ours >= sum(of(namespace, least).values()) - 1, "but for one connection of rounding"


@given(st.integers(0, 150), SEVERAL, st.integers(1, 1000), st.integers(0, 1000))
def test_a_weight_or_a_reserve_moves_nothing_between_other_namespaces(
    usable: int, databases: list[Pooled], weight: int, reserve: int
) -> None:
    assume(databases)
    first, *rest = databases
    changed = replace(first, weight=weight)
    for other in set(NAMESPACES) - {first.namespace}:
        assert of(other, shares(usable, databases)) == of(other, shares(usable, [changed, *rest]))
    grown = replace(first, reserve=reserve + max(item.reserve for item in databases))
    before, after = shares(usable, databases), shares(usable, [grown, *rest])
    part = usable // len({item.namespace for item in databases})
    for other in set(NAMESPACES) - {first.namespace}:
        had, has = sum(of(other, before).values()), sum(of(other, after).values())
        kept = max((item.reserve for item in databases if item.namespace == other), default=0)
        assert has >= min(had, part - kept) - 1


@given(st.integers(0, 150), SEVERAL)
def test_one_connection_more_takes_nothing_from_a_namespace(usable: int, databases: list[Pooled]) -> None:
    before, after = shares(usable, databases), shares(usable + 1, databases)
    for namespace in NAMESPACES:
        assert sum(of(namespace, after).values()) >= sum(of(namespace, before).values())


@pytest.mark.parametrize("usable", [0, 1, 7])
def test_of_a_single_namespace_nothing_else_is_divided(usable: int) -> None:
    assert shares(usable, [pooled("a/one", consumers=3)]) == {"a/one": usable}
