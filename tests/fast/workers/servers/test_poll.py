"""Since when pods are there or gone, as looks at one server after the other tell it."""

from poolkeeper.workers.servers.poll import FORGET_SECONDS, since


def test_since_when_it_is_so_stays_however_long_it_lasts() -> None:
    known = since({}, ["a"], 1.0)
    for now in (2.0, FORGET_SECONDS, 3 * FORGET_SECONDS):
        known = since(known, ["a"], now)
        assert known == {"a": 1.0}


def test_a_look_that_does_not_see_it_forgets_nothing_at_once() -> None:
    known = since({}, ["a"], 1.0)
    known = since(known, ["b"], 2.0)
    assert known == {"a": 1.0, "b": 2.0}
    assert since(known, ["a"], 3.0) == {"a": 1.0, "b": 2.0}


def test_what_no_look_sees_any_more_is_forgotten_in_the_end() -> None:
    known = since({}, ["a", "b"], 1.0)
    assert since(known, ["b"], FORGET_SECONDS) == {"a": 1.0, "b": 1.0}
    assert since(known, ["b"], 1.0 + FORGET_SECONDS) == {"b": 1.0}
