"""Which server connections count as stuck, over readings of consoles and PostgreSQL, one in a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from poolkeeper.data_path import wedges
from poolkeeper.data_path.wedges import (
    EVIDENCE_SECONDS,
    KILL_AFTER_SECONDS,
    SUSPECT_SECONDS,
    Active,
    Backend,
    Connection,
    Holds,
    Sockets,
)
from poolkeeper.workers.servers.data_path import pairs

ONE = Connection("uid", "7")
ACTIVE = Active("shop--web", 4242, "0xc1", "22:00:00")
CLEAR, BLAMED = Sockets("12", blamed=False), Sockets("12", blamed=True)
NOTICED_SECONDS = SUSPECT_SECONDS + EVIDENCE_SECONDS

Reading = tuple[Mapping[Connection, Active] | None, Backend | None, Sockets | None]
"""What SHOW SERVERS has (None: the console did not answer), the backend, and the sockets."""


def resting(since: int, now: int) -> Backend:
    return Backend(True, now - since, f"at {since}")


def noticed(reading: Callable[[int], Reading], seconds: int = 30, holds: Holds | None = None) -> int | None:
    """After how many seconds of these readings the connection counts as stuck."""
    known: Holds = holds or {}
    for now in range(seconds):
        shown, backend, sockets = reading(now)
        there = [] if backend is None else [ACTIVE.pid]
        known = wedges.hold(known, shown or {}, ["uid"] if shown is not None else [], there, now)
        backends = {} if backend is None else {ACTIVE.pid: backend}
        ends = {} if sockets is None else {ONE.id: sockets}
        known |= {
            key: wedges.judge(held, backends, ends, key.id, now)
            for key, held in wedges.suspects(known, now).items()
        }
        if ONE in wedges.stuck(known, now):
            return now
    return None


def test_an_answer_that_never_comes_is_noticed_in_good_time() -> None:
    assert noticed(lambda now: ({ONE: ACTIVE}, resting(-1, now), CLEAR)) == NOTICED_SECONDS


def test_an_operator_that_starts_late_notices_it_as_soon() -> None:
    assert noticed(lambda now: ({ONE: ACTIVE}, resting(-9999, now), CLEAR)) == NOTICED_SECONDS


@pytest.mark.parametrize(
    "reading",
    [
        pytest.param(
            lambda now: ({ONE: replace(ACTIVE, link=f"0x{now}")}, resting(now - 1, now), CLEAR),
            id="a busy pool, active in every look, for other clients",
        ),
        pytest.param(
            lambda now: ({ONE: replace(ACTIVE, answered=f"{now}")}, resting(now - 1, now), CLEAR),
            id="one busy client that has the connection in every look",
        ),
        pytest.param(
            lambda now: ({ONE: ACTIVE}, resting(now - 1, now), CLEAR), id="looks that hit the same second"
        ),
        pytest.param(lambda now: ({ONE: ACTIVE}, Backend(False, now, "x"), CLEAR), id="a long statement"),
        pytest.param(lambda now: ({ONE: ACTIVE}, resting(-1, now), BLAMED), id="a message in part"),
        pytest.param(
            lambda now: ({ONE: ACTIVE}, resting(-1, now), CLEAR if now % 4 else BLAMED),
            id="a client that reads now and then",
        ),
        pytest.param(
            lambda now: ({ONE: ACTIVE}, resting(-1, now), None), id="a connection that is gone by then"
        ),
        pytest.param(
            lambda now: ({ONE: ACTIVE} if now % 5 else {}, resting(-1, now), CLEAR),
            id="it is given back meanwhile",
        ),
        pytest.param(lambda now: ({ONE: ACTIVE}, None, CLEAR), id="backends that were never seen"),
    ],
)
def test_what_moves_or_waits_by_right_is_no_wedge(reading: Callable[[int], Reading]) -> None:
    assert noticed(reading) is None


def test_a_backend_that_was_there_and_is_gone_is_noticed() -> None:
    def reading(now: int) -> Reading:
        return {ONE: ACTIVE}, Backend(False, now, "x") if now < 2 else None, CLEAR

    found = noticed(reading)
    assert found is not None
    assert found <= 2 + NOTICED_SECONDS


def test_a_console_that_does_not_answer_tells_nothing_new_and_a_new_connection_begins_anew() -> None:
    silent = noticed(lambda now: (None if 2 < now < 5 else {ONE: ACTIVE}, resting(-1, now), CLEAR))
    assert silent == NOTICED_SECONDS
    other = replace(ACTIVE, pid=1)
    held = wedges.hold({}, {ONE: other}, ["uid"], [1], -60)
    assert noticed(lambda now: ({ONE: ACTIVE}, resting(-1, now), CLEAR), holds=held) == NOTICED_SECONDS


def test_its_client_is_closed_only_where_ending_the_backend_is_in_vain_or_impossible() -> None:
    held = wedges.hold({}, {ONE: ACTIVE}, ["uid"], [ACTIVE.pid], 0)[ONE]
    idle = wedges.judge(held, {ACTIVE.pid: resting(0, 9)}, {ONE.id: CLEAR}, ONE.id, 9)
    assert not wedges.kills(idle, 9)
    ended = replace(idle, terminated=9)
    assert not wedges.kills(ended, 9 + KILL_AFTER_SECONDS - 1)
    assert wedges.kills(ended, 9 + KILL_AFTER_SECONDS)
    gone = wedges.judge(held, {}, {ONE.id: CLEAR}, ONE.id, 9)
    assert wedges.kills(gone, 9)
    assert gone.client == "12"


def socket(kind: str, id: str, **columns: object) -> dict[str, str]:
    row = {"type": kind, "id": id, "ptr": f"0x{id}", "link": "", "pkt_remain": 0, "send_avail": 0, **columns}
    return {name: str(value) for name, value in row.items()}


@pytest.mark.parametrize(
    ("client", "server", "blamed"),
    [
        ({}, {}, False),
        # The rest of its message is still to come.
        ({"pkt_remain": 1000}, {}, True),
        # It does not read.
        ({}, {"send_avail": 2542, "pkt_remain": 5000}, True),
        # What the server began to send and never went on with is the server's, or the way's.
        ({}, {"pkt_remain": 5000}, False),
    ],
)
def test_the_sockets_tell_whether_the_client_is_why_a_connection_stays_active(
    client: dict[str, object], server: dict[str, object], blamed: bool
) -> None:
    rows = [socket("C", "12", **client), socket("S", "7", link="0x12", **server), socket("S", "8")]
    assert pairs(rows) == {"7": Sockets("12", blamed), "8": Sockets("", blamed=False)}
