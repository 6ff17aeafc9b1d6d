"""The condition PoolerImage: whether the PgBouncer that poolers and keepers run has known faults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from poolkeeper.engine import known_faults, pgbouncer_version
from poolkeeper.engine.known_faults import NEWEST_TRIED, Circumstances, Fault
from poolkeeper.engine.pgbouncer_version import Version
from poolkeeper.observed.consoles import Shown
from poolkeeper.plan.reloads import reachable, running_keepers
from poolkeeper.plan.status.condition import FALSE, TRUE, UNKNOWN, Condition, last_known
from poolkeeper.plan.wanted import Wanted
from poolkeeper.plan.world import World
from poolkeeper.spec.parse import PooledDatabase

KIND = "PoolerImage"
_POOLER, _KEEPER = "pooler", "keeper"
_FIELD = "spec.pooler.allowKnownFaults"
_KEEPERS_TLS = "verify-full"
"""The sslmode of keepers' connections to the poolers."""
_NAMED = 3
_EXPLAINED = 3
"""Maximum number of faults, the gravest, shown with effects: an old release has more than a message holds."""


@dataclass(frozen=True)
class _Process:
    """A running process. `shown` is None until its console has been polled."""

    tier: str
    pod: str
    shown: Shown | None
    circumstances: Circumstances

    @property
    def text(self) -> str:
        return self.shown.version if self.shown is not None else ""

    @property
    def version(self) -> Version | None:
        return pgbouncer_version.parse(self.text)

    @property
    def faults(self) -> tuple[Fault, ...]:
        return () if self.version is None else known_faults.applying(self.version, self.circumstances)

    def __str__(self) -> str:
        return f"{self.tier} pod {self.pod} runs {self.text}"


def pooler_image(database: PooledDatabase, wanted: Wanted, world: World) -> Condition:
    """The condition: the worst running version decides. Not part of Ready: poolers with faults still serve."""
    found = sorted(_running(wanted, world), key=lambda process: (process.tier != _POOLER, process.pod))
    first = {(process.tier, process.text): process for process in reversed(found) if process.text}
    answered = list(reversed(first.values()))  # one of many alike is enough
    if not answered:
        return Condition(KIND, UNKNOWN, "NoConsole", "no console has shown its PgBouncer's version yet")
    condition = _judged(database, answered)
    if condition.status == TRUE and any(process.shown is None for process in found):
        return last_known(world, KIND) or condition  # a process not polled yet may be worse
    return condition


def _running(wanted: Wanted, world: World) -> Iterator[_Process]:
    if wanted.configuration is None or wanted.target is None:
        return
    server = world.probe.server_version if world.probe is not None else None
    names = wanted.configuration.settings["ignore_startup_parameters"]
    ignored = frozenset(name for name in names.split(",") if name)
    for pod in world.pods:
        if reachable(pod):
            there = Circumstances(server, wanted.target.sslmode, ignored)
            yield _Process(_POOLER, pod.name, world.shown.get(pod.uid), there)
    for app, keeper, _ in running_keepers(wanted, world):
        if not app.terminating:
            there = Circumstances(server, _KEEPERS_TLS, ignored)
            yield _Process(_KEEPER, f"{app.namespace}/{app.name}", world.shown.get(app.process(keeper)), there)


def _judged(database: PooledDatabase, answered: Sequence[_Process]) -> Condition:
    allowed = frozenset(database.pooler.allowed_faults)
    faulty = {process: _refused(process, allowed, certain=True) for process in answered}
    worst = max(answered, key=lambda process: len(faulty[process]))
    if faulty[worst]:
        return Condition(KIND, FALSE, "KnownFault", _refusal(database, worst, faulty[worst]))
    for process in answered:
        if process.version is None:
            text = f"{process.tier} pod {process.pod} calls itself {process.text!r}"
            return Condition(KIND, UNKNOWN, "UnknownVersion", f"{text}, which is no version of PgBouncer")
    for process in answered:
        if refused := _refused(process, allowed, certain=False):
            names = ", ".join(fault.name for fault in refused)
            text = f"{process}; whether it has {names} depends on the server's version, which isn't known yet"
            return Condition(KIND, UNKNOWN, "ServerUnknown", text)
    accepted = {fault.name for process in answered for fault in process.faults}
    if accepted:
        worst = max(answered, key=lambda process: len(process.faults))
        listed = ", ".join(name for name in known_faults.KNOWN if name in accepted)
        return Condition(KIND, TRUE, "FaultsAllowed", f"{worst}; {_FIELD} accepts its faults {listed}")
    return Condition(KIND, TRUE, "NoKnownFault", _sound(answered))


def _refused(process: _Process, allowed: frozenset[str], *, certain: bool) -> tuple[Fault, ...]:
    """The faults that the spec does not accept: those that certainly apply, or those that may apply."""
    return tuple(
        fault
        for fault in process.faults
        if fault.name not in allowed and known_faults.uncertain(fault, process.circumstances) != certain
    )


def _refusal(database: PooledDatabase, process: _Process, faults: Sequence[Fault]) -> str:
    effects = "; ".join(f"{fault.name}: {fault.effect}" for fault in faults[:_EXPLAINED])
    if others := ", ".join(fault.name for fault in faults[_EXPLAINED:]):
        effects += f"; also {others}"
    spec, chart = ("spec.pooler.image", "pooler.image")
    own = database.pooler.image
    if process.tier == _KEEPER:
        spec, chart, own = "spec.keeper.image", "keeper.image", database.keeper.image
    shipped = f"set the chart's {chart} to the image that Poolkeeper ships"
    remedy = shipped if own is None else f"remove {spec}"
    if process.tier == _KEEPER:
        remedy += " and restart the workload"
    backported = "; a distribution may have fixed the CVEs under the same version"
    hint = backported if any(fault.backported for fault in faults) else ""
    return f"{process}, which has known faults ({effects}); {remedy}, or accept them in {_FIELD}{hint}"


def _sound(answered: Sequence[_Process]) -> str:
    texts = sorted({process.text for process in answered})
    untried = sorted({process.text for process in answered if process.version and _untried(process.version)})
    if untried:
        newest = ".".join(map(str, NEWEST_TRIED))
        return f"{_listed(untried)} is newer than {newest}, the newest that Poolkeeper has been tried with"
    return f"no known fault applies to {_listed(texts)}"


def _untried(version: Version) -> bool:
    return version.release > NEWEST_TRIED and not version.build


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_NAMED])
