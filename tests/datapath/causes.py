"""Which known fault of PgBouncer makes which test fail. A failure that is left over is news."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from poolkeeper import pgbouncer_version
from poolkeeper.known_faults import Circumstances, applying

NO_LOGIN = "forced-user-scram"
"""With it no client is served, so that no other test says anything."""
BY_DESIGN = "documented"
"""PgBouncer's documentation says that it is so; Poolkeeper's build does better."""

_COPY = r"(copy|others)"
PATTERNS: tuple[tuple[str, str], ...] = ((NO_LOGIN, r"."),)
"""Fault and pattern of `area::test[parameters]`."""


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
