"""A pause at the pooler pods: the orders for each pod, what they showed, and the condition Paused. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from poolkeeper.consumers import entries
from poolkeeper.credentials.logins import Login
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.observed.poolers import Pod
from poolkeeper.plan import pause
from poolkeeper.plan.pause import Pause
from poolkeeper.plan.reloads import serves
from poolkeeper.plan.status.condition import FALSE, TRUE, Condition
from poolkeeper.plan.wanted import Wanted
from poolkeeper.plan.world import World

KIND = "Paused"
PAUSING, TIMED_OUT, RESUMING, RESUMED = "Pausing", "TimedOut", "Resuming", "Resumed"
AT_ONCE_SECONDS = 0.05
"""How long until the next run once the status records the next step."""
ENDING_SECONDS = 7.0
"""How long before its kill a terminating pod resumes: clients that wait there would fail for certain."""


@dataclass(frozen=True)
class HeldPooler:
    """A pooler pod that takes part in a pause, and when it resumes at the latest."""

    uid: str
    name: str
    access: ConsoleAccess
    until: datetime
    leaving: bool
    """It terminates. Its process ends once no client is connected, and no operator either."""


@dataclass(frozen=True)
class Pausing:
    """The orders for the poolers of one PooledDatabase now.

    `hold`: pause them, otherwise resume them. No pooler is paused before a Pausing with `begin`: by then the
    status records the pause, and every process has the time limits for it. `logins`, by transaction entry, make
    a pooler ready for new clients beforehand.
    """

    hold: bool
    begin: bool
    poolers: tuple[HeldPooler, ...]
    logins: Mapping[str, Login] = field(default_factory=dict, repr=False)


def pausing(wanted: Wanted, world: World, now: datetime, *, begin: bool) -> Pausing | None:
    """The orders for the pause that the status records; None if it records no ongoing pause."""
    resource = world.resource
    found = pause.recorded(resource) if resource is not None else None
    if resource is None or found is None or found.resumed_at:
        return None
    if wanted.logins.console is None or wanted.logins.authorities is None:
        return None
    return Pausing(
        found.holds(pause.asked(resource), now),
        begin,
        tuple(
            HeldPooler(
                pod.uid,
                pod.name,
                wanted.console_at(pod.ip),
                _until(pod, found),
                pod.terminating,
            )
            for pod in sorted(world.pods, key=lambda pod: pod.name)
            if pod.ip
        ),
        _logins(wanted),
    )


def _until(pod: Pod, found: Pause) -> datetime:
    if not pod.terminating or pod.killed_at is None:
        return found.until
    return min(found.until, pod.killed_at - timedelta(seconds=ENDING_SECONDS))


def _logins(wanted: Wanted) -> dict[str, Login]:
    if wanted.target is None:
        return {}
    return {
        entries.entry_name(wanted.target.database, consumer): wanted.logins.consumers[
            entries.login_name(consumer)
        ]
        for consumer in wanted.consumers.granted
    }


def resumed(world: World) -> bool:
    """Whether every pooler showed, after the order to resume, that it holds no client back."""
    return not any(_may_hold(pod, world) for pod in world.pods)


def _may_hold(pod: Pod, world: World) -> bool:
    seen = world.paused.get(pod.uid)
    if not pod.ip or (seen is not None and seen.resumed):
        return False
    # A pooler that does not serve may not listen yet, or may be shutting down and no longer listen.
    return serves(pod) or (seen is not None and not seen.problem)


def requeue(world: World, now: datetime) -> float | None:
    """Seconds until the pause needs another run; None if it needs none."""
    assert world.resource is not None
    known = pause.recorded(world.resource)
    if pause.advance(world.resource, resumed(world), now) != known:
        return AT_ONCE_SECONDS
    left = known.next_change(pause.asked(world.resource), now) if known is not None else None
    return None if left is None else max(left, AT_ONCE_SECONDS)


def condition(wanted: Wanted, world: World, found: Pause | None, now: datetime) -> Condition | None:
    """The state of the pause that is asked for or recorded (`found`); None without one."""
    assert world.resource is not None
    spec, wants = world.resource.spec, pause.asked(world.resource)
    if not wants and getattr(spec, "paused", False):
        return Condition(
            KIND,
            FALSE,
            "SessionMode",
            "spec.pooler.mode is session, so every client keeps its server connection and a pause would hold "
            "no client back; set the mode to transaction, or spec.paused to false",
        )
    if found is None:
        return None
    until = found.until.strftime("%H:%M:%S UTC")
    if found.timed_out:
        return Condition(
            KIND,
            FALSE,
            TIMED_OUT,
            f"the pause has reached its limit at {until} and clients go on; set spec.paused to false and, if "
            "more time is needed, raise spec.pauseTimeoutSeconds before it is set to true again",
        )
    if found.resumed_at is not None:
        return Condition(KIND, FALSE, RESUMED, "every pooler has resumed")
    if not found.holds(wants, now):
        held = [pod for pod in world.pods if _may_hold(pod, world)]
        return Condition(KIND, FALSE, RESUMING, f"resuming; {_named(held, world)}" if held else "resuming")
    pods = [pod for pod in world.pods if serves(pod)]
    if not pods:
        return Condition(KIND, FALSE, PAUSING, f"no pooler pod is ready to be paused; given up at {until}")
    lacking = [pod for pod in pods if not _holds(pod, world)]
    if lacking:
        return Condition(
            KIND,
            FALSE,
            PAUSING,
            f"{len(pods) - len(lacking)} of {len(pods)} poolers are paused; "
            f"{_named(lacking, world, wanted)}; at {until} the pause is given up and clients go on",
        )
    return Condition(
        KIND,
        TRUE,
        "Paused",
        f"transactions wait at {len(pods)} poolers until {until} at the latest, sessions go on; "
        "set spec.paused to false to let them go on earlier",
    )


def _holds(pod: Pod, world: World) -> bool:
    seen = world.paused.get(pod.uid)
    return seen is not None and seen.held


def _named(pods: list[Pod], world: World, wanted: Wanted | None = None) -> str:
    """The state of the first of these pods, for a message."""
    pod = min(pods, key=lambda item: item.name)
    seen = world.paused.get(pod.uid)
    if seen is not None and seen.problem:
        return f"pod {pod.name}: {seen.problem}"
    if seen is not None and seen.waits_for and wanted is not None:
        return f"pod {pod.name} waits for transactions of {_consumer(seen.waits_for, wanted)} to end"
    return f"pod {pod.name} is next"


def _consumer(entry: str, wanted: Wanted) -> str:
    for consumer in wanted.consumers.granted if wanted.target is not None else ():
        assert wanted.target is not None
        if entries.entry_name(wanted.target.database, consumer) == entry:
            return f"{consumer.namespace}/{consumer.secret_name}"
    return entry
