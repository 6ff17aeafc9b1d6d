"""What the model of the budget does not come to: records that are lost, servers not measured, what is said."""

from __future__ import annotations

from dataclasses import replace

from poolkeeper.budget.protocol import Allotment, Pooler, Reading, Record, Steps, View, step

EMPTY = Reading(0, {}, {})
TABLE = {"web": 4, "api": 2}


def serving(uid: str, revision: int = 1, **held: int) -> Pooler:
    """A pod that shows TABLE, and holds as much as it may unless told otherwise."""
    return Pooler(uid, "shop", admitted=True, reading=Reading(revision, TABLE, {**TABLE, **held}))


def view(*poolers: Pooler, usable: int | None = 10, **known: object) -> View:
    """One pod "old" is recorded with TABLE; what else there is has nothing."""
    records = {"shop": Record(7, {"old": Allotment(6, 1, TABLE)})}
    made = View(
        7,
        usable,
        frozenset(),
        frozenset({"old", "new", "far"}),
        records,
        poolers,
        {"old": TABLE, "new": {"web": 2, "api": 2}},
    )
    return replace(made, **known)  # type: ignore[arg-type]


def test_a_settled_server_gets_no_write() -> None:
    assert step(view(serving("old"))) == Steps()


def test_a_pod_that_asks_with_an_empty_console_gets_its_table_and_is_admitted_once_it_shows_it() -> None:
    new = Pooler("new", "shop", reading=EMPTY)
    steps = step(view(serving("old"), new))
    allotment = steps.records["shop"].allotments["new"]
    assert allotment == Allotment(4, 1, {"web": 2, "api": 2})
    assert steps.admit == ()
    shown = replace(new, reading=Reading(1, allotment.caps, {}))
    assert step(view(serving("old"), shown, records=steps.records)) == Steps(admit=("new",))


def test_a_pod_whose_console_was_not_asked_yet_gets_nothing() -> None:
    assert step(view(serving("old"), Pooler("new", "shop"))) == Steps()


def test_a_table_comes_for_all_entries_or_not_at_all() -> None:
    new = Pooler("new", "shop", reading=EMPTY)
    assert step(view(serving("old"), new, usable=7)) == Steps()
    allotment = step(view(serving("old"), new, usable=8)).records["shop"].allotments["new"]
    assert allotment == Allotment(2, 1, {"web": 1, "api": 1})


def test_nothing_grows_before_the_server_was_measured() -> None:
    assert step(view(serving("old"), Pooler("new", "shop", reading=EMPTY), usable=None)) == Steps()


def test_a_shrunk_pod_is_believed_once_it_shows_its_table_and_holds_no_more() -> None:
    small = {"web": 1, "api": 1}
    wanted = {"old": small, "new": {"web": 4, "api": 4}}
    poolers = (serving("old"), Pooler("new", "shop", reading=EMPTY))
    first = step(view(*poolers, wanted=wanted))
    assert first.records["shop"].allotments == {
        "old": Allotment(6, 2, small),
        "new": Allotment(4, 1, {"web": 2, "api": 2}),
    }
    holds = replace(poolers[0], reading=Reading(2, small, {"web": 3, "api": 1}))
    then = step(view(holds, poolers[1], wanted=wanted, records=first.records))
    assert then.drain == {"old": ("web",)}
    assert then.records["shop"].allotments["old"] == Allotment(4, 2, small)
    fits = replace(poolers[0], reading=Reading(2, small, small))
    last = step(view(fits, poolers[1], wanted=wanted, records=first.records))
    assert last.drain == {}
    assert last.records["shop"].allotments["old"] == Allotment(2, 2, small)


def test_what_was_given_back_counts_until_the_server_was_measured_after_it() -> None:
    small = {"web": 1, "api": 1}
    records = {"shop": Record(7, {"old": Allotment(6, 2, small)})}
    fits = replace(serving("old"), reading=Reading(2, small, small))
    shown = view(fits, wanted={"old": small}, records=records, counted=frozenset())
    assert step(shown) == Steps()
    measured = replace(shown, counted=frozenset({"old"}))
    assert step(measured).records["shop"].allotments == {"old": Allotment(2, 2, small)}


def test_a_pod_that_is_told_to_shrink_needs_no_proof_of_what_it_had() -> None:
    silent = replace(serving("old"), reading=None)
    steps = step(view(silent, wanted={"old": {"web": 1, "api": 1}}))
    assert steps.records["shop"].allotments == {"old": Allotment(6, 2, {"web": 1, "api": 1})}


def test_an_entry_goes_once_nobody_can_log_in_to_it_any_more() -> None:
    """PgBouncer dies if an entry is removed that somebody is logging in to."""
    wanted = {"old": {"web": 4}}
    first = step(view(serving("old"), wanted=wanted)).records
    assert first["shop"].allotments["old"].caps == {"web": 4, "api": 1}
    reading = Reading(2, {"web": 4, "api": 1}, {})
    waits = replace(serving("old"), reading=reading)
    then = step(view(waits, wanted=wanted, records=first)).records
    assert then["shop"].allotments["old"].caps.keys() == {"web", "api"}
    closed = replace(waits, reading=replace(reading, closed=frozenset({"api"})))
    last = step(view(closed, wanted=wanted, records=first)).records
    assert last["shop"].allotments["old"].caps.keys() == {"web"}


def test_an_entry_that_is_closed_stays_if_it_is_wanted() -> None:
    shown = replace(serving("old"), reading=Reading(1, TABLE, {}, closed=frozenset({"api"})))
    assert step(view(shown, wanted={"old": TABLE})) == Steps()


def test_a_pod_that_is_not_wanted_anywhere_keeps_what_it_has() -> None:
    assert step(view(serving("old"), wanted={})) == Steps()


def test_a_pod_that_is_gone_is_paid_for_until_the_server_was_measured_after_it() -> None:
    new = Pooler("new", "shop", reading=EMPTY)
    assert step(view(new, usable=6)) == Steps()
    assert step(view(new, usable=6, ended=frozenset({"old"}))).records["shop"].allotments.keys() == {"new"}


def test_bounds_above_what_is_usable_are_named_and_nothing_grows() -> None:
    steps = step(view(serving("old"), Pooler("new", "shop", reading=EMPTY), usable=3))
    assert steps == Steps(excess=3)


def test_a_lost_record_is_made_again_from_what_the_pods_show() -> None:
    lost = {"shop": Record(7)}
    steps = step(view(serving("old", revision=9, web=5), records=lost))
    assert steps.records["shop"].allotments == {"old": Allotment(7, 9, TABLE)}


def test_nothing_grows_while_a_serving_pod_without_a_record_is_silent() -> None:
    lost = {"shop": Record(7)}
    poolers = (Pooler("old", "shop", admitted=True), Pooler("new", "shop", reading=EMPTY))
    assert step(view(*poolers, records=lost)) == Steps()
    assert step(view(poolers[1], records=lost)).records


def test_without_consumers_pods_are_admitted_and_hold_nothing() -> None:
    assert step(
        view(serving("old"), Pooler("new", "shop", reading=EMPTY), wanted={"old": TABLE, "new": {}})
    ) == (Steps(admit=("new",)))


def test_an_operator_that_was_replaced_writes_nothing_more() -> None:
    new = Pooler("new", "shop", reading=EMPTY)
    assert step(view(serving("old"), new, epoch=6)) == Steps()


def test_other_records_are_fenced_before_one_may_grow() -> None:
    new = Pooler("new", "shop", reading=EMPTY)
    before = view(serving("old"), new, usable=20)
    other = Record(6, {"far": Allotment(3, 1, {"far": 3})})
    far = Pooler("far", "other", admitted=True, reading=Reading(1, {"far": 3}, {"far": 3}))
    shared = replace(
        before,
        records={**before.records, "other": other},
        poolers=(*before.poolers, far),
        wanted={**before.wanted, "far": {"far": 3}},
    )
    assert step(shared).records == {"other": replace(other, epoch=7)}
    fenced = replace(shared, records={**shared.records, "other": replace(other, epoch=7)})
    assert step(fenced).records.keys() == {"shop"}
