"""The version that a PgBouncer process shows, as a comparable value.

`SHOW VERSION` answers "PgBouncer 1.26.1". Poolkeeper's own builds add a build number: "PgBouncer
1.24.1+poolkeeper.1".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# A suffix may follow the release, as in 1.27dev and 1.25.0-rc1.
_VERSION = re.compile(r"PgBouncer (\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?([-+~A-Za-z][-+~.A-Za-z0-9]*)?", re.ASCII)
_BUILD = re.compile(r"\+poolkeeper\.(\d{1,4})", re.ASCII)

Release = tuple[int, int, int]


@dataclass(frozen=True)
class Version:
    """A release, and the number of Poolkeeper's build of it: 0 for any other build."""

    release: Release
    build: int = 0


def parse(text: str) -> Version | None:
    """The version in an answer to SHOW VERSION, or None if the text has another form."""
    found = _VERSION.fullmatch(text.strip())
    if found is None:
        return None
    build = _BUILD.fullmatch(found[4] or "")
    return Version((int(found[1]), int(found[2]), int(found[3] or 0)), int(build[1]) if build else 0)
