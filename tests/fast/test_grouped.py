"""A dict with an index is a dict, and its index is what a look at every value would find."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.grouped import Grouped

CHANGES = st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(0, 9))), max_size=40)


@given(CHANGES)
def test_it_is_a_dict_whose_groups_are_true(changes: list[tuple[str, int | None]]) -> None:
    found: Grouped[str, int] = Grouped(lambda value: value % 3)
    expected: dict[str, int] = {}
    for key, value in changes:
        if value is None:
            assert found.pop(key, None) == expected.pop(key, None)
        else:
            found[key] = expected[key] = value
        assert dict(found) == expected
        assert len(found) == len(expected)
        for group in range(4):
            assert found.within(group) == {key for key, value in expected.items() if value % 3 == group}
    assert not any(found._keys[group] == set() for group in list(found._keys)), "an empty group is kept"


def test_what_is_not_there_is_no_key() -> None:
    found: Grouped[str, int] = Grouped(lambda value: value)
    with pytest.raises(KeyError):
        del found["a"]
    assert "a" not in found
    assert found.get("a") is None
