"""Which known fault of PgBouncer makes which test fail. A failure that is left over is news."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from poolkeeper.engine import pgbouncer_version
from poolkeeper.engine.known_faults import Circumstances, applying

NO_LOGIN = "forced-user-scram"
"""With it no client is served, so that no other test says anything."""
BY_DESIGN = "by design"
"""PgBouncer is meant to do that; Poolkeeper's build does better."""

PATTERNS: tuple[tuple[str, str], ...] = (
    ("search-path-mixed", r"c1_|search_paths|startup_isolation::.*(search_path|several_parameters)"),
    # A search path that another client asked for hides the table that is copied into.
    ("search-path-mixed", r"clients::test_answers_.*-copy"),
    (
        "startup-parameters-lost",
        r"c1_|search_paths|_a_statement_timeout|startup_isolation::test_(a_value|several)|the_encoding_of_one",
    ),
    ("partial-message-mixed", r"test_hostile_|disconnects_at_any_byte|truth::.*(copy|on_both)"),
    ("late-copy-messages", r"test_hostile_|copy"),
    ("copy-answers-mixed", r"answered_to_no_other_client|in_any_disorder|test_hostile_"),
    ("copy-early-data-wedge", r"c2_|asyncpg_prepares_and_copies|test_hostile_"),
    ("CVE-2026-107350", r"cve_2026_107350"),
    ("CVE-2026-107349", r"cve_2026_107349"),
    ("CVE-2026-6664", r"messages_before_the_login|strange_startup_packet"),
    ("reload-crash-login", r"test_reloads_.*entry disappears"),
    ("reload-crash-tls", r"test_reloads_"),
    ("reload-loses-rules", r"finds_no_rules"),
    ("unfinished-logins", r"unfinished_logins::"),
    ("open-files", r"limit_of_open_files"),
    (
        "prepared-in-doubt",
        r"truth::.*(pipeline|extended|on_both|behind_deallocate)|thousands_of_prepared|-mixed",
    ),
    (
        "answers-out-of-order",
        r"truth::.*(storm|renewed|acts\[others|on_both)|thousands_of_prepared|-mixed|sqlx-.*-copy",
    ),
    ("refused-statement-kept", r"-mixed|truth::.*renewed"),
    ("stale-plans", r"test_a_changed_table|test_what_one_server_connection_refused"),
    ("changed-columns", r"columns_changed|a_refused_statement_ends"),
    ("cancels-lost", r"a_cancel_(ends_what|that_follows)|takes_cancels|every_cancel|-mixed"),
    ("flush-holds-server", r"a_flush_of_nothing"),
    ("lost-server-two-errors", r"whose_server_is_lost"),
    ("cached-login-error", r"clients_wait_while_logins|c14_a_pause|acts\[.*RECONNECT"),
    (
        BY_DESIGN,
        r"test_fast_leaks_|prepared_set_config|accepted_in_every_form.*option --|that_the_server_refuses"
        r"|session_parameters_of_any|c10_",
    ),
)
"""Fault, and pattern of `area::test[parameters]`."""


def causes(test: str, result: Mapping[str, Any]) -> list[str]:
    """The faults that explain why `area::test` failed, of those that the release of this result has before its
    server."""
    version = pgbouncer_version.parse(result["engine"])
    assert version is not None, result["engine"]
    major, _, minor = result["server"].partition(".")
    here = Circumstances(int(major) * 10000 + int(minor or 0), "require", frozenset({"extra_float_digits"}))
    present = {fault.name for fault in applying(version, here)}
    if NO_LOGIN in present and result["secrets"] != "md5":
        return [NO_LOGIN]
    found = (fault for fault, pattern in PATTERNS if re.search(pattern, test))
    return [fault for fault in dict.fromkeys(found) if fault in present or fault == BY_DESIGN]
