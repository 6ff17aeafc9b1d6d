"""Session state that a client can leave on a server connection, how another client would notice, and what leaks
in transaction mode."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SessionState:
    """`leave` are statements outside of transactions; `probe` gives one value, which on a fresh connection is
    another one than after them.

    `leaks` is whether another client meets it in transaction mode with isolation Fast: documented, and nothing
    else may. In session mode and with isolation Strict nothing leaks.
    """

    name: str
    leave: tuple[str, ...]
    probe: str
    leaks: bool


_ADVISORY = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"

STATES = (
    SessionState("SET", ("SET work_mem = '5MB'",), "SHOW work_mem", True),
    SessionState("SET of an enumeration", ("SET bytea_output = 'escape'",), "SHOW bytea_output", True),
    SessionState(
        "set_config",
        ("SELECT set_config('work_mem', '5MB', false)",),
        "SELECT current_setting('work_mem')",
        True,
    ),
    SessionState("SET by a function", ("SELECT change_work_mem()",), "SHOW work_mem", True),
    SessionState("SET clause of a function", ("SELECT own_work_mem()",), "SHOW work_mem", False),
    SessionState("SET in a transaction", ("BEGIN; SET work_mem = '5MB'; COMMIT",), "SHOW work_mem", True),
    SessionState("SET that is rolled back", ("BEGIN; SET work_mem = '5MB'; ROLLBACK",), "SHOW work_mem", False),
    SessionState("SET LOCAL", ("BEGIN; SET LOCAL work_mem = '5MB'; COMMIT",), "SHOW work_mem", False),
    SessionState("set_config, local", ("SELECT set_config('work_mem', '5MB', true)",), "SHOW work_mem", False),
    SessionState("SET of a reported parameter", ("SET DateStyle = 'German'",), "SHOW DateStyle", False),
    SessionState("SET TIME ZONE", ("SET TIME ZONE 'Asia/Tokyo'",), "SHOW TimeZone", False),
    SessionState("SET application_name", ("SET application_name = 'left'",), "SHOW application_name", False),
    SessionState("SET IntervalStyle", ("SET IntervalStyle = 'iso_8601'",), "SHOW IntervalStyle", False),
    SessionState("SET client_encoding", ("SET client_encoding = 'LATIN1'",), "SHOW client_encoding", False),
    SessionState(
        "SET standard_conforming_strings",
        ("SET standard_conforming_strings = off",),
        "SHOW standard_conforming_strings",
        False,
    ),
    SessionState("SET search_path", ("SET search_path = t1",), "SHOW search_path", False),
    SessionState(
        "a dump's empty search_path",
        ("SELECT pg_catalog.set_config('search_path', '', false)",),
        "SHOW search_path",
        False,
    ),
    SessionState(
        "set_config of a parameter in capitals",
        ("SELECT 1 AS a_b; SELECT Set_Config ( 'LOCK_TIMEOUT', '59s', false)",),
        "SHOW lock_timeout",
        False,
    ),
    SessionState(
        "set_config of a parameter without a literal",
        ("SELECT set_config('search' || '_path', 't1', false)",),
        "SHOW search_path",
        False,
    ),
    SessionState("SET statement_timeout", ("SET statement_timeout = '59s'",), "SHOW statement_timeout", False),
    SessionState("SET lock_timeout", ("SET lock_timeout = '59s'",), "SHOW lock_timeout", False),
    SessionState(
        "SESSION CHARACTERISTICS",
        ("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",),
        "SHOW default_transaction_isolation",
        True,
    ),
    SessionState(
        "a tenant's variable",
        ("SELECT set_config('app.tenant', 'acme', false)",),
        "SELECT count(*) FROM guarded",
        True,
    ),
    SessionState("role", ("SET ROLE auditor",), "SELECT current_user", True),
    SessionState(
        "an extension's parameter",
        ("DO $$ BEGIN END $$", "SET plpgsql.extra_warnings = 'all'"),
        "SELECT coalesce(current_setting('plpgsql.extra_warnings', true), 'none')",
        True,
    ),
    SessionState(
        "temporary table",
        ("CREATE TEMP TABLE left_behind (a int)",),
        "SELECT count(*) FROM pg_class WHERE relname = 'left_behind' AND pg_table_is_visible(oid)",
        True,
    ),
    SessionState(
        "PREPARE",
        ("PREPARE left_behind AS SELECT 1",),
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'left_behind'",
        True,
    ),
    SessionState(
        "cursor WITH HOLD",
        ("DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1",),
        "SELECT count(*) FROM pg_cursors WHERE name = 'left_behind'",
        True,
    ),
    SessionState("advisory lock", ("SELECT pg_advisory_lock(pg_backend_pid())",), _ADVISORY, True),
    SessionState(
        "advisory lock of a transaction",
        ("BEGIN; SELECT pg_advisory_xact_lock(pg_backend_pid()); COMMIT",),
        _ADVISORY,
        False,
    ),
    SessionState("LISTEN", ("LISTEN left_behind",), "SELECT count(*) FROM pg_listening_channels()", True),
)
"""A sequence's currval() and the random seed stay as well, as those of any connection that is used twice."""
