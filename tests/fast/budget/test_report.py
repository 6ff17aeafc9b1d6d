"""What is told of the budget, and when it is worth telling."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolkeeper.budget.division import Division, Server
from poolkeeper.budget.problems import OVERCOMMITTED, Problem
from poolkeeper.budget.protocol import Allotment, Pooler, Reading, Record, View
from poolkeeper.budget.report import Account, held_up, newsworthy, seen
from poolkeeper.budget.seen import BudgetSeen
from poolkeeper.observed.data_path import AtLimit
from tests.fast.worlds import new_pod, ready_pod

SERVER = Server(max_connections=100, superuser_reserved=3, reserved=0, others=7)
ACCOUNT = Account("7301", "", SERVER, 5, {"data/shop": 40, "data/blog": 45}, 0)
CAPS = {"web": 4}
RECORD = Record(
    1, {"pod-1": Allotment(6, 2, CAPS), "pod-2": Allotment(4, 1, CAPS), "gone": Allotment(3, 1, {})}
)
VIEW = View(
    epoch=1,
    usable=85,
    ended=frozenset(),
    counted=frozenset(),
    records={"data/shop": RECORD, "data/blog": Record(1, {"other": Allotment(9, 1, CAPS)})},
    poolers=(
        Pooler("pod-1", "data/shop", admitted=True, reading=Reading(2, CAPS, {})),
        Pooler("pod-2", "data/shop", reading=Reading(1, CAPS, {})),
        Pooler("other", "data/blog", reading=Reading(1, CAPS, {})),
    ),
    wanted={"pod-1": CAPS, "pod-2": CAPS, "other": CAPS},
)
PODS = (ready_pod(1), new_pod(2), replace(new_pod(3), terminating=True))
TOO_LITTLE = Problem(OVERCOMMITTED, "too little")
DIVISION = Division(caps={}, pods=8, left_out=("api",), problems=(TOO_LITTLE,))


def test_what_is_told_of_one_of_two() -> None:
    assert seen(ACCOUNT, "data/shop", DIVISION, VIEW, PODS, None) == BudgetSeen(
        server=seen(ACCOUNT, "data/blog", DIVISION, VIEW, (), None).server,
        arithmetic=SERVER.arithmetic(5),
        max_connections=100,
        others=7,
        reserve=5,
        usable=85,
        share=40,
        shared_with=1,
        held=13,
        pods={"shop-pooler-1": 6, "shop-pooler-2": 4},
        waiting=("shop-pooler-2",),
        most_pods=8,
        problems=(TOO_LITTLE,),
        left_out=frozenset({"api"}),
        admissible=frozenset({"pod-2"}),
    )


def test_a_server_is_named_without_giving_it_away() -> None:
    named = seen(ACCOUNT, "data/shop", DIVISION, VIEW, PODS, None).server
    assert len(named) == 8
    assert int(named, 16) >= 0
    assert "7301" not in named
    assert named != seen(replace(ACCOUNT, system="7302"), "data/shop", DIVISION, VIEW, PODS, None).server


def test_before_the_first_measurement_what_is_held_is_known_already() -> None:
    told = seen(
        Account("7301", "no answer", None, 5, {}, 0),
        "data/shop",
        None,
        replace(VIEW, usable=None, wanted={}),
        PODS,
        None,
    )
    assert (told.problem, told.held, told.waiting) == ("no answer", 13, ("shop-pooler-2",))
    assert (told.arithmetic, told.usable, told.most_pods, told.admissible) == ("", 0, None, frozenset())


def test_while_the_server_cannot_be_measured_what_was_known_of_it_stays() -> None:
    """Above all how many pods there is room for: nobody takes pods away because a server is down."""
    before = seen(ACCOUNT, "data/shop", DIVISION, VIEW, PODS, None)
    down = replace(ACCOUNT, problem="no answer", shares={})
    told = seen(down, "data/shop", None, replace(VIEW, usable=None, wanted={}), PODS[:1], before)
    assert told == replace(
        before, problem="no answer", pods={"shop-pooler-1": 6}, waiting=(), admissible=frozenset()
    )
    assert (told.most_pods, told.share) == (8, 40)
    again = seen(ACCOUNT, "data/shop", DIVISION, VIEW, PODS, told)
    assert again == before


BEFORE = BudgetSeen(server="0a", arithmetic="x", others=3, usable=80, held=10, share=40)


@pytest.mark.parametrize(
    ("now", "unsettled", "settled"),
    [
        (BEFORE, False, False),
        (replace(BEFORE, others=9, usable=74, arithmetic="y"), False, False),
        (replace(BEFORE, held=11), False, True),
        (replace(BEFORE, share=41), False, True),
        (replace(BEFORE, most_pods=3), False, True),
        (replace(BEFORE, excess=1), False, True),
        (replace(BEFORE, waiting=("a",)), False, True),
        (replace(BEFORE, admissible=frozenset({"a"})), True, True),
        (replace(BEFORE, problem="no answer"), True, True),
    ],
)
def test_what_is_told_while_caps_change_hands_and_after(
    now: BudgetSeen, unsettled: bool, settled: bool
) -> None:
    assert newsworthy(BEFORE, now, settled=False) is unsettled
    assert newsworthy(BEFORE, now, settled=True) is settled
    assert newsworthy(None, now, settled=False)


def test_c6_a_consumer_at_its_limit_is_told_while_connections_change_hands() -> None:
    full = (AtLimit("web/database", "shop-pooler-1", 94, 94, limited=False),)
    for settled in (False, True):
        assert newsworthy(BEFORE, replace(BEFORE, at_limit=full), settled=settled)
        assert newsworthy(replace(BEFORE, at_limit=full), BEFORE, settled=settled)


def test_where_a_console_answers_no_more_a_pod_that_waits_gets_its_room_from_one_that_goes() -> None:
    told = seen(ACCOUNT, "data/shop", DIVISION, VIEW, PODS, None)
    assert told.waiting
    assert held_up(told, [PODS[0]], PODS).most_pods == 1
    assert held_up(told, [], PODS) == told
    assert held_up(replace(told, waiting=()), [PODS[0]], PODS).most_pods == 8
