"""Stored budgets: Records survive, tables are what PgBouncer reads, consoles are believed with care."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.budget import allotments
from poolkeeper.budget.allotments import RECORD_FILE, Stored
from poolkeeper.budget.protocol import Allotment, Reading, Record

ENTRIES = ["shop--web-x", "shop--web-x.session", "shop--api-y"]
LINES = {name: f"{name} = host='pg' password='secret-of-the-upstream'" for name in ENTRIES}
CAPS = st.dictionaries(st.sampled_from(ENTRIES), st.integers(1, 300))
ALLOTMENT = st.builds(Allotment, st.integers(0, 5000), st.integers(1, 2**40), CAPS)
RECORD = st.builds(Record, st.integers(0, 2**60), st.dictionaries(st.uuids().map(str), ALLOTMENT, max_size=4))
TWO = Record(7, {"b": Allotment(9, 3, {"shop--web-x": 4}), "a": Allotment(2, 1, {})})


@given(RECORD, st.text(max_size=20))
def test_a_record_is_read_back_as_it_was_stored(record: Record, server: str) -> None:
    files = allotments.files(record, server, LINES, {})
    assert allotments.parse(files) == (record, server)
    assert files.keys() == {RECORD_FILE} | {f"caps-{uid}.ini" for uid in record.allotments}
    assert allotments.current(files, record, LINES)
    assert allotments.kept(files, record, server) == files


@given(RECORD, st.text(max_size=20))
def test_the_record_itself_holds_no_secret(record: Record, server: str) -> None:
    assert "secret-of-the-upstream" not in allotments.files(record, server, LINES, {})[RECORD_FILE]


def test_the_same_record_is_the_same_text_in_whatever_order() -> None:
    other = Record(7, dict(reversed(list(TWO.allotments.items()))))
    assert list(other.allotments) != list(TWO.allotments)
    assert allotments.files(TWO, "s", LINES, {}) == allotments.files(other, "s", LINES, {})


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{}",
        "[]",
        "null",
        '{"epoch":1,"server":"s","pods":[]}',
        '{"epoch":1,"server":"s","pods":{"a":{"bound":1,"revision":1,"caps":3}}}',
        '{"epoch":1,"server":"s","pods":{"a":{"bound":1,"caps":{}}}}',
        '{"epoch":"x","server":"s","pods":{}}',
    ],
)
def test_what_is_none_of_ours_is_an_empty_record(text: str | None) -> None:
    assert allotments.parse({} if text is None else {RECORD_FILE: text}) == (Record(0), "")


def test_a_table() -> None:
    made = allotments.table(Allotment(9, 12, {"shop--web-x.session": 2, "shop--api-y": 5, "gone": 1}), LINES)
    assert made == (
        "syslog_ident = caps-12\n"
        "[databases]\n"
        "shop--api-y = host='pg' password='secret-of-the-upstream'"
        " max_db_connections=5 pool_size=5 min_pool_size=0 reserve_pool_size=0\n"
        "shop--web-x.session = host='pg' password='secret-of-the-upstream'"
        " max_db_connections=2 pool_size=2 min_pool_size=0 reserve_pool_size=0\n"
    )


def test_a_table_without_entries_is_one_all_the_same() -> None:
    assert allotments.table(Allotment(0, 1, {}), LINES) == "syslog_ident = caps-1\n[databases]\n"


def test_tables_are_current_until_lines_change_or_one_is_touched() -> None:
    files = allotments.files(TWO, "s", LINES, {})
    assert allotments.current(files, TWO, LINES)
    assert not allotments.current(files, TWO, {**LINES, "shop--web-x": "shop--web-x = host='elsewhere'"})
    assert allotments.current(files, TWO, {**LINES, "unused": "unused = host='pg'"})
    assert not allotments.current({**files, "caps-b.ini": ""}, TWO, LINES)
    one = {name: text for name, text in files.items() if name != "caps-a.ini"}
    assert not allotments.current(one, TWO, LINES)
    assert allotments.current({}, Record(0), LINES), "no Record asks for no table"


def test_an_entry_that_has_no_line_any_more_keeps_the_one_that_it_has() -> None:
    """It goes only when nobody can log in to it any more; its consumer has gone by then."""
    files = allotments.files(TWO, "s", LINES, {})
    fewer = {name: line for name, line in LINES.items() if name != "shop--web-x"}
    assert allotments.current(files, TWO, fewer)
    assert allotments.files(TWO, "s", fewer, files) == files
    smaller = Record(7, {**TWO.allotments, "b": Allotment(9, 4, {"shop--web-x": 1})})
    assert LINES["shop--web-x"] in allotments.files(smaller, "s", fewer, files)["caps-b.ini"]
    assert LINES["shop--web-x"] not in allotments.files(smaller, "s", fewer, {})["caps-b.ini"]


def test_where_nobody_knows_the_lines_tables_are_kept_as_they_are() -> None:
    files = allotments.files(TWO, "s", LINES, {})
    smaller = Record(8, {"b": Allotment(4, 3, {"shop--web-x": 4})})
    kept = allotments.kept(files, smaller, "s")
    assert kept.keys() == {RECORD_FILE, "caps-b.ini"}
    assert kept["caps-b.ini"] == files["caps-b.ini"]
    assert allotments.parse(kept) == (smaller, "s")


def test_the_body_is_refused_if_anybody_wrote_since_or_the_secret_is_another_one() -> None:
    body = allotments.body("data", "shop-pooler-config", Stored(TWO, "s", "uid-1", "42"), {"a.ini": "x"})
    assert body == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "namespace": "data",
            "name": "shop-pooler-config",
            "uid": "uid-1",
            "resourceVersion": "42",
        },
        "data": {"a.ini": base64.b64encode(b"x").decode()},
    }
    json.dumps(body)


# What a console shows


def settings(ident: str | None) -> dict[str, str]:
    return {"listen_port": "6432"} | ({} if ident is None else {"syslog_ident": ident})


def databases(**shown: tuple[int, int]) -> list[dict[str, str]]:
    """(max_connections, current_connections) by entry."""
    return [
        {"name": name, "max_connections": str(most), "current_connections": str(held)}
        for name, (most, held) in shown.items()
    ]


@pytest.mark.parametrize(
    ("ident", "revision"),
    [
        ("caps-1", 1),
        ("caps-120", 120),
        ("pgbouncer", 0),
        ("", 0),
        (None, 0),
        ("caps-0", 0),
        ("caps-01", 0),
        ("caps--1", 0),
        ("caps-1 ", 0),
        ("xcaps-1", 0),
        ("caps-1x", 0),
    ],
)
def test_the_marker_is_the_revision(ident: str | None, revision: int) -> None:
    assert allotments.revision(settings(ident)) == revision


def test_a_reading_has_caps_and_what_is_held() -> None:
    caps = {"a": 5, "b": 2}
    assert allotments.reading(settings("caps-3"), databases(a=(5, 7), b=(2, 0)), caps) == Reading(
        3, caps, {"a": 7, "b": 0}
    )


@pytest.mark.parametrize(
    "shown",
    [{"a": (4, 0), "b": (2, 0)}, {"a": (6, 0)}, {"a": (5, 0), "b": (2, 0), "c": (1, 0)}],
    ids=["an older cap", "a higher cap", "an entry more"],
)
def test_the_marker_of_a_table_that_was_read_in_part_proves_nothing(shown: dict[str, tuple[int, int]]) -> None:
    """PgBouncer reads the marker first, and stops at the first line that it doesn't understand."""
    found = allotments.reading(settings("caps-3"), databases(**shown), {"a": 5, "b": 2})
    assert found.revision == 0
    assert found.caps == {name: most for name, (most, _) in shown.items()}


def test_an_entry_may_be_missing_that_has_no_line() -> None:
    assert allotments.reading(settings("caps-3"), databases(a=(5, 1)), {"a": 5, "b": 2}) == Reading(
        3, {"a": 5}, {"a": 1}
    )


def test_with_nothing_allotted_the_console_is_believed() -> None:
    assert allotments.reading(settings("caps-3"), databases(a=(5, 1)), None) == Reading(3, {"a": 5}, {"a": 1})
    assert allotments.reading(settings("pgbouncer"), databases(), None) == Reading(0, {}, {})


@given(st.dictionaries(st.sampled_from("abc"), st.integers(1, 9)), st.integers(1, 99))
def test_what_a_stored_table_brings_about_is_read_back(caps: Mapping[str, int], revision: int) -> None:
    shown = databases(**{name: (most, most) for name, most in caps.items()})
    found = allotments.reading(settings(f"caps-{revision}"), shown, caps)
    assert found == Reading(revision, caps, caps)
