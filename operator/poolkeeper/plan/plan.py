"""Turns observations into the next steps: plan(world) -> Plan. Pure, and idempotent.

A Plan holds the next group of steps only. The shell executes them, observes again and plans again, until a
plan is settled: so the order below is the whole protocol, and a crash between two groups is nothing special.

1. finalizer, marks on source Secrets, then logins    nothing may exist that can't be cleaned up or repaired
2. the poolers and the objects around them; unwanted objects are deleted
3. configuration shown by every pod with a reachable console; the upstream probed
4. consumers' Secrets                              a login is handed out once the running poolers know it
5. status; keepers, and poolers that leave, are handled in the background
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from poolkeeper import names
from poolkeeper.budget import allotments
from poolkeeper.budget.request import BudgetRequest
from poolkeeper.consumers import consent, entries
from poolkeeper.credentials.logins import Login
from poolkeeper.desired import secrets
from poolkeeper.kube.events import Event
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.observed.poolers import Pod
from poolkeeper.observed.refs import Key, Owner, Ref
from poolkeeper.pgbouncer.clients import KeeperConsole
from poolkeeper.plan import addresses, pause_orders
from poolkeeper.plan.addresses import Place, Reconnect
from poolkeeper.plan.keeper_rollout import Restart, restarts
from poolkeeper.plan.ownership import desired_digest
from poolkeeper.plan.pause_orders import Pausing, pausing
from poolkeeper.plan.reloads import (
    Leaving,
    Reload,
    admissible,
    keepers_behind,
    leaving,
    moving,
    poolers_behind,
    retiring,
    serves,
)
from poolkeeper.plan.renewal import Renewal, renewals
from poolkeeper.plan.status import status
from poolkeeper.plan.wanted import Wanted, want, without_spec
from poolkeeper.plan.world import Child, World
from poolkeeper.settings import Settings
from poolkeeper.spec.parse import PooledDatabase, SpecError
from poolkeeper.upstream.target import Target

Object = dict[str, Any]

RECHECK_SECONDS = 5.0
"""How often what no event reports is rechecked: a missing Secret, a refusal, a console that differs."""

WATCH_SECONDS = 2.0
"""How often a workload that is being restarted is read again."""


@dataclass(frozen=True)
class Trial:
    """A login to the upstream through a pooler pod, whose network may reach what the operator's does not."""

    access: ConsoleAccess
    login: Login
    entry: str


@dataclass(frozen=True)
class Plan:
    """The next group of steps, all of which may run concurrently. See `settled`."""

    create: tuple[Object, ...] = ()
    """Objects that do not exist as far as is known: an existing object that is not ours stays untouched."""
    apply: tuple[Object, ...] = ()
    delete: tuple[tuple[Ref, str], ...] = ()
    """With the UID as precondition."""
    finalizer: bool | None = None
    """True: add ours. False: remove it."""
    mark: tuple[str, ...] = ()
    unmark: tuple[str, ...] = ()
    tables: Object | None = None
    """The pods' tables of caps, if they don't have the present lines of the entries."""
    pod_lines: tuple[tuple[Pod, str], ...] = ()
    """Pods to get lines of configuration of their own."""
    admit: tuple[Pod, ...] = ()
    """Pods to admit: clients may connect from now on."""
    reload: tuple[Reload, ...] = ()
    keepers: tuple[Reload, ...] = ()
    """Keepers to reload. They are handled in the background: there are many, and some can't be reached."""
    leaving: tuple[Leaving, ...] = ()
    """Pooler pods to drain, also in the background."""
    moving: tuple[KeeperConsole, ...] = ()
    """The keepers that may have to leave the pods in `leaving`."""
    pausing: Pausing | None = None
    """A planned pause, also handled in the background."""
    observe: Place | None = None
    """The upstream to observe for failovers."""
    reconnect: tuple[Reconnect, ...] = ()
    """Poolers to lead to where the upstream is now, also in the background."""
    renew: tuple[Renewal, ...] = ()
    """Poolers that have to renew their server connections, also in the background."""
    look: tuple[Owner, ...] = ()
    """Controllers of app pods whose workloads have to be read."""
    retire: Pod | None = None
    """A pooler pod to evict, once all else is reported."""
    restart: Restart | None = None
    """The workload of app pods to restart. Like the keepers' reloads, the restart holds nothing else up."""
    budget: BudgetRequest | None = None
    """The PooledDatabase's order to the budget; None: what runs is left as it is."""
    probe: Target | None = None
    trial: Trial | None = None
    """The login to try if the operator itself can't reach the upstream."""
    events: tuple[Event, ...] = ()
    status: Mapping[str, Any] | None = None
    """The status to write; None if it is already right."""
    requeue: float | None = None
    """Seconds until the next run if no event causes one earlier."""

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do but report."""
        return (
            not (
                self.create
                or self.apply
                or self.delete
                or self.mark
                or self.unmark
                or self.tables
                or self.pod_lines
                or self.admit
                or self.reload
                or self.probe
            )
            and self.finalizer is None
        )


def plan(key: Key, world: World, settings: Settings, now: datetime) -> Plan:
    """The next steps for one PooledDatabase."""
    resource = world.resource
    if resource is None:
        return Plan(delete=_all_children(world))
    if resource.deleting:
        return replace(
            _teardown(world), pausing=pausing(without_spec(key, world, settings), world, now, begin=False)
        )
    if key.namespace in world.namespaces and world.namespaces[key.namespace].terminating:
        return Plan()  # nothing can be created there any more; the resource's own deletion follows
    if isinstance(resource.spec, SpecError):
        running = without_spec(key, world, settings)
        revoked = _revoked(key, world)
        if revoked:
            return _background(Plan(delete=revoked), running, world, now)
        reported, events = status.of_invalid_spec(resource, resource.spec, running, world, now)
        steps = Plan(status=reported, events=events, requeue=pause_orders.requeue(world, now))
        return _background(steps, running, world, now)
    database = resource.spec
    wanted = want(database, world, settings, now)
    for group in (_foundations, _poolers, _proofs, _consumers):
        steps = group(database, wanted, world)
        if not steps.settled:
            return _background(steps, wanted, world, now)
        if Ref("Secret", key.namespace, names.logins_name(key.name)) in world.refusals or not wanted.complete:
            # Logins that could not be stored would differ in every run: no consumer may see them. And nothing
            # may be deleted for want of a login that is only not made yet.
            break
    reported, events = status.of(database, wanted, world, now)
    behind, rollout = keepers_behind(wanted, world), restarts(wanted, world)
    recheck = WATCH_SECONDS if rollout.waiting else _requeue(wanted, world)
    settled = Plan(
        keepers=behind,
        look=rollout.look,
        restart=rollout.next,
        retire=retiring(world),
        status=reported,
        events=events,
        requeue=_sooner(recheck, pause_orders.requeue(world, now)),
    )
    return _background(settled, wanted, world, now, pause=not behind)


def _background(steps: Plan, wanted: Wanted, world: World, now: datetime, *, pause: bool = False) -> Plan:
    """Add the background work, whatever group of steps is next; `pause`: a pause may begin."""
    going = leaving(wanted, world, now)
    host = wanted.target.host if wanted.target is not None else None
    return replace(
        steps,
        leaving=going,
        moving=moving(wanted, world) if going else (),
        pausing=pausing(wanted, world, now, begin=pause),
        budget=wanted.budget,
        observe=addresses.place(host, wanted.namespace, wanted.dns) if host is not None else None,
        reconnect=addresses.reconnects(wanted, world),
        renew=renewals(wanted, world),
    )


def _foundations(database: PooledDatabase, wanted: Wanted, world: World) -> Plan:
    """Finalizer, marks and logins. The logins come last: the same write stores an upstream that was just
    proved right."""
    resource = world.resource
    assert resource is not None
    unproved = wanted.logins.upstream is None
    first = Plan(
        finalizer=None if resource.finalized else True,
        mark=tuple(
            sorted(
                name
                for name in world.sources
                if name not in world.marked and Ref("Secret", database.namespace, name) not in world.refusals
            )
        ),
        unmark=tuple(sorted(world.marked - database.upstream.secret_names())),
        probe=_to_probe(wanted, world) if unproved else None,
        trial=_trial(wanted, world) if unproved else None,
    )
    return first if not first.settled else _drift((secrets.logins(database, wanted.logins),), world)


def _poolers(database: PooledDatabase, wanted: Wanted, world: World) -> Plan:
    """The poolers, and the consumers' Secrets too if no running pooler has to learn of them first."""
    objects = wanted.poolers if poolers_behind(wanted, world) else wanted.poolers + wanted.bindings
    unwanted = _unwanted(database, wanted, world)
    removed = [
        status.consumer_removed(ref, uid)
        for ref, uid in unwanted
        if world.children[ref].role == names.ROLE_CONSUMER and _is_ours(world.children[ref], world)
    ]
    lacking = [
        (pod, wanted.pod_lines[pod.uid])
        for pod in world.pods
        if pod.uid in wanted.pod_lines and wanted.pod_lines[pod.uid] != pod.lines and not pod.terminating
    ]
    return replace(
        _drift(objects, world),
        delete=unwanted,
        tables=_tables(database, wanted, world),
        pod_lines=tuple(lacking),
        events=tuple(removed),
    )


def _tables(database: PooledDatabase, wanted: Wanted, world: World) -> Object | None:
    """The tables, if outdated. The budget decides on caps (workers/servers/loop.py), this module on lines."""
    if wanted.configuration is None or world.stored is None:
        return None
    name, lines = names.config_name(database.name), wanted.configuration.lines
    stored = world.stored
    before = world.files[Ref("Secret", database.namespace, name)]
    if allotments.current(before, stored.record, lines):
        return None
    files = allotments.files(stored.record, stored.server, lines, before)
    return allotments.body(database.namespace, name, stored, files)


def _proofs(database: PooledDatabase, wanted: Wanted, world: World) -> Plan:
    return Plan(
        admit=admissible(wanted, world),
        reload=poolers_behind(wanted, world),
        probe=_to_probe(wanted, world),
        trial=_trial(wanted, world),
    )


def _to_probe(wanted: Wanted, world: World) -> Target | None:
    """The target to log in to now: it is new or its interval is over, and no login to it is under way."""
    resolved, probe = wanted.resolved, world.probe
    if resolved is None or resolved == world.probing:
        return None
    return resolved if probe is None or probe.target != resolved or world.probe_due else None


def _consumers(database: PooledDatabase, wanted: Wanted, world: World) -> Plan:
    return _drift(wanted.bindings, world)


def _trial(wanted: Wanted, world: World) -> Trial | None:
    pod = next((pod for pod in world.pods if serves(pod)), None)
    consumer = next(iter(wanted.consumers.granted), None)
    if pod is None or consumer is None or wanted.target is None or wanted.target != wanted.resolved:
        return None
    if wanted.logins.console is None or wanted.logins.authorities is None:
        return None
    login = wanted.logins.consumers[entries.login_name(consumer)]
    return Trial(wanted.console_at(pod.ip), login, entries.entry_name(wanted.target.database, consumer))


def _drift(objects: tuple[Object, ...], world: World) -> Plan:
    create: list[Object] = []
    apply: list[Object] = []
    for obj in objects:
        ref = Ref(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])
        child = world.children.get(ref)
        if ref in world.refusals or (child is not None and not _is_ours(child, world)):
            continue
        if child is None:
            create.append(obj)
        elif desired_digest(obj) not in (child.digest, child.applied):
            apply.append(_with_uid(obj, child.uid))
    return Plan(create=tuple(create), apply=tuple(apply))


def _with_uid(obj: Object, uid: str) -> Object:
    """Add the UID as precondition: an apply must not restore the object, nor change what took its place."""
    return {**obj, "metadata": {**obj["metadata"], "uid": uid}}


def _is_ours(child: Child, world: World) -> bool:
    return world.resource is not None and child.owner_uid == world.resource.uid


def _unwanted(database: PooledDatabase, wanted: Wanted, world: World) -> tuple[tuple[Ref, str], ...]:
    """Our objects that nothing asks for. While the target is unknown, the last good state stays, except what
    consent no longer covers: that is decided without the target."""
    kept = {
        Ref(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])
        for obj in wanted.poolers + wanted.bindings
    } | {Ref("Secret", database.namespace, names.logins_name(database.name))}
    allowed = {
        (item.namespace, name)
        for item in wanted.consumers.granted
        for name in names.consumer_secrets(item.secret_name)
    }
    own = {
        (database.namespace, name)
        for name in (
            names.config_name(database.name),
            names.logins_name(database.name),
            names.pooler_name(database.name),
        )
    }
    return tuple(
        (ref, child.uid)
        for ref, child in sorted(world.children.items())
        if (ref not in kept or not _is_ours(child, world))
        and ref not in world.refusals
        and (wanted.configuration is not None or (ref.namespace, ref.name) not in allowed | own)
    )


def _revoked(key: Key, world: World) -> tuple[tuple[Ref, str], ...]:
    """Our Secrets where consent is gone: a namespace's consent counts whatever state the spec is in."""
    return tuple(
        (ref, child.uid)
        for ref, child in sorted(world.children.items())
        if ref not in world.refusals
        and ref.namespace != key.namespace
        and consent.decide(key.namespace, world.namespaces.get(ref.namespace), ref.namespace) is not None
    )


def _teardown(world: World) -> Plan:
    """Delete everything, wait until the pods have ended (their grace bounds it), then let the resource go.

    While there are pods, the connections that they hold stay stored, for other PooledDatabases to reckon with,
    and so does the access to their consoles.
    """
    stays = (names.ROLE_CONFIG, names.ROLE_LOGINS) if world.pods else ()
    deleted = tuple((ref, uid) for ref, uid in _all_children(world) if world.children[ref].role not in stays)
    if deleted or world.marked:
        return Plan(delete=deleted, unmark=tuple(sorted(world.marked)))
    if world.pods or world.children:  # deletion of a child that is left was refused
        return Plan(requeue=RECHECK_SECONDS)
    assert world.resource is not None
    return Plan(finalizer=False if world.resource.finalized else None)


def _all_children(world: World) -> tuple[tuple[Ref, str], ...]:
    return tuple((ref, child.uid) for ref, child in sorted(world.children.items()) if ref not in world.refusals)


def _requeue(wanted: Wanted, world: World) -> float | None:
    shown_wrong = any(shown.problem for shown in world.shown.values())
    if wanted.fault is not None or world.refusals or shown_wrong or not wanted.complete:
        return RECHECK_SECONDS
    return world.next_probe_seconds


def _sooner(one: float | None, other: float | None) -> float | None:
    return min((seconds for seconds in (one, other) if seconds is not None), default=None)
