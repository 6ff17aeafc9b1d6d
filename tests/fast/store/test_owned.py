"""What belongs to which PooledDatabase: one owner at a time, and nothing is left of what is gone."""

from poolkeeper.observed.refs import Key, Ref
from poolkeeper.store.owned import Owned

ONE, TWO = Key("data", "one"), Key("data", "two")
REF = Ref("Pod", "data", "p")


def test_what_is_new_or_changed_concerns_its_owner_and_an_echo_concerns_none() -> None:
    owned: Owned[int] = Owned()
    assert owned.put(ONE, REF, 1) == {ONE}
    assert owned.put(ONE, REF, 1) == frozenset()
    assert owned.put(ONE, REF, 2) == {ONE}
    assert (owned.get(REF), owned.owner(REF), owned.of(ONE)) == (2, ONE, {REF: 2})


def test_a_change_keeps_the_order() -> None:
    owned: Owned[int] = Owned()
    refs = [Ref("Pod", "data", name) for name in ("c", "a", "b")]
    for number, ref in enumerate([*refs, *refs]):
        owned.put(ONE, ref, number)
    assert list(owned.of(ONE)) == refs


def test_another_owner_concerns_the_one_before_and_the_one_after() -> None:
    owned: Owned[int] = Owned()
    owned.put(ONE, REF, 1)
    assert owned.put(TWO, REF, 1) == {ONE, TWO}
    assert not owned.of(ONE)
    assert (owned.of(TWO), owned.owners()) == ({REF: 1}, frozenset({TWO}))


def test_nothing_is_left_of_what_is_gone() -> None:
    owned: Owned[int] = Owned()
    owned.put(ONE, REF, 1)
    assert owned.drop(REF) == {ONE}
    assert owned.drop(REF) == frozenset()
    assert (owned.get(REF), owned.owner(REF), owned.owners()) == (None, None, frozenset())
