"""The arithmetic of sampled connections: who holds what, and when that is more than is usable."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.connections import (
    Backend,
    Count,
    Limits,
    Link,
    Sample,
    Table,
    Verdict,
    count,
    judge,
    parse,
    settled_at,
)

OWNER = {"shop"}
POD, OTHER_POD, APP = "10.0.0.1", "10.0.0.2", "10.0.0.9"


def backend(pid: int, address: str = POD, port: int = 1, role: str = "shop", **more: Any) -> Backend:
    return Backend(pid, 1.0, role, False, address, port, "web/database")._replace(**more)


def counted(backends: list[Backend], **consoles: list[Link] | None) -> tuple[int, int, int, int]:
    """Consoles by `pod` and `other_pod`."""
    names = {"pod": POD, "other_pod": OTHER_POD}
    links = {names[name]: None if each is None else tuple(each) for name, each in consoles.items()}
    found = count(Sample(5.0, tuple(backends), links), OWNER)
    return found.held, found.busy, found.others, found.left


def test_a_backend_that_a_console_shows_is_held_and_busy_while_a_client_has_it() -> None:
    shown = [Link(11, 1, "active"), Link(12, 2, "idle")]
    assert counted([backend(11), backend(12, port=2)], pod=shown) == (2, 1, 0, 0)


def test_a_connection_that_still_logs_in_is_known_by_its_port() -> None:
    assert counted([backend(11, port=40001)], pod=[Link(0, 40001, "new")]) == (1, 0, 0, 0)
    assert counted([backend(11, port=40001)], other_pod=[Link(0, 40001, "new")]) == (0, 0, 0, 1)


def test_a_backend_that_no_console_shows_was_left() -> None:
    assert counted([backend(11)], pod=[]) == (0, 0, 0, 1)
    assert counted([backend(11)]) == (0, 0, 0, 1)


def test_all_of_a_pod_whose_console_is_silent_are_held() -> None:
    assert counted([backend(11), backend(12, OTHER_POD)], pod=None, other_pod=[]) == (1, 0, 0, 1)


def test_another_role_s_and_the_operator_s_own_are_others_and_superusers_don_t_count() -> None:
    backends = [
        backend(11, APP, role="reports"),
        backend(12, APP, application="poolkeeper"),
        backend(13, APP, application="poolkeeper-budget"),
        backend(14, APP, role="postgres", superuser=True),
    ]
    assert counted(backends, pod=[]) == (0, 0, 3, 0)


DOCUMENT = {
    "limits": [[10.0, 40, 3, 0], [20.0, 30, 3, 2]],
    "backends": [[number, 1.0, "shop", False, POD, number, ""] for number in range(30)],
    "samples": [
        [at, [*range(held)], {POD: [[number, number, "active"] for number in range(30)]}]
        for at, held in ((11.0, 29), (12.0, 30), (21.0, 20), (22.0, 21), (22.5, 20))
    ],
    "tables": [[11.0, POD, {"shop--web": 4}]],
}


def test_a_sample_is_held_against_what_was_usable_at_its_time() -> None:
    """40 - 3 - 8 = 29, and later 30 - 3 - 2 - 8 = 17."""
    verdict = judge(parse(DOCUMENT), OWNER, reserve=8)
    assert [(one.at, one.counted, usable) for one, usable in verdict.over] == [
        (12.0, 30, 29),
        (21.0, 20, 17),
        (22.0, 21, 17),
        (22.5, 20, 17),
    ]
    assert [one.at for one, _ in judge(parse(DOCUMENT), OWNER, reserve=5).over] == [22.0]
    assert verdict.most == 30
    assert verdict.longest_gap == 9.0
    assert "5 samples, 4 over what is usable; at the most 30 held" in str(verdict)
    assert "at 1.00 s: 30 held + 0 of others > 29" in str(verdict)


def test_others_take_from_what_is_usable_and_what_was_left_does_not() -> None:
    one = Count(1.0, held=20, busy=5, others=9, left=7)
    assert one.counted == 29
    assert "20 held + 9 of others > 28 (and 7 left)" in str(Verdict((one,), ((one, 28),)))


def test_nothing_can_be_said_without_a_sample() -> None:
    with pytest.raises(ValueError, match="no sample"):
        judge(parse({"limits": [], "backends": [], "samples": [], "tables": []}), OWNER, 5)


def test_usable_is_less_what_is_reserved_in_three_ways() -> None:
    assert Limits(100, 3, 2).usable(5) == 90


def test_caps_are_final_with_the_last_change_of_any_console() -> None:
    tables = [Table(at, POD, {}) for at in (1.0, 4.0, 2.5, 9.0)]
    assert settled_at(tables, 2.0, 5.0) == 4.0
    assert settled_at(tables, 5.0, 8.0) == 5.0
