"""A planned pause as the status records it: what is asked for, what was begun, what comes next. Pure.

A pause outlives the console that asked for it, and the operator too. So it is in the status, with its deadline,
before any pooler hears of it, and leaves the status after every pooler has resumed: whatever happens in
between, the next operator finds there what it has to end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from poolkeeper.plan.world import Resource
from poolkeeper.spec.parse import PooledDatabase

FIELD = "pause"
"""Of the status."""
MARGIN_SECONDS = 30
"""So much longer than the pause lasts a query may wait: it may have waited before, and takes its turn after."""
LOWER_SECONDS = 5.0
"""How long after the resume the time limits go back to what they were. What has waited since the pause began
would be cut off by them, so the last of it has to have its server by then."""
_WAIT_TIMEOUTS = {"query_wait_timeout": "120", "query_timeout": "0"}
"""What cuts off a client that waits, with PgBouncer's defaults; 0 is no limit. (query_timeout counts from when
the client asked, also while it has no server: tried.)"""
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Pause:
    """One pause. It ends at `until` at the latest; `resumed_at` once every pooler has resumed.

    `timed_out`: it was still asked for then. It is not begun again before it was taken back.
    """

    since: datetime
    until: datetime
    resumed_at: datetime | None = None
    timed_out: bool = False

    def holds(self, asked: bool | None, now: datetime) -> bool:
        """Whether poolers are to be paused; else they are to be resumed, or have been."""
        return self.resumed_at is None and asked is not False and now < self.until

    def raises_limits(self, now: datetime) -> bool:
        """Whether the time limits on waiting clients have to allow for it still."""
        return self.resumed_at is None or now < self._lowered_at

    def next_change(self, asked: bool | None, now: datetime) -> float | None:
        """In how many seconds there is something to do that no event tells."""
        if self.resumed_at is not None:
            return (self._lowered_at - now).total_seconds() if now < self._lowered_at else None
        return (self.until - now).total_seconds() if self.holds(asked, now) else None

    @property
    def _lowered_at(self) -> datetime:
        assert self.resumed_at is not None
        return self.resumed_at + timedelta(seconds=LOWER_SECONDS)


def asked(resource: Resource) -> bool | None:
    """What the spec wants; None where it makes no sense, so that nobody knows. Deletion takes a pause back."""
    if resource.deleting:
        return False
    spec = resource.spec
    return is_possible(spec) and spec.paused if isinstance(spec, PooledDatabase) else None


def is_possible(database: PooledDatabase) -> bool:
    """In session mode every client keeps its server for as long as it stays: there is nothing to hold back."""
    return database.pooler.mode != "session"


def recorded(resource: Resource) -> Pause | None:
    """The pause that the status speaks of."""
    found = resource.status.get(FIELD)
    if not found:
        return None
    return Pause(
        since=_time(found["since"]),
        until=_time(found["until"]),
        resumed_at=_time(found["resumedAt"]) if "resumedAt" in found else None,
        timed_out=found.get("timedOut", False),
    )


def to_record(pause: Pause) -> dict[str, Any]:
    """The pause as the status has it."""
    return {
        "since": pause.since.strftime(_TIME),
        "until": pause.until.strftime(_TIME),
        **({"resumedAt": pause.resumed_at.strftime(_TIME)} if pause.resumed_at else {}),
        **({"timedOut": True} if pause.timed_out else {}),
    }


def advance(resource: Resource, resumed: bool, now: datetime) -> Pause | None:
    """What the status has to record next; `resumed`: every pooler showed that it holds nobody back."""
    pause, wants = recorded(resource), asked(resource)
    if pause is None:
        return _new(resource, now) if wants else None
    if pause.resumed_at is None:
        if pause.holds(wants, now) or not resumed:
            return pause
        return replace(pause, resumed_at=_whole(now), timed_out=wants is not False)
    if wants:
        return pause if pause.timed_out else _new(resource, now)
    if wants is None:
        return pause
    return replace(pause, timed_out=False) if pause.raises_limits(now) else None


def wait_seconds(resource: Resource, now: datetime) -> int | None:
    """How long queries must be allowed to wait because of a pause, in seconds; None without one."""
    pause = recorded(resource)
    if pause is None or not pause.raises_limits(now):
        return None
    return int((pause.until - pause.since).total_seconds()) + MARGIN_SECONDS


def with_patience(parameters: Mapping[str, str], seconds: int | None) -> dict[str, str]:
    """PgBouncer's settings with the limits raised that would cut waiting clients off before `seconds`."""
    raised = dict(parameters)
    for name, default in _WAIT_TIMEOUTS.items():
        limit = float(parameters.get(name, default))
        if seconds is not None and 0 < limit < seconds:
            raised[name] = str(seconds)
    return raised


def _new(resource: Resource, now: datetime) -> Pause:
    spec = resource.spec
    assert isinstance(spec, PooledDatabase)
    return Pause(_whole(now), _whole(now) + timedelta(seconds=spec.pause_timeout_seconds))


def _whole(time: datetime) -> datetime:
    return time.replace(microsecond=0)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
