"""Connections go where clients wait, come back when their owner waits, and don't go to and fro."""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolkeeper.budget.division import Consumer, Limit, divide
from poolkeeper.budget.lenders import lenders
from poolkeeper.budget.lending import (
    CALM_SECONDS,
    GAP_SECONDS,
    HOLD_SECONDS,
    LASTING_SECONDS,
    LEND_EVERY_SECONDS,
    RETURN_EVERY_SECONDS,
    Need,
    Sample,
    Slot,
    Use,
    advance,
    uses,
)
from poolkeeper.budget.shares import Pooled, shares

Traffic = Callable[[float], Mapping[Slot, int]]
"""How many clients of each entry want a server connection at a moment (seconds)."""
LAG_SECONDS = 2
"""Between a target and the caps that are in force."""


def consumer(name: str, weight: int = 100, limit: int | None = None, sessions: int = 0) -> Consumer:
    return Consumer(name, f"{name}.session", weight, limit, sessions)


def database(
    name: str, *consumers: Consumer, pods: int = 2, weight: int = 100, most: int | None = None
) -> Pooled:
    return Pooled(name, weight, most, pods, consumers)


@functools.lru_cache(maxsize=4096)
def division(usable: int, databases: tuple[Pooled, ...], limits: tuple[Limit, ...] = ()) -> Mapping[Slot, int]:
    """What every main entry has on all pods together."""
    given_out = shares(usable, databases, limits)
    found: dict[Slot, int] = {}
    for item in databases:
        divided = divide(given_out[item.name], pods(item), (), item.consumers)
        assert sum(sum(caps.values()) for caps in divided.caps.values()) <= given_out[item.name]
        for one in item.consumers:
            amounts = [caps[one.entry] for caps in divided.caps.values() if one.entry in caps]
            assert all(amounts)
            found[item.name, one.entry] = sum(amounts)
    assert sum(given_out.values()) <= usable
    return found


def pods(item: Pooled) -> list[str]:
    return [f"{item.name}-{number}" for number in range(item.pods)]


@dataclass
class Server:
    """Poolers whose clients' demand is known. Whoever gets a connection works; the others wait."""

    usable: int
    databases: Sequence[Pooled]
    limits: tuple[Limit, ...] = ()
    need: Need = field(default_factory=Need)
    now: float = 1000.0
    caps: Mapping[Slot, int] = field(default_factory=dict)
    changes: list[float] = field(default_factory=list)
    waits: dict[Slot, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.caps = self.fair = division(self.usable, tuple(self.databases), self.limits)
        self.coming = deque([self.caps] * LAG_SECONDS)

    def run(self, seconds: float, traffic: Traffic) -> None:
        for _ in range(int(seconds)):
            self.now += 1
            self.coming.append(division(self.usable, self.need.adjusted(self.databases), self.limits))
            self.caps = self.coming.popleft()
            wanted = traffic(self.now)
            shown: dict[str, dict[str, Use]] = {item.name: {} for item in self.databases}
            for slot, cap in self.caps.items():
                clients = wanted.get(slot, 0)
                self.waits[slot] = self.waits.get(slot, 0) + 1 if clients > cap else 0
                # Transactions are short: nobody waits long, but somebody does all the time.
                shown[slot[0]][slot[1]] = Use(min(clients, cap), max(0, clients - cap), 0.05)
            before = {slot: item.ceiling for slot, item in self.need.demands.items()}
            sample = Sample(self.now, shown)
            self.need = advance(self.need, sample, self.databases, self.held(), self.limits)
            after = {slot: item.ceiling for slot, item in self.need.demands.items()}
            if before and before != after:
                self.changes.append(self.now)

    def held(self) -> dict[str, dict[str, int]]:
        return {
            item.name: {one.entry: self.caps[item.name, one.entry] for one in item.consumers}
            for item in self.databases
        }

    def most_changes_in_a_minute(self) -> int:
        return max((sum(at <= other < at + 60 for other in self.changes) for at in self.changes), default=0)


WEB, API = ("shop", "web"), ("shop", "api")


def shop(usable: int = 40) -> Server:
    return Server(usable, (database("shop", consumer("web"), consumer("api")),))


def steady(**clients: int) -> Traffic:
    return lambda now: {("shop", name): number for name, number in clients.items()}


# What is measured

ROW = {
    "user": "o", "cl_active": "9", "cl_waiting": "0", "sv_active": "0", "sv_active_cancel": "0",
    "sv_being_canceled": "0", "sv_idle": "4", "sv_used": "2", "sv_tested": "0", "sv_login": "0",
    "maxwait": "0", "maxwait_us": "0",
}  # fmt: skip


def test_what_an_entry_does_is_summed_over_the_pods_and_idle_connections_are_not_in_use() -> None:
    one = ROW | {"database": "web", "sv_active": "3", "sv_login": "1", "cl_waiting": "2", "maxwait_us": "70000"}
    two = ROW | {"database": "web", "sv_active": "1", "sv_being_canceled": "1", "sv_active_cancel": "1"}
    three = ROW | {
        "database": "web",
        "sv_tested": "1",
        "cl_waiting": "1",
        "maxwait": "3",
        "maxwait_us": "500000",
    }
    other = ROW | {"database": "pgbouncer", "sv_active": "7"}
    found = uses(["web", "api"], [[one, other], [two], [three]])
    assert found == {"web": Use(active=8, waiting=3, seconds=3.5), "api": Use()}


# One PooledDatabase


def test_without_a_sample_nothing_is_changed() -> None:
    databases = (database("shop", consumer("web", limit=7), consumer("api")),)
    assert Need().adjusted(databases) == databases


def test_connections_of_an_idle_consumer_go_to_the_one_that_waits_and_come_back_when_it_waits() -> None:
    server = shop()
    server.run(30, steady(web=60))
    assert server.caps == {WEB: 38, API: 2}
    server.run(5, steady(web=60, api=60))
    server.run(1, steady(web=60, api=60))
    assert server.caps == {WEB: 20, API: 20}


def test_a_consumer_that_uses_some_of_its_share_keeps_half_as_much_again_and_one_on_each_pod() -> None:
    server = shop()
    server.run(40, steady(web=60, api=6))
    assert server.caps == {WEB: 31, API: 9}


def test_a_consumer_that_uses_more_than_half_of_its_share_lends_nothing() -> None:
    server = shop()
    server.run(120, steady(web=60, api=11))
    assert server.caps == {WEB: 20, API: 20}
    assert server.changes == []


def test_where_all_wait_the_weights_decide() -> None:
    weighty = [database("shop", consumer("web", weight=300), consumer("api"))]
    server = Server(40, weighty)
    server.run(60, steady(web=60))
    assert server.caps == {WEB: 38, API: 2}
    server.run(20, steady(web=60, api=60))
    assert server.caps == {WEB: 30, API: 10}
    server.run(600, steady(web=60, api=60))
    assert server.caps == {WEB: 30, API: 10}
    assert len(server.changes) == 2


def test_there_is_more_room_before_clients_wait_if_all_that_was_left_is_in_use() -> None:
    server = shop()
    server.run(30, steady(web=60))
    server.run(4, steady(web=60, api=2))
    assert server.caps == {WEB: 36, API: 4}
    server.run(6, steady(web=60, api=4))
    assert server.caps == {WEB: 34, API: 6}


def test_only_a_wait_that_lasts_makes_others_lend() -> None:
    server = shop()
    server.run(120, lambda now: {WEB: 60 if now % 4 < 2 else 5})
    assert server.changes == []


def test_clients_that_wait_for_a_paused_database_borrow_nothing() -> None:
    server = shop()
    for _ in range(60):
        server.now += 1
        sample = Sample(server.now, {"shop": {"web": Use(0, 50, 30.0), "api": Use()}})
        server.need = advance(server.need, sample, server.databases, server.held())
    assert not server.need.lending


def test_a_consumer_at_its_own_limit_borrows_nothing() -> None:
    server = Server(40, [database("shop", consumer("web", limit=12, sessions=1), consumer("api"))])
    server.run(60, steady(web=60))
    assert server.caps == {WEB: 10, API: 28}
    assert not server.need.lending


SHOP_WEB, BLOG_WEB = ("shop", "web"), ("blog", "blog-web")


def two(most: int | None = None, limits: tuple[Limit, ...] = (), own: int = 1) -> Server:
    """The shop, with this limit and so many consumers, and a blog on the same server that rests."""
    consumers = [consumer("web", sessions=1), consumer("api", sessions=1)][:own]
    databases = [database("shop", *consumers, most=most), database("blog", consumer("blog-web"))]
    return Server(96, databases, limits)


@pytest.mark.parametrize(
    ("most", "limits"),
    [
        (12, ()),
        (None, (Limit(frozenset({"shop"}), 12),)),
        (40, (Limit(frozenset({"shop"}), 12),)),
        (12, (Limit(frozenset({"shop", "blog"}), 96),)),
    ],
)
def test_c8_a_pooled_database_at_its_limit_makes_no_other_lend(
    most: int | None, limits: tuple[Limit, ...]
) -> None:
    server = two(most, limits)
    before = dict(server.caps)
    server.run(120, lambda now: {SHOP_WEB: 60})
    assert server.caps == before
    assert server.caps[SHOP_WEB] == 10
    assert not server.need.lending
    assert server.changes == []


def test_c8_within_a_pooled_database_at_its_limit_its_own_consumers_lend_and_no_other() -> None:
    server = two(24, own=2)
    before = dict(server.caps)
    assert (before[SHOP_WEB], before["shop", "api"]) == (10, 10)
    server.run(60, lambda now: {SHOP_WEB: 60})
    assert (server.caps[SHOP_WEB], server.caps["shop", "api"]) == (18, 2)
    assert server.caps[BLOG_WEB] == before[BLOG_WEB]


def test_c8_below_its_limit_a_pooled_database_borrows_up_to_it() -> None:
    server = two(60)
    assert server.fair[SHOP_WEB] == 46
    server.run(60, lambda now: {SHOP_WEB: 100})
    assert server.caps[SHOP_WEB] == 58


def test_c8_what_a_common_limit_holds_is_lent_by_those_under_it_alone() -> None:
    both = Limit(frozenset({"shop", "blog"}), 40)
    server = two(limits=(both,))
    server.databases = [*server.databases, database("free", consumer("free-web"))]
    server.__post_init__()
    before = dict(server.caps)
    server.run(60, lambda now: {SHOP_WEB: 100})
    assert server.caps[SHOP_WEB] > before[SHOP_WEB]
    assert server.caps["free", "free-web"] == before["free", "free-web"]


def test_c8_a_single_pod_that_keeps_room_for_its_successor_is_at_its_limit_too() -> None:
    only = replace(database("shop", consumer("web"), pods=1, most=20), replaceable=True)
    blog = database("blog", consumer("blog-web"))
    caps = {"shop": {"web": 19}, "blog": {"blog-web": 40}}
    assert lenders(only, [only, blog], caps) == {"shop"}
    assert lenders(only, [only, blog], {**caps, "shop": {"web": 18}}) == {"shop", "blog"}


def test_sessions_and_floors_stay() -> None:
    databases = [database("shop", consumer("web", sessions=2), consumer("api", sessions=2), pods=3)]
    server = Server(60, databases)
    server.run(60, steady(web=60))
    assert server.caps == {WEB: 60 - 12 - 3, API: 3}
    [adjusted] = server.need.adjusted(databases)
    divided = divide(60, pods(adjusted), (), adjusted.consumers)
    assert divided.problems == ()
    for caps in divided.caps.values():
        assert (caps["api"], caps["api.session"], caps["web.session"]) == (1, 2, 2)


def test_what_is_lent_goes_back_once_nobody_needs_it() -> None:
    server = shop()
    server.run(40, steady(web=60))
    server.run(CALM_SECONDS - 5, steady(web=19))
    assert server.need.lending
    server.run(20, steady(web=19))
    assert server.need.adjusted(server.databases) == tuple(server.databases)
    assert server.caps == {WEB: 20, API: 20}


def test_what_is_lent_stays_lent_while_it_is_in_use_though_nobody_waits() -> None:
    server = shop()
    server.run(40, steady(web=60))
    server.run(600, steady(web=30))
    assert server.caps == {WEB: 38, API: 2}
    assert len(server.changes) == 1


def test_who_needed_its_own_back_is_left_alone_longer_and_longer() -> None:
    server = shop()
    lent: list[float] = []
    for _ in range(4):
        before = server.now
        while not server.need.lending:
            server.run(1, steady(web=60))
        lent.append(server.now - before)
        server.run(5, steady(web=60, api=30))
    assert lent[0] < HOLD_SECONDS
    assert [round(seconds / HOLD_SECONDS) for seconds in lent[1:]] == [1, 2, 4]


def test_who_lent_for_long_is_left_alone_no_longer_than_the_first_time() -> None:
    server = shop()
    for _ in range(2):
        server.run(HOLD_SECONDS + LASTING_SECONDS + 40, steady(web=60))
        assert server.need.lending
        server.run(5, steady(web=60, api=30))
        assert not server.need.lending
    server.run(HOLD_SECONDS + 10, steady(web=60))
    assert server.need.lending


def test_while_a_pod_does_not_answer_nobody_lends_and_who_lent_gets_it_back_all_the_same() -> None:
    server = shop()
    for _ in range(60):
        server.now += 1
        sample = Sample(server.now, {"shop": {"web": Use(20, 40, 5), "api": Use()}}, frozenset({"shop"}))
        server.need = advance(server.need, sample, server.databases, server.held())
    assert not server.need.lending
    server.run(40, steady(web=60))
    assert server.need.lending
    for _ in range(5):
        server.now += 1
        sample = Sample(server.now, {"shop": {"web": Use(30), "api": Use(1, 3, 1.5)}}, frozenset({"shop"}))
        server.need = advance(server.need, sample, server.databases, server.held())
    assert not server.need.lending


def test_a_pooled_database_without_an_answer_keeps_what_it_has() -> None:
    server = Server(40, [database("shop", consumer("web")), database("mail", consumer("api"))])
    for _ in range(60):
        server.now += 1
        sample = Sample(server.now, {"shop": {"web": Use(20, 40, 5)}})
        server.need = advance(server.need, sample, server.databases, server.held())
    assert not server.need.lending


def test_after_a_gap_all_begins_anew() -> None:
    server = shop()
    server.run(40, steady(web=60))
    assert server.need.lending
    server.now += GAP_SECONDS
    server.run(1, steady(web=60))
    assert not server.need.lending


def test_a_consumer_that_comes_or_goes_is_no_trouble() -> None:
    server = shop()
    server.run(40, steady(web=60))
    more = [database("shop", consumer("web"), consumer("api"), consumer("jobs"))]
    joined = Server(40, more, need=server.need, now=server.now)
    joined.run(10, steady(web=60))
    assert joined.need.demands.keys() == {WEB, API, ("shop", "jobs")}
    joined.run(40, steady(web=60))
    assert joined.caps == {WEB: 36, API: 2, ("shop", "jobs"): 2}
    left = Server(40, [database("shop", consumer("web"))], need=joined.need, now=joined.now)
    left.run(1, steady(web=60))
    assert left.need.demands.keys() == {WEB}


# Several PooledDatabases on one server


def test_an_idle_pooled_database_lends_to_another_one_on_the_server() -> None:
    shops = [database("shop", consumer("web"), consumer("api")), database("mail", consumer("web"))]
    server = Server(80, shops)
    mail = ("mail", "web")
    assert server.caps == {WEB: 20, API: 20, mail: 40}
    server.run(40, lambda now: {mail: 100, WEB: 4})
    assert server.caps == {WEB: 6, API: 2, mail: 72}
    server.run(10, lambda now: {mail: 100, WEB: 50, API: 50})
    assert server.caps == {WEB: 20, API: 20, mail: 40}


def test_who_does_not_wait_takes_nothing_of_what_is_lent_to_others() -> None:
    """Else a PooledDatabase with one busy consumer would keep what all its idle ones don't use."""
    shops = [database("shop", consumer("web"), consumer("api")), database("mail", consumer("web"))]
    server = Server(80, shops)
    server.run(60, lambda now: {("mail", "web"): 100, WEB: 16})
    assert server.caps == {WEB: 24, API: 2, ("mail", "web"): 54}
    assert len(server.changes) == 1


# Whatever happens


@dataclass(frozen=True)
class Case:
    usable: int
    databases: tuple[Pooled, ...]
    phases: tuple[tuple[int, dict[Slot, int]], ...]

    @property
    def slots(self) -> list[Slot]:
        return [(item.name, one.entry) for item in self.databases for one in item.consumers]


@st.composite
def cases(draw: st.DrawFn, phases: int = 5) -> Case:
    databases = []
    for name in draw(st.sampled_from([["shop"], ["shop", "mail"], ["shop", "mail", "wiki"]])):
        consumers = [
            consumer(
                f"app-{number}",
                draw(st.sampled_from([50, 100, 300])),
                draw(st.none() | st.none() | st.integers(8, 20)),
                draw(st.integers(0, 1)),
            )
            for number in range(draw(st.integers(1, 3)))
        ]
        databases.append(database(name, *consumers, pods=draw(st.integers(1, 3))))
    slots = [(item.name, one.entry) for item in databases for one in item.consumers]
    demand = st.fixed_dictionaries({slot: st.sampled_from([0, 0, 1, 3, 8, 20, 200]) for slot in slots})
    times = st.tuples(st.integers(3, 60), demand)
    played = draw(st.lists(times, min_size=1, max_size=phases))
    return Case(draw(st.integers(60, 150)), tuple(databases), tuple(played))


def play(case: Case) -> Server:
    server = Server(case.usable, case.databases)
    for seconds, demand in case.phases:
        server.run(seconds, lambda now, demand=demand: demand)
    return server


@given(cases())
@settings(max_examples=60, deadline=None)
def test_nothing_is_below_a_floor_or_above_a_share_and_changes_are_bounded(case: Case) -> None:
    """What division() asserts at every step: each cap at least 1, every sum within the share."""
    server = play(case)
    assert server.most_changes_in_a_minute() <= 60 / RETURN_EVERY_SECONDS
    plain = [replace(item, consumers=()) for item in case.databases]
    adjusted = server.need.adjusted(case.databases)
    assert [replace(item, consumers=()) for item in adjusted] == plain
    for before, after in zip(case.databases, adjusted, strict=True):
        assert tuple(replace(item, ceiling=None) for item in after.consumers) == before.consumers


@given(cases())
@settings(max_examples=60, deadline=None)
def test_whoever_waits_has_its_share_by_weight_within_seconds(case: Case) -> None:
    """A second's wait, the pause between changes, one sample, and the time that caps need."""
    within = 1 + RETURN_EVERY_SECONDS + 1 + LAG_SECONDS
    server = Server(case.usable, case.databases)
    for seconds, demand in case.phases:
        for _ in range(seconds):
            server.run(1, lambda now, demand=demand: demand)
            for slot, waited in server.waits.items():
                if waited > within:
                    assert server.caps[slot] >= server.fair[slot], slot


@given(cases())
@settings(max_examples=40, deadline=None)
def test_constant_demand_settles(case: Case) -> None:
    server = play(case)
    last = case.phases[-1][1]
    server.run(600, lambda now: last)
    count = len(server.changes)
    server.run(300, lambda now: last)
    assert len(server.changes) == count


@given(cases())
@settings(max_examples=40, deadline=None)
def test_nobody_waits_for_long_while_an_idle_one_has_more_than_it_keeps(case: Case) -> None:
    server = play(case)
    last = case.phases[-1][1]
    server.run(600, lambda now: last)
    limits = {(item.name, one.entry): one.limit for item in case.databases for one in item.consumers}
    if any(server.waits[slot] > 60 and limits[slot] is None for slot in case.slots):
        for item in case.databases:
            for one in item.consumers:
                clients, cap = last[item.name, one.entry], server.caps[item.name, one.entry]
                assert cap <= max(2 * clients, clients + item.pods), (item.name, one.entry, server.caps)


@pytest.mark.parametrize("period", [6, 20, 40, 90])
def test_demand_that_alternates_moves_little(period: int) -> None:
    server = shop()
    server.run(900, lambda now: {WEB: 60} if now // period % 2 else {API: 60})
    assert server.most_changes_in_a_minute() <= 4
    late = [at for at in server.changes if at > server.now - 300]
    assert len(late) <= 10, late


JOBS = ("shop", "jobs")


def three() -> Server:
    return Server(60, [database("shop", consumer("web"), consumer("api"), consumer("jobs"))])


def test_nobody_begins_to_lend_soon_after_somebody_else_did() -> None:
    server = three()
    server.run(22, lambda now: {WEB: 60, JOBS: 20 if now < 1004 else 0})
    server.run(30, steady(web=60))
    assert server.caps == {WEB: 56, API: 2, JOBS: 2}
    first, second = server.changes
    assert second - first >= LEND_EVERY_SECONDS


def test_others_that_lend_later_change_nothing_for_who_lends_already() -> None:
    """Its ceiling would go up and down with whatever it used last."""
    server = three()
    server.run(30, steady(web=60, api=6, jobs=20))
    assert server.caps == {WEB: 25, API: 9, JOBS: 26}
    server.run(40, steady(web=60, api=8))
    assert server.caps == {WEB: 49, API: 9, JOBS: 2}


def test_demand_by_chance_moves_little_in_the_long_run_and_yet_most_of_what_rests_is_lent() -> None:
    chance = random.Random(1)  # noqa: S311
    names = [f"app-{number}" for number in range(8)]
    server = Server(100, [database("shop", *map(consumer, ["web", *names]))])
    lent: list[int] = []

    def traffic(now: float) -> dict[Slot, int]:
        lent.append(server.caps[WEB])
        odds = {("shop", name): 0.02 * (number + 1) for number, name in enumerate(names)}
        return {WEB: 100} | {slot: sum(chance.random() < odd for _ in range(20)) for slot, odd in odds.items()}

    server.run(1800, traffic)
    before = len(server.changes)
    server.run(1800, traffic)
    assert server.fair[WEB] == 11
    assert sum(lent) / len(lent) > 22
    assert len(server.changes) - before < 1.5 * 30, "more than one in 40 seconds"


def test_the_pauses_between_changes_are_kept() -> None:
    names = [f"app-{number}" for number in range(30)]
    server = Server(300, [database("shop", *(consumer(name) for name in names))])
    server.run(60, lambda now: {("shop", "app-0"): 300})
    assert server.caps["shop", "app-0"] == 300 - 29 * 2
    server.run(120, lambda now: {("shop", names[int(now) % 30]): 50, ("shop", "app-0"): 300})
    assert server.most_changes_in_a_minute() <= 60 / RETURN_EVERY_SECONDS
    distances = [later - sooner for sooner, later in zip(server.changes, server.changes[1:], strict=False)]
    assert min(distances) >= RETURN_EVERY_SECONDS
    assert LEND_EVERY_SECONDS > RETURN_EVERY_SECONDS
