"""A pod that waits for what other PooledDatabases hold above their shares says so."""

from __future__ import annotations

from dataclasses import replace

from poolkeeper.budget.assessment import Memory, Sight, remember, work_out
from poolkeeper.budget.division import Division
from poolkeeper.budget.overhang import explained
from poolkeeper.budget.problems import OVERCOMMITTED, PODS_WAIT
from poolkeeper.budget.protocol import Allotment, Record
from poolkeeper.budget.request import BudgetRequest
from poolkeeper.budget.servers import Measured, Ours
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.observed.poolers import Pod
from poolkeeper.upstream.target import Target
from tests.fast.budget.model import pooled
from tests.fast.worlds import new_pod, ready_pod

SERVES, BEGINS = "x/a", "y/b"
TARGET = Target("pg.example", 5432, "shop", "owner", "s3cret", "disable", None)
WAITING: Pod = replace(new_pod(2), running=True)


def seen(connections: int) -> dict[str, Division]:
    """The divisions of a server on which one PooledDatabase holds its least, 3, and another one begins."""
    orders = {
        name: BudgetRequest(
            pooled(name, 1, *weights), TARGET, {}, "", frozenset(), ConsoleAccess("127.0.0.1", 6432, "", "", "")
        )
        for name, weights in ((SERVES, (100, 100, 100)), (BEGINS, (100,)))
    }
    held = {entry: 1 for item in orders[SERVES].pooled.consumers for entry in item.entries}
    sight = Sight(
        at=1.0,
        orders=orders,
        records={SERVES: Record(1, {"pod-1": Allotment(3, 1, held)}), BEGINS: Record(0)},
        pods={SERVES: (ready_pod(1),), BEGINS: (WAITING,)},
        looks={},
        ended=frozenset(),
        measured=Measured(connections, 0, 0, (), {}, {}),
        ours=Ours(frozenset(), frozenset(), frozenset()),
        own=frozenset(),
        coming=frozenset(),
    )
    return work_out(sight, remember(Memory(), sight), 1)[1]


def test_f2_one_that_finds_no_connection_says_who_has_it_and_what_to_do() -> None:
    divided = seen(3)
    [problem] = divided[BEGINS].problems
    assert problem.reason == PODS_WAIT
    assert problem.message == (
        "1 of 1 pooler pods wait: other PooledDatabases on the server exceed their shares by 1 connection,"
        " since each of their entries keeps its least; remove consumers there, or raise max_connections of the"
        " server by 1"
    )
    assert [item.reason for item in divided[SERVES].problems] == [OVERCOMMITTED]
    assert all(not division.problems for division in seen(4).values())


DIVIDED = {"a": Division({"1": {"web": 4}}), "b": Division({"2": {"api": 1}, "3": {"api": 1}})}
FOUR = Record(1, {"1": Allotment(4, 1, {"web": 4})})


def test_a_pod_that_serves_or_finds_a_connection_waits_for_none() -> None:
    def said(usable: int, *pods: str) -> list[str]:
        records = {"a": FOUR, "b": Record(1, {uid: Allotment(1, 1, {"api": 1}) for uid in pods})}
        return [
            item.message[:6] for item in explained(DIVIDED, {"a": 3, "b": 2}, records, usable)["b"].problems
        ]

    assert said(5, "2") == ["1 of 2"]
    assert said(6, "2") == [], "it is about to get one"
    assert said(6, "2", "3") == []


def test_what_a_pooled_database_holds_above_its_own_share_is_no_fault_of_others() -> None:
    records = {"a": Record(1), "b": Record(1)}
    divided = explained(DIVIDED, {"a": 3, "b": 2}, records, 0)
    assert [bool(divided[name].problems) for name in "ab"] == [False, True]
