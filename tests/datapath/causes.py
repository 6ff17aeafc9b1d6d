"""Which known fault of PgBouncer makes which test fail. A failure that is left over is news."""

from __future__ import annotations

import re
from collections.abc import Iterator

from poolkeeper import pgbouncer_version
from poolkeeper.known_faults import Circumstances, applying

NO_LOGIN = "forced-user-scram"
"""With it no client is served, so that no other test says anything."""
BY_DESIGN = "documented"
"""PgBouncer's documentation says that it is so; Poolkeeper's build does better."""

_COPY = r"(copy|others)"
_PATTERNS: tuple[tuple[str, str], ...] = (
    (NO_LOGIN, r"."),
)
"""Fault and pattern of `area::test[parameters]`."""


def causes(test: str, engine: str, server: str) -> list[str]:
    """The faults that this release has before this server and that explain the failure of `area::test`."""
    version = pgbouncer_version.parse(engine)
    assert version is not None
    major, _, minor = server.partition(".")
    here = Circumstances(int(major) * 10000 + int(minor or 0), "require", frozenset({"extra_float_digits"}))
    present = {fault.name for fault in applying(version, here)} | {BY_DESIGN}
    return list(dict.fromkeys(_matching(test, present)))


def _matching(test: str, present: set[str]) -> Iterator[str]:
    for fault, pattern in _PATTERNS:
        if fault in present and re.search(pattern, test):
            yield fault
