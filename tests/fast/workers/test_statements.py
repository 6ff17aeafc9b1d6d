"""The operator's SQL as text, and answers of servers that are no PostgreSQL."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolkeeper.workers import statements
from poolkeeper.workers.statements import Implausible, Row

ASKED = {
    "SYSTEM": statements.SYSTEM,
    "INSTANCE": statements.INSTANCE,
    "CONNECTIONS": statements.CONNECTIONS,
    "SNAPSHOT": statements.SNAPSHOT,
    "SCHEMA": statements.SCHEMA,
    "backends": statements.backends_statement([7, 8]),
    "terminate": statements.terminate_statement(7, "1700000000000000"),
}
OF_THE_GRAMMAR = {"coalesce", "extract", "array", "cast", "operator"}
"""These look like functions, and no schema can replace them."""


@pytest.mark.parametrize("name", ASKED)
def test_every_name_and_operator_has_its_schema(name: str) -> None:
    """A real server is asked in tests/pgbouncer/test_measuring.py; this also sees what no answer shows."""
    bare = re.sub(r"'[^']*'", "''", ASKED[name])
    without = re.sub(r"OPERATOR\(pg_catalog\.[=<>*-]+\)", "", bare)
    assert not re.search(r"[=<>!~+/|@#%^&?-]|::|(?<!\()\*(?!\))", without), without
    called = re.findall(r"([\w.]+)\(", bare)
    assert all(function.startswith("pg_catalog.") or function.lower() in OF_THE_GRAMMAR for function in called)
    relations = re.findall(r"(?:FROM|JOIN) (?!state_change|\(|pg_catalog\.)(\w\S*)", without)
    assert not relations
    assert not re.search(r"\b(IN|LIKE|BETWEEN|DISTINCT|CASE|SIMILAR)\b", without), "they use operators unseen"


SANE: dict[str, tuple[Callable[[list[Row]], object], list[Row]]] = {
    "instance": (statements.instance, [("1700000000123456 5432", "100", "3", "0")]),
    "system": (statements.system, [("7300000000000000001",)]),
    "connections": (
        lambda rows: statements.measured(rows, (100, 3, 0)),
        [("backend", "7", "o", "d", ""), ("role", "5", "o", "", ""), ("database", "9", "", "d", "")],
    ),
    "schema": (statements.fingerprint, [("1 2",)] * 5),
    "backends": (statements.resting, [("7", "t", "1.5", "1700000000000000")]),
    "terminate": (statements.terminated, [("t",)]),
    "snapshot": (statements.one_value, [("1:2:",)]),
}


@pytest.mark.parametrize("name", SANE)
def test_an_answer_of_postgresql_is_understood(name: str) -> None:
    reader, rows = SANE[name]
    assert reader(rows)


VALUES = st.one_of(
    st.none(),
    st.text(max_size=8),
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(["", "t", "f", "backend", "role", "nan", "inf", "-1", "1e999", "१२", "9" * 5000, "\udce9"]),
)


@pytest.mark.parametrize("name", SANE)
@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.lists(VALUES, max_size=6).map(tuple), max_size=6))
def test_any_other_answer_is_implausible_and_never_another_exception(name: str, rows: list[Row]) -> None:
    reader, _ = SANE[name]
    with contextlib.suppress(Implausible):
        reader(rows)


@pytest.mark.parametrize(
    "row",
    [
        ("1700000000 5432", "0", "0", "0"),
        ("1700000000 5432", "262144", "3", "0"),
        ("1700000000 5432", "-100", "3", "0"),
        ("1700000000 5432", "100", "60", "40"),
        ("1700000000 5432", "100", None, "0"),
        ("1700000000 5432", "100", "3"),
        ("now 5432", "100", "3", "0"),
    ],
)
def test_settings_that_no_server_has_are_refused(row: Row) -> None:
    with pytest.raises(Implausible):
        statements.instance([row])


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [("role", "5", "o", "", "")],
        [("backend", "7", "o", "d", ""), ("backend", "7", "o", "d", "")],
        [("backend", "-7", "o", "d", "")],
        [("backend", "7", "o", None, "")],
        [("backend", "7", "o", "d", ""), ("role", "-1", "o", "", "")],
    ],
)
def test_connections_that_no_server_has_are_refused(rows: list[Row]) -> None:
    with pytest.raises(Implausible):
        statements.measured(rows, (100, 3, 0))


def test_names_that_are_no_text_stay_apart() -> None:
    names = [b"caf\xe9", b"caf\xe8", "café".encode(), b"caf\\xe9"]
    assert len(set(statements.texts(names))) == len(names)
