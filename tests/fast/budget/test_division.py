"""The budget's arithmetic: all is given out, nobody goes short of the least, and little moves at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.budget.division import Consumer, Division, Party, Server, apportion, divide, party
from poolkeeper.budget.problems import LIMIT_TOO_SMALL, Problem
from poolkeeper.budget.protocol import Allotment, Pooler, Record
from poolkeeper.budget.shares import Pooled
from poolkeeper.budget.targets import target

PARTIES = st.lists(
    st.builds(
        Party,
        st.sampled_from("abcdefgh"),
        st.integers(1, 1000),
        st.integers(0, 6),
        st.none() | st.integers(6, 40),
    ),
    max_size=6,
    unique_by=lambda item: item.name,
)
CONSUMERS = st.lists(
    st.builds(
        lambda name, weight, limit, sessions: Consumer(name, f"{name}.session", weight, limit, sessions),
        st.sampled_from(["web", "api", "jobs", "mail"]),
        st.integers(1, 1000),
        st.none() | st.integers(1, 40),
        st.integers(0, 3),
    ),
    max_size=4,
    unique_by=lambda item: item.entry,
)
WEB, API = Consumer("web", "web.session"), Consumer("api", "api.session")


def pods(count: int, prefix: str = "pod") -> list[str]:
    return [f"{prefix}-{number}" for number in range(count)]


def totals(division: Division) -> dict[str, int]:
    found: dict[str, int] = {}
    for caps in division.caps.values():
        for entry, cap in caps.items():
            found[entry] = found.get(entry, 0) + cap
    return found


# What a server has


def test_usable_is_what_nobody_else_may_or_does_take() -> None:
    server = Server(max_connections=100, superuser_reserved=3, reserved=2, others=20)
    assert server.usable(5) == 70
    assert server.arithmetic(5) == (
        "100 (max_connections) - 3 (superuser_reserved_connections) - 2 (reserved_connections)"
        " - 5 (spec.budget.reserve) - 20 (held by others) = 70"
    )


def test_a_server_that_is_full_of_others_has_nothing_rather_than_less() -> None:
    assert Server(20, 3, 0, 40).usable(5) == 0
    assert Server(20, 3, 0, 0).arithmetic(0) == "20 (max_connections) - 3 (superuser_reserved_connections) = 17"


# Dividing by weight


def test_connections_go_by_weight() -> None:
    assert apportion(60, [Party("a", 100), Party("b", 200), Party("c", 300)]) == {"a": 10, "b": 20, "c": 30}


@given(st.integers(0, 120), PARTIES)
def test_everything_is_given_out_within_floors_and_ceilings(total: int, parties: list[Party]) -> None:
    given_out = apportion(total, parties)
    assert sum(given_out.values()) <= total
    full = all(item.ceiling is not None and given_out[item.name] >= item.ceiling for item in parties)
    left_out = [item for item in parties if given_out[item.name] < item.floor]
    if not full and not left_out:
        assert sum(given_out.values()) == total or not parties
    for item in parties:
        amount = given_out[item.name]
        assert amount == 0 or amount >= item.floor
        assert item.ceiling is None or amount <= max(item.ceiling, item.floor)
    if sum(item.floor for item in parties) <= total:
        assert not left_out


@given(st.integers(0, 120), PARTIES)
def test_one_connection_more_moves_one_connection(total: int, parties: list[Party]) -> None:
    if sum(item.floor for item in parties) <= total:
        before, after = apportion(total, parties), apportion(total + 1, parties)
        assert sorted(after[name] - before[name] for name in before)[:-1] == [0] * max(0, len(parties) - 1)


@given(st.integers(0, 120), PARTIES)
def test_whoever_comes_takes_from_others_and_gives_to_none(total: int, parties: list[Party]) -> None:
    if parties and sum(item.floor for item in parties) <= total:
        before, after = apportion(total, parties[1:]), apportion(total, parties)
        assert all(after[name] <= before[name] for name in before)


def test_who_comes_too_late_for_the_floors_gets_nothing_and_takes_nothing_away() -> None:
    parties = [Party("first", 1, 6), Party("late", 1000, 6), Party("small", 1, 2)]
    assert apportion(9, parties) == {"first": 6, "late": 0, "small": 3}


def test_one_without_pods_or_consumers_takes_nothing() -> None:
    assert party("a", 100, None, 0, [WEB]).ceiling == 0
    assert party("a", 100, None, 2, []).ceiling == 0


def test_pods_that_leave_are_paid_for_until_they_are_gone() -> None:
    pooled = Pooled("a", 100, None, 2, (Consumer("web", "web.session", sessions=0),))
    record = Record(0, {"old": Allotment(8, 1, {"web": 8}), "kept": Allotment(8, 1, {"web": 8})})
    seen = [
        Pooler("kept", "a", admitted=True),
        Pooler("old", "a", admitted=True, terminating=True),
        Pooler("new", "a"),
    ]
    assert target(pooled, 16, seen, record).caps == {"kept": {"web": 4}, "new": {"web": 4}}
    assert target(pooled, 16, seen, record).pods == 16, "a rollout is no reason to want fewer pods"
    assert target(pooled, 16, seen, Record(0, {"kept": Allotment(8, 1, {"web": 8})})).caps == {
        "kept": {"web": 8},
        "new": {"web": 8},
    }


def test_a_pod_that_does_not_run_is_given_nothing() -> None:
    pooled = Pooled("a", 100, None, 2, (WEB,))
    seen = [Pooler("up", "a"), Pooler("pending", "a", running=False)]
    assert target(pooled, 16, seen, Record(0)).caps == {"up": {"web": 15, "web.session": 1}}


# Pods and entries


def test_every_entry_has_its_caps_on_every_pod() -> None:
    division = divide(40, pods(2), [], [WEB, API])
    assert totals(division) == {"web": 18, "web.session": 2, "api": 18, "api.session": 2}
    assert division.problems == ()


@given(st.integers(0, 200), st.integers(0, 4), st.integers(0, 4), CONSUMERS, st.booleans())
def test_caps_are_never_zero_and_never_more_than_the_share_but_for_what_serves(
    share: int, admitted: int, waiting: int, consumers: list[Consumer], known: bool
) -> None:
    in_force = (
        frozenset(name for item in consumers for name in item.entries) if known and admitted else frozenset()
    )
    division = divide(share, pods(admitted), pods(waiting, "new"), consumers, in_force)
    given_out = sum(totals(division).values())
    least = admitted * sum(item.floor for item in consumers)
    assert all(cap >= 1 for caps in division.caps.values() for cap in caps.values())
    assert given_out <= share or (in_force and given_out == least)
    assert division.caps.keys() >= set(pods(admitted))
    per_pod = [set(caps) for caps in division.caps.values()]
    assert all(entries == per_pod[0] for entries in per_pod)
    assert not in_force or not division.left_out
    if division.left_out or given_out > share or len(division.caps) < admitted + waiting:
        assert division.problems
    free = [item for item in consumers if item.limit is None and item.entry not in division.left_out]
    if free and division.caps and given_out < share:
        raise AssertionError("connections are left although somebody may have them")


def test_an_entry_is_spread_evenly_and_one_connection_more_changes_one_cap() -> None:
    before, after = divide(47, pods(5), [], [WEB]).caps, divide(48, pods(5), [], [WEB]).caps
    caps = [before[pod]["web"] for pod in before]
    assert max(caps) - min(caps) == 1
    changed = [pod for pod in before if before[pod] != after[pod]]
    assert len(changed) == 1


def test_different_entries_have_their_remainders_on_different_pods() -> None:
    many = [Consumer(f"c{number}", f"c{number}.session", sessions=0) for number in range(20)]
    division = divide(4 * 20 + 20, pods(4), [], many)
    loads = [sum(caps.values()) for caps in division.caps.values()]
    assert sum(loads) == 100
    assert max(loads) - min(loads) <= 10


def test_a_limit_holds_over_all_pods_and_both_entries() -> None:
    limited = Consumer("web", "web.session", limit=7)
    found = totals(divide(40, pods(2), [], [limited, API]))
    assert found["web"] + found["web.session"] == 7
    assert sum(found.values()) == 40


def test_a_limit_below_the_least_says_so() -> None:
    division = divide(40, pods(4), [], [Consumer("web", "web.session", limit=3)])
    assert totals(division) == {"web": 4, "web.session": 4}
    assert division.problems == (
        Problem(
            LIMIT_TOO_SMALL,
            "limits.maxConnections is 3 for the consumer with the entry web, and the least on 4 pods is 8;"
            " raise it to 8, or lower spec.pooler.replicas",
        ),
    )


def test_pods_for_which_there_is_no_room_wait() -> None:
    division = divide(10, pods(1), pods(3, "new"), [WEB, API])
    assert list(division.caps) == ["pod-0", "new-0"]
    assert division.pods == 2
    assert division.problems[0].message.startswith(
        "2 of 4 pooler pods wait: a share of 10 connections is enough for 2, with at least 4 on each; remove"
    )


def test_what_serves_keeps_its_least_when_the_share_falls_and_says_by_how_much_it_is_over() -> None:
    everything = frozenset({*WEB.entries, *API.entries})
    division = divide(5, pods(3), [], [WEB, API], everything)
    assert totals(division) == dict.fromkeys(everything, 3)
    assert division.pods == 1
    assert "7 more are held than there should be" in division.problems[0].message


def test_new_consumers_find_room_in_their_order_and_sessions_come_last() -> None:
    division = divide(5, pods(2), [], [WEB, API, Consumer("jobs", "jobs.session")], frozenset({"web"}))
    assert totals(division) == {"web": 2, "api": 3}
    assert division.left_out == ("web.session", "api.session", "jobs", "jobs.session")
    assert (
        "no connection is left for the entries web.session, api.session, jobs and 1 more"
        in division.problems[0].message
    )


def test_without_consumers_there_is_nothing_to_divide() -> None:
    assert divide(10, pods(2), pods(1, "new"), []).caps == {"pod-0": {}, "pod-1": {}, "new-0": {}}
    assert divide(10, [], [], []).caps == {}


@pytest.mark.parametrize("share", [0, 1, -5])
def test_a_share_of_next_to_nothing_leaves_out_what_does_not_fit(share: int) -> None:
    division = divide(share, [], pods(1, "new"), [WEB])
    assert sum(totals(division).values()) == max(0, share)
    assert division.problems
