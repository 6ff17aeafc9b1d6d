"""Turns an exception that was not foreseen into words for a condition, so that none ends in the log only.

Its traceback is logged once for each cause, however often and for however many PooledDatabases it recurs.
"""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass

from poolkeeper.upstream import faults

log = logging.getLogger(__name__)

LASTING_SECONDS = 5.0
"""How long a failure of something that is retried lasts until it is reported."""
_CAUSES = 1000
_known: set[tuple[str, ...]] = set()


def unexpected(doing: str, error: BaseException, secret: str = "") -> str:
    """In words, that the operator failed at `doing` (such as "measuring the server"), and what to do; logs the
    traceback of a new cause. `secret` is blotted out of the exception's text."""
    kind = type(error).__name__
    said = f"{kind}: {faults.quoted(str(error), secret)}" if str(error) else kind
    frames = traceback.extract_tb(error.__traceback__)
    cause = (kind, *(f"{frame.filename}:{frame.lineno}" for frame in frames[-1:]))
    if cause not in _known and len(_known) < _CAUSES:
        _known.add(cause)
        where = "".join(traceback.format_list(frames))
        log.error("%s failed with %s\n%s", doing, said, where.rstrip())
    return (
        f"{doing} failed with an error that the operator does not know: {said}; it is tried again; if this"
        " lasts, report it with the traceback in the operator's log"
    )


@dataclass
class Trouble:
    """Something that is tried again and again, and fails: reported once that has lasted."""

    said: str = ""
    since: float = 0.0

    def note(self, said: str, now: float) -> None:
        """Take in the outcome of an attempt: why it failed, empty if it did not."""
        if not self.said:
            self.since = now
        self.said = said

    def lasting(self, now: float) -> str:
        """Why it fails, once it has failed for LASTING_SECONDS; else empty."""
        return self.said if self.said and now - self.since >= LASTING_SECONDS else ""
