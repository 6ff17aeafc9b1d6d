"""Faults of a pooler's data path: clients that wait despite free connections, and failed probes. Pure.

Each is kept from poll to poll, and reported once it has lasted. Times are seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from poolkeeper.budget.assessment import Look
from poolkeeper.budget.request import ClientBound
from poolkeeper.observed.data_path import Wedge

PROBE, CLIENTS_WAIT, STUCK = KINDS = ("ProbeUnanswered", "ClientsWait", "ServerConnectionStuck")
"""Kinds of Wedge, and reasons of the condition, the gravest first."""

WAIT_SECONDS = 3.0
"""How long a client waits until it counts as waiting in vain."""
LASTING_SECONDS = 6.0
"""How long clients wait in vain until it is reported."""
UNANSWERED_SECONDS = 5.0
"""How long probes fail until it is reported."""
ANSWERED_SECONDS = 15.0
"""How long an answered probe shows that a pooler serves."""
RETIRE_SECONDS = 35.0
"""How long probes fail until the pod is retired."""
CALM_SECONDS = 60.0
"""How long a wedge is still reported after it ended."""


_LOGGED_IN = ("sv_active", "sv_active_cancel", "sv_being_canceled", "sv_idle", "sv_used", "sv_tested")


@dataclass(frozen=True)
class Wait:
    """Clients of an entry that wait in vain: since when, how many connections the entry has, and how many of
    those are idle."""

    since: float
    connections: int
    idle: int


Waits = Mapping[tuple[str, str], Wait]
"""By pod UID and entry."""


def waits(before: Waits, looks: Mapping[str, Look], now: float) -> dict[tuple[str, str], Wait]:
    """The waits after one more poll of the consoles, taken while the server could be measured. A pool that
    still grows is no wedge: PgBouncer opens one connection at a time."""
    found = {}
    for uid, look in looks.items():
        for row in look.pools:
            entry = row["database"]
            connections = sum(int(row[column]) for column in _LOGGED_IN)
            idle = int(row["sv_idle"])
            cap = look.reading.caps.get(entry, 0)
            vain = int(row["cl_waiting"]) > 0 and int(row["maxwait"]) >= WAIT_SECONDS
            if not vain or entry in look.paused or not (idle or connections < cap):
                continue
            known = before.get((uid, entry))
            since = now if known is None or connections > known.connections else known.since
            found[uid, entry] = Wait(since, connections, idle)
    return found


@dataclass(frozen=True)
class Probed:
    """The outcome of the probes through one pod: since when they have failed and at which entry, with the last
    one's words, and when one was last answered. `silent`: all of those that failed lacked an answer."""

    entry: str = ""
    failing: float | None = None
    said: str = ""
    silent: bool = True
    answered: float | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of an entry's probe that began at `begun`. `said`: what went wrong, empty if it was answered;
    None: what went wrong proves nothing about the pooler."""

    entry: str
    begun: float
    said: str | None
    silent: bool = False


def probed(before: Probed, outcome: Outcome, now: float) -> Probed:
    """The state after one more probe."""
    if outcome.said is None:
        return replace(before, failing=None)
    if not outcome.said:
        return Probed(answered=now)
    again = before.failing is not None
    return replace(
        before,
        entry=outcome.entry,
        failing=before.failing if again else outcome.begun,
        said=outcome.said,
        silent=outcome.silent and (before.silent or not again),
    )


def excusable(look: Look, entry: str, bounds: Iterable[ClientBound]) -> bool:
    """Whether a probe of the entry may fail although the pooler is healthy: the entry is paused or closed, all
    of its connections are active, or the probe would take a client's slot."""
    if entry in look.paused or entry in look.reading.closed:
        return True
    cap = look.reading.caps.get(entry, 0)
    active = sum(int(row["sv_active"]) for row in look.pools if row["database"] == entry)
    return active >= cap or any(
        sum(look.clients.get(name, 0) for name in bound.entries) >= bound.bound - 1
        for bound in bounds
        if entry in bound.entries
    )


def to_probe(
    look: Look, entries: Iterable[str], bounds: Iterable[ClientBound], last: str, probed: Probed
) -> str:
    """The entry to probe next, empty for none. An entry that failed is probed again; otherwise they take turns.
    Entries without clients are left alone, so that no probe opens connections that no client asked for."""
    rows = tuple(bounds)
    used = sorted(entry for entry in entries if look.clients.get(entry, 0) and not excusable(look, entry, rows))
    if probed.failing is not None and probed.entry in used:
        return probed.entry
    return next((entry for entry in used if entry > last), used[0] if used else "")


def retire(probes: Mapping[str, Probed], now: float) -> str:
    """The UID of the pod to retire, empty for none: it alone has been silent for RETIRE_SECONDS, and probes of
    another pod are answered, so neither the server nor the way to it is at fault."""
    silent = [
        uid
        for uid, item in sorted(probes.items())
        if item.failing is not None and item.silent and now - item.failing >= RETIRE_SECONDS
    ]
    serving = any(
        item.failing is None and item.answered is not None and now - item.answered <= ANSWERED_SECONDS
        for item in probes.values()
    )
    return silent[0] if len(silent) == 1 and serving else ""


@dataclass(frozen=True)
class Reported:
    """A wedge in the words of its beginning, and when it was last present."""

    wedge: Wedge
    at: float


Reports = Mapping[tuple[str, str, str], Reported]
"""By kind, pod and consumer."""


def report(before: Reports, current: Iterable[Wedge], now: float) -> dict[tuple[str, str, str], Reported]:
    """The reports after one more poll, with the present wedges and the connections ended since the last poll. A
    wedge that is over is reported for CALM_SECONDS more; numbers of connections add up until then."""
    after = {key: item for key, item in before.items() if now - item.at < CALM_SECONDS}
    for wedge in current:
        key = (wedge.kind, wedge.pod, wedge.consumer)
        known = after[key].wedge if key in after else replace(wedge, number=0)
        after[key] = Reported(replace(known, number=known.number + wedge.number), now)
    return after


def wedges(reports: Reports) -> tuple[Wedge, ...]:
    """The reported wedges, the gravest first."""
    return tuple(reports[key].wedge for key in sorted(reports, key=lambda key: (KINDS.index(key[0]), *key[1:])))


def current(
    waits: Waits,
    probes: Mapping[str, Probed],
    pods: Mapping[str, str],
    bounds: Iterable[ClientBound],
    now: float,
) -> Iterator[Wedge]:
    """Waits and probes that have lasted; `pods` are names by UID."""
    consumers = {entry: bound.consumer for bound in bounds for entry in bound.entries}
    for (uid, entry), wait in waits.items():
        if now - wait.since >= LASTING_SECONDS and uid in pods and entry in consumers:
            room = f"{wait.idle} of its server connections are idle" if wait.idle else "its pool has room"
            yield Wedge(CLIENTS_WAIT, pods[uid], consumers[entry], 0, room)
    for uid, item in probes.items():
        lasting = item.failing is not None and now - item.failing >= UNANSWERED_SECONDS
        if lasting and uid in pods:
            yield Wedge(PROBE, pods[uid], consumers.get(item.entry, ""), 0, item.said)
