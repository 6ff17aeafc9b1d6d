"""Which known fault applies to which version of PgBouncer, before which server, under which configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.engine.known_faults import KNOWN, NEWEST_TRIED, TABLE, Circumstances, applying, uncertain
from poolkeeper.engine.pgbouncer_version import Version, parse

ROOT = Path(__file__).parents[3]
SAFE = Circumstances(180000, "verify-full", frozenset({"extra_float_digits", "options"}))
WORST = Circumstances(170002, "require", frozenset({"extra_float_digits"}))
PARSERS = {"CVE-2026-6664", "CVE-2026-6665", "CVE-2026-6666"}
BEFORE_26 = {"forced-user-scram", "late-copy-messages"}
RELOADS = {"reload-crash-login", "reload-crash-tls"}
SINCE_BUILD_4 = {"open-files", "copy-answers-mixed"}
SINCE_BUILD_3 = {"unfinished-logins"} | SINCE_BUILD_4
SINCE_BUILD_2 = {
    "changed-columns",
    "reload-loses-rules",
    "cancels-lost",
    "flush-holds-server",
} | SINCE_BUILD_3
OLDEST = {
    "open-files",
    "copy-answers-mixed",
    "unfinished-logins",
    "reload-crash-login",
    "cached-login-error",
    "partial-message-mixed",
    "reload-loses-rules",
    "cancels-lost",
    "flush-holds-server",
    "lost-server-two-errors",
}
PREPARED = {
    "changed-columns",
    "prepared-in-doubt",
    "answers-out-of-order",
    "refused-statement-kept",
    "stale-plans",
}
EVERY_STOCK = OLDEST | PREPARED | {"startup-parameters-lost"}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("PgBouncer 1.26.1", Version((1, 26, 1))),
        ("PgBouncer 1.24.1+poolkeeper.1", Version((1, 24, 1), 1)),
        ("PgBouncer 1.24.1+poolkeeper.12", Version((1, 24, 1), 12)),
        ("PgBouncer 1.24.1+poolkeeper.0", Version((1, 24, 1), 0)),
        ("PgBouncer 1.24.1+poolkeeper.1+local", Version((1, 24, 1))),
        ("PgBouncer 1.24.1+deb13u2", Version((1, 24, 1))),
        ("PgBouncer 1.25.0-rc1", Version((1, 25, 0))),
        ("PgBouncer 1.27dev", Version((1, 27, 0))),
        ("PgBouncer 1.27", Version((1, 27, 0))),
        (" PgBouncer 2.0.0\n", Version((2, 0, 0))),
        ("PgBouncer", None),
        ("PgBouncer 1", None),
        ("PgBouncer 1.26.1.2", None),
        ("PgBouncer 1.26.1 with more", None),
        ("PgBouncer ١.٢٦.١", None),
        ("pgcat 1.2.0", None),
        ("1.26.1", None),
        ("", None),
    ],
)
def test_a_version_is_read_in_every_form_and_nothing_else_is_taken_for_one(
    text: str, version: Version | None
) -> None:
    assert parse(text) == version


@given(st.text(max_size=80))
def test_any_text_is_a_version_or_none(text: str) -> None:
    parsed = parse(f"PgBouncer {text}")
    assert parsed is None or text.strip()[0].isdigit()


@pytest.mark.parametrize(
    ("text", "circumstances", "names"),
    [
        ("PgBouncer 1.24.1+poolkeeper.1", WORST, SINCE_BUILD_2),
        ("PgBouncer 1.24.1+poolkeeper.2", WORST, SINCE_BUILD_3),
        ("PgBouncer 1.24.1+poolkeeper.3", WORST, SINCE_BUILD_4),
        ("PgBouncer 1.24.1+poolkeeper.4", WORST, set()),
        ("PgBouncer 1.24.1+poolkeeper.5", WORST, set()),
        (
            "PgBouncer 1.24.1+poolkeeper.0",
            WORST,
            PARSERS | BEFORE_26 | RELOADS | EVERY_STOCK | {"CVE-2026-107350", "CVE-2026-107349"},
        ),
        (
            "PgBouncer 1.24.1",
            WORST,
            PARSERS | BEFORE_26 | RELOADS | EVERY_STOCK | {"CVE-2026-107350", "CVE-2026-107349"},
        ),
        ("PgBouncer 1.24.1", SAFE, PARSERS | BEFORE_26 | {"CVE-2026-107350"} | EVERY_STOCK),
        ("PgBouncer 1.25.1", SAFE, PARSERS | BEFORE_26 | {"CVE-2026-107350"} | EVERY_STOCK),
        ("PgBouncer 1.25.2", SAFE, BEFORE_26 | {"CVE-2026-107350"} | EVERY_STOCK),
        ("PgBouncer 1.26.0", SAFE, {"CVE-2026-107350", "copy-early-data-wedge"} | EVERY_STOCK),
        (
            "PgBouncer 1.26.0",
            WORST,
            KNOWN.keys() - PARSERS - BEFORE_26,
        ),
        ("PgBouncer 1.26.1", SAFE, {"copy-early-data-wedge"} | EVERY_STOCK),
        (
            "PgBouncer 1.26.1",
            WORST,
            {"search-path-mixed", "copy-early-data-wedge"} | RELOADS | EVERY_STOCK,
        ),
        ("PgBouncer 1.16.1", SAFE, PARSERS | BEFORE_26 | OLDEST),
        ("PgBouncer 1.19.0", WORST, PARSERS | BEFORE_26 | RELOADS | OLDEST | {"CVE-2026-107350"}),
        (
            "PgBouncer 1.20.1",
            SAFE,
            PARSERS | BEFORE_26 | OLDEST | {"startup-parameters-lost", "CVE-2026-107350"},
        ),
        ("PgBouncer 1.26.2", WORST, set()),
        ("PgBouncer 1.27.0", WORST, set()),
    ],
)
def test_the_faults_of_each_version(text: str, circumstances: Circumstances, names: set[str]) -> None:
    version = parse(text)
    assert version is not None
    assert {fault.name for fault in applying(version, circumstances)} == names


@pytest.mark.parametrize(
    ("server", "applies"),
    [(None, True), (130000, True), (170002, True), (179999, True), (180000, False), (190000, False)],
)
def test_search_path_is_mixed_before_servers_that_do_not_report_it(server: int | None, applies: bool) -> None:
    circumstances = Circumstances(server, "disable", SAFE.ignored_parameters)
    found = applying(Version((1, 26, 1)), circumstances)
    assert (KNOWN["search-path-mixed"] in found) == applies
    assert [fault.name for fault in found if uncertain(fault, circumstances)] == (
        ["search-path-mixed"] if server is None else []
    )


@pytest.mark.parametrize(
    ("mode", "applies"), [("disable", False), ("require", True), ("verify-ca", True), ("verify-full", False)]
)
def test_a_tls_handshake_crashes_a_reload_in_the_modes_that_do_not_check_the_name(
    mode: str, applies: bool
) -> None:
    found = applying(Version((1, 26, 1)), Circumstances(180000, mode, SAFE.ignored_parameters))
    assert (KNOWN["reload-crash-tls"] in found) == applies


@pytest.mark.parametrize(
    ("ignored", "applies"),
    [(set(), False), ({"options"}, False), ({"extra_float_digits", "options"}, False), ({"datestyle"}, True)],
)
def test_options_make_it_spin_where_other_parameters_are_ignored_and_options_are_not(
    ignored: set[str], applies: bool
) -> None:
    found = applying(Version((1, 24, 1)), Circumstances(180000, "disable", frozenset(ignored)))
    assert (KNOWN["CVE-2026-107349"] in found) == applies


def test_every_fault_has_a_range_within_what_was_tried_and_a_name_of_its_own() -> None:
    assert len(KNOWN) == len(TABLE)
    for fault in TABLE:
        assert fault.since <= fault.until <= NEWEST_TRIED, fault
        assert fault.backported == fault.name.startswith("CVE-")


def test_the_crd_takes_exactly_these_names() -> None:
    crd = yaml.safe_load((ROOT / "crds" / "pooleddatabases.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    field = spec["properties"]["pooler"]["properties"]["allowKnownFaults"]
    assert field["items"]["enum"] == list(KNOWN)
    assert field["maxItems"] >= len(KNOWN)


@pytest.mark.parametrize("name", KNOWN)
def test_the_documentation_explains_every_fault(name: str) -> None:
    assert f"| `{name}` |" in (ROOT / "docs" / "security.md").read_text()
