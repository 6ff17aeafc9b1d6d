"""The page of the conformance suite: every failure has a cause, or stands out."""

from __future__ import annotations

import pytest

from poolkeeper.engine.known_faults import KNOWN
from tests.datapath.causes import BY_DESIGN, NO_LOGIN, PATTERNS, causes
from tests.datapath.report import Row, rendered
from tests.pgbouncer import debian
from tests.pgbouncer.processes import sanitizer_reports


def result(engine: str, server: str, secrets: str = "scram-sha-256", **failed: list[str]) -> Row:
    areas = {area: dict.fromkeys(names, "failed") for area, names in failed.items()}
    return {"engine": f"PgBouncer {engine}", "server": server, "secrets": secrets, "areas": areas}


def test_every_cause_is_a_known_fault() -> None:
    assert {fault for fault, _ in PATTERNS} <= {*KNOWN, BY_DESIGN}
    assert NO_LOGIN in KNOWN


@pytest.mark.parametrize(
    ("engine", "server", "expected"),
    [
        ("1.26.1", "17.12", ["search-path-mixed", "startup-parameters-lost"]),
        ("1.26.1", "18.6", ["startup-parameters-lost"]),
        ("1.25.2", "17.12", ["startup-parameters-lost"]),
        ("1.24.1+poolkeeper.4", "17.12", []),
        ("1.27.0", "17.12", []),
    ],
)
def test_a_fault_is_a_cause_only_where_the_release_has_it(
    engine: str, server: str, expected: list[str]
) -> None:
    there = result(engine, server, "md5")
    assert causes("startup_isolation::test_c1_no_answer[pooler]", there) == expected


def test_without_logins_nothing_else_is_looked_for() -> None:
    assert causes("liveness::test_x", result("1.24.1", "17.12")) == [NO_LOGIN]
    assert causes("liveness::test_x", result("1.24.1", "17.12", "md5")) == []


def test_failures_are_grouped_and_what_nothing_explains_stands_out() -> None:
    wedged = [
        f"test_c2_early[{tier}-{mode}-{size}]"
        for tier in ("keeper", "pooler")
        for mode in ("session", "transaction")
        for size in (40, 800)
    ]
    page = rendered(
        [result("1.26.1", "17.12", copy_liveness=wedged, liveness=["test_a_new_one[option -c|b-9]"])]
    )
    cause = "[copy-early-data-wedge](security.md#known-faults-of-pgbouncer)"
    assert (
        f"| copy_liveness | c2 early | {{keeper, pooler}}-{{session, transaction}}-{{40, 800}} | {cause} |"
        in page
    )
    assert r"| liveness | a new one | option -c\|b-9 | **unexplained** |" in page
    [row] = [line for line in page.splitlines() if line.startswith("| 1.26.1 | 17.12 |")]
    assert row.endswith("| 1 |")


def test_a_sound_engine_has_an_empty_list() -> None:
    sound = result("1.24.1+poolkeeper.4", "17.12")
    sound["areas"] = {"truth": {"test_one": "passed"}}
    page = rendered([sound])
    assert "| 1 of 1 |" in page
    assert "## Failed: PgBouncer 1.24.1+poolkeeper.4, PostgreSQL 17.12\n\nNone.\n" in page


def test_a_server_that_debian_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(RuntimeError, match="no suite of Debian has postgresql-16; there are 13, 15, 17, 18"):
        debian.postgresql("16")


@pytest.mark.parametrize(
    "line",
    [
        "==7==ERROR: AddressSanitizer: heap-use-after-free on address 0x60 at pc 0x55",
        "==7==ERROR: LeakSanitizer: detected memory leaks",
        "src/objects.c:120:5: runtime error: index 8 out of bounds for type 'int [8]'",
    ],
)
def test_a_sanitizers_report_is_found_between_the_lines_of_a_log(line: str) -> None:
    log = f"2026-11-28 22:17:39 UTC [1424] LOG stats: 101 xacts/s\n{line}\n    #0 0x55 in welcome_client\n"
    [report] = sanitizer_reports(log)
    assert report.startswith(f"{line}\n    #0")
    assert sanitizer_reports("2026-11-28 22:17:39 UTC [1424] WARNING a runtime error\n") == []
