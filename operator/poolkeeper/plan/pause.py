"""A planned pause as the status records it: what is asked for, what has begun, what comes next. Pure.

A pause outlives the console that asked for it, and the operator too. So the status has it, with its deadline,
before any pooler is paused, and until every pooler has resumed: whatever happens in between, the next operator
finds there what it has to end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from poolkeeper.plan.world import Resource
from poolkeeper.spec.parse import PooledDatabase

FIELD = "pause"
"""The field of the status."""
MARGIN_SECONDS = 30
"""How long a query may wait beyond the pause: it may have waited before, and takes its turn afterwards."""
LOWER_SECONDS = 5.0
"""How long after the resume the time limits go back to what they were. The lower limits would cut off queries
that have waited since the pause began, so the last such query must have its server connection by then."""
_WAIT_TIMEOUTS = {"query_wait_timeout": "120", "query_timeout": "0"}
"""Settings that cut off a waiting client, with PgBouncer's defaults; 0 is no limit. (query_timeout counts from
the client's query, also while it has no server connection: tried.)"""
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Pause:
    """One pause. It ends at `until` at the latest; `resumed_at` is set once every pooler has resumed.

    `timed_out`: it was still asked for then. It does not begin again before it was taken back.
    """

    since: datetime
    until: datetime
    resumed_at: datetime | None = None
    timed_out: bool = False

    def holds(self, asked: bool | None, now: datetime) -> bool:
        """Whether poolers are to be paused; otherwise they are to be resumed, or have been."""
        return self.resumed_at is None and asked is not False and now < self.until

    def raises_limits(self, now: datetime) -> bool:
        """Whether the time limits on waiting clients still have to allow for it."""
        return self.resumed_at is None or now < self._lowered_at

    def next_change(self, asked: bool | None, now: datetime) -> float | None:
        """Seconds until the next step that no event reports; None if there is none."""
        if self.resumed_at is not None:
            return (self._lowered_at - now).total_seconds() if now < self._lowered_at else None
        return (self.until - now).total_seconds() if self.holds(asked, now) else None

    @property
    def _lowered_at(self) -> datetime:
        assert self.resumed_at is not None
        return self.resumed_at + timedelta(seconds=LOWER_SECONDS)


def asked(resource: Resource) -> bool | None:
    """Whether the spec asks for a pause; None (unknown) if it is invalid. Deletion takes a pause back."""
    if resource.deleting:
        return False
    spec = resource.spec
    return is_possible(spec) and spec.paused if isinstance(spec, PooledDatabase) else None


def is_possible(database: PooledDatabase) -> bool:
    """Whether a pause can hold anything back: in session mode every client keeps its server connection for as
    long as it stays connected."""
    return database.pooler.mode != "session"


def recorded(resource: Resource) -> Pause | None:
    """The pause in the status; None without one."""
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
    """The pause as the status records it."""
    return {
        "since": pause.since.strftime(_TIME),
        "until": pause.until.strftime(_TIME),
        **({"resumedAt": pause.resumed_at.strftime(_TIME)} if pause.resumed_at else {}),
        **({"timedOut": True} if pause.timed_out else {}),
    }


def advance(resource: Resource, resumed: bool, now: datetime) -> Pause | None:
    """The pause to record in the status next; `resumed`: every pooler showed that it holds no client back."""
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
    """PgBouncer's settings, with those limits raised that would cut off waiting clients before `seconds`."""
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
