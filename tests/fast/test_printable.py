"""Text from outside: on one line, without control characters, bounded; also in the log."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.printable import LogFormatter, printable


@given(text=st.text(), limit=st.integers(1, 40))
def test_it_is_one_line_that_can_be_printed_and_has_its_limit(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    shown.encode()
    if text.isprintable() and len(text) <= limit:
        assert shown == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202e", "\\u202e"),
        ("\ud800", "\\ud800"),
        ("a" * 11, "a" * 9 + "…"),
    ],
)
def test_what_cannot_be_printed_is_an_escape(text: str, shown: str) -> None:
    assert printable(text, 10) == shown


def record(message: str, **more: object) -> str:
    made = logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "%s", "args": (message,), **more})
    return LogFormatter("%(levelname)s %(name)s %(message)s").format(made)


@given(message=st.text())
def test_a_record_is_one_line(message: str) -> None:
    line = record(message)
    assert line.isprintable()
    assert line.startswith("INFO x ")


def test_no_line_of_a_traceback_looks_like_a_record() -> None:
    try:
        raise ValueError("it ends\n2026-01-01 INFO forged\r\x1b[2K")
    except ValueError as error:
        first, *rest = record("failed", exc_info=(ValueError, error, error.__traceback__)).split("\n")
    assert first == "INFO x failed"
    assert rest[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") and line.isprintable() for line in rest)
