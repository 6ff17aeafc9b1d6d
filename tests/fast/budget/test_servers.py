"""Which PooledDatabases share a server, and what others hold there: in doubt fewer connections, never more."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.budget.division import Limit
from poolkeeper.budget.servers import (
    LINGERING_SECONDS,
    WINDOW_SECONDS,
    Backend,
    Identity,
    Measured,
    Others,
    Ours,
    apart,
    limits,
)

IDENTITY = st.builds(
    lambda system, instance, since, later: Identity(system, instance, float(since), float(since + later)),
    st.sampled_from(["s1", "s2"]),
    st.sampled_from(["", "i1", "i2", "i3"]),
    st.integers(0, 4),
    st.integers(0, 4),
)
IDENTITIES = st.dictionaries(st.sampled_from("abcde"), IDENTITY, min_size=1)


def together(identities: dict[str, Identity], one: str, other: str) -> bool:
    return any({one, other} <= set(group) for group in apart(identities))


@given(IDENTITIES)
def test_everybody_is_in_one_group(identities: dict[str, Identity]) -> None:
    groups = apart(identities)
    assert sorted(name for group in groups for name in group) == sorted(identities)


@given(IDENTITIES, st.randoms())
def test_the_order_of_names_does_not_matter(identities: dict[str, Identity], random: object) -> None:
    renamed = {f"{'edcba'['abcde'.index(name)]}": item for name, item in identities.items()}
    back = {"edcba"[index]: "abcde"[index] for index in range(5)}
    groups = {frozenset(back[name] for name in group) for group in apart(renamed)}
    assert groups == {frozenset(group) for group in apart(identities)}


@given(IDENTITIES)
def test_the_same_instance_and_an_unknown_one_are_together(identities: dict[str, Identity]) -> None:
    for one, first in identities.items():
        for other, second in identities.items():
            if first.system == second.system and (
                first.instance == second.instance or not first.instance or not second.instance
            ):
                assert together(identities, one, other)


@given(IDENTITIES)
def test_different_systems_are_never_together(identities: dict[str, Identity]) -> None:
    for group in apart(identities):
        assert len({identities[name].system for name in group}) == 1


@given(IDENTITIES)
def test_who_is_apart_was_seen_after_the_others_last_change(identities: dict[str, Identity]) -> None:
    for one, first in identities.items():
        for other, second in identities.items():
            if first.system == second.system and not together(identities, one, other):
                assert first.at >= second.since
                assert second.at >= first.since


@given(IDENTITIES, IDENTITY)
def test_another_one_joins_groups_and_never_parts_them(
    identities: dict[str, Identity], another: Identity
) -> None:
    after = {**identities, "z": another}
    for group in apart(identities):
        for name in group:
            assert together(after, group[0], name)


def test_a_restarted_server_is_one_until_everybody_looked_again() -> None:
    """`web` and `api` are on one server under two names; only web saw it start anew."""
    web, api = Identity("s", "start-1", 0.0, 10.0), Identity("s", "start-1", 0.0, 10.0)
    assert apart({"web": web, "api": api}) == (("api", "web"),)
    web = web.seen("s", "start-2", 20.0)
    assert (web.since, web.at) == (20.0, 20.0)
    assert apart({"web": web, "api": api}) == (("api", "web"),), "api may have been led to the new one as well"
    assert apart({"web": web, "api": api.seen("s", "start-2", 21.0)}) == (("api", "web"),)


def test_a_standby_is_another_server_once_both_were_seen_since() -> None:
    primary, standby = Identity("s", "start-1", 0.0, 10.0), Identity("s", "start-2", 5.0, 5.0)
    assert apart({"primary": primary, "standby": standby}) == (("primary",), ("standby",))
    assert apart({"primary": replace(primary, at=4.0), "standby": standby}) == (("primary", "standby"),)


def test_seen_again_the_same_it_is_as_old_as_before() -> None:
    assert Identity("s", "i", 1.0, 2.0).seen("s", "i", 9.0) == Identity("s", "i", 1.0, 9.0)
    assert Identity("s", "i", 1.0, 2.0).seen("t", "i", 9.0) == Identity("t", "i", 9.0, 9.0)


# Connections of others

OURS = Ours(frozenset({"owner"}), frozenset({1, 2}), frozenset({"10.0.0.9"}))


def measured(*backends: Backend) -> Measured:
    return Measured(100, 3, 0, backends, {}, {})


def theirs(count: int) -> tuple[Backend, ...]:
    return tuple(Backend(1000 + number, "other", "shop", "") for number in range(count))


def unknown(count: int) -> tuple[Backend, ...]:
    """Of the poolers' user, and of no pooler."""
    return tuple(Backend(2000 + number, "owner", "shop", "10.0.0.5") for number in range(count))


def test_only_what_a_pooler_knows_or_comes_from_one_that_was_not_asked_is_ours() -> None:
    mine = (Backend(1, "owner", "shop", ""), Backend(77, "owner", "shop", "10.0.0.9"))
    foreign = (
        Backend(1, "other", "shop", ""),
        Backend(78, "owner", "shop", ""),
        Backend(79, "other", "x", "10.0.0.9"),
    )
    assert OURS.strangers(measured(*mine, *foreign)) == foreign


def test_connections_of_others_count_at_once_and_for_a_minute() -> None:
    others = Others()
    for at, count in ((0.0, 3), (1.0, 20), (2.0, 4)):
        others = others.advance(OURS, measured(*theirs(count)), 0, at)
        assert others.now == count
    assert others.lasting == 20
    others = others.advance(OURS, measured(*theirs(4)), 0, 0.9 + WINDOW_SECONDS)
    assert others.lasting == 20
    others = others.advance(OURS, measured(*theirs(4)), 0, 1.0 + WINDOW_SECONDS)
    assert others.lasting == 4
    assert others.now == 4


def test_what_poolers_just_left_is_no_reason_to_give_anything_up() -> None:
    others = Others().advance(OURS, measured(), 0, 0.0)
    others = others.advance(OURS, measured(*unknown(6)), 0, 1.0)
    assert (others.now, others.lasting) == (6, 0)
    others = others.advance(OURS, measured(), 0, 2.0)
    assert (others.now, others.lasting) == (0, 0)


def test_what_stays_although_no_pooler_knows_it_is_somebody_elses() -> None:
    others, at = Others(), 0.0
    while at <= 2 * LINGERING_SECONDS:
        others = others.advance(OURS, measured(*theirs(2), *unknown(6)), 0, at)
        at += 1.0
    assert (others.now, others.lasting) == (8, 8)


def test_the_operators_own_connections_count() -> None:
    """They are the poolers' user's, and nobody's surplus."""
    own = Backend(3000, "owner", "postgres", "")
    others = Others().advance(OURS, measured(own, *theirs(1)), 1, 0.0)
    assert (others.now, others.lasting) == (2, 2)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=30))
def test_what_lasts_is_no_less_than_the_most_of_the_last_minute(samples: list[tuple[int, int]]) -> None:
    others = Others()
    for second, (count, left) in enumerate(samples):
        others = others.advance(OURS, measured(*theirs(count), *unknown(left)), 0, float(second))
        assert others.now == count + left
        assert others.lasting >= max(item for item, _ in samples[: second + 1])
        assert others.lasting <= max(item + gone for item, gone in samples[: second + 1])


SAMPLES = st.lists(
    st.tuples(st.sampled_from([0.1, 1.0, LINGERING_SECONDS, 20.0]), st.integers(0, 9), st.integers(0, 5)),
    min_size=1,
    max_size=40,
)


@given(SAMPLES)
def test_what_lasts_is_the_most_that_stayed_at_any_moment_of_the_last_minute(
    samples: list[tuple[float, int, int]],
) -> None:
    others, at = Others(), 0.0
    seen: list[tuple[float, int, int]] = []
    for pause, count, left in samples:
        at += pause
        seen.append((at, count, left))
        others = others.advance(OURS, measured(*theirs(count), *unknown(left)), 0, at)
        stayed = [
            number + min(gone for time, _, gone in seen if when - LINGERING_SECONDS <= time <= when)
            for when, number, _ in seen
            if when > at - WINDOW_SECONDS
        ]
        assert others.lasting == max(stayed)


def test_what_poolers_left_is_not_taken_for_others_a_minute_later() -> None:
    others = Others()
    for second in range(2 * int(WINDOW_SECONDS)):
        others = others.advance(OURS, measured(*unknown(6 if second == 1 else 0)), 0, float(second))
        assert others.lasting == 0, second


# CONNECTION LIMITs


def test_a_limit_concerns_those_of_its_role_or_database() -> None:
    found = replace(
        measured(*theirs(3), Backend(1, "owner", "shop", ""), *unknown(2)),
        role_limits={"owner": 20, "nobody": 1},
        database_limits={"shop": 30, "else": 2},
    )
    members = {"data/shop": ("owner", "shop"), "data/blog": ("owner", "blog")}
    assert limits(found, members, OURS) == (
        Limit(frozenset({"data/shop", "data/blog"}), 18),
        Limit(frozenset({"data/shop"}), 25),
    )


def test_a_limit_that_others_have_used_up_leaves_nothing() -> None:
    found = replace(measured(*theirs(9)), database_limits={"shop": 4})
    assert limits(found, {"data/shop": ("owner", "shop")}, OURS) == (Limit(frozenset({"data/shop"}), 0),)
