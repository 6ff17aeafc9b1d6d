"""The status of a PooledDatabase: conditions that need no module of their own, and Events of transitions.

Conditions follow metav1.Condition. Status changes with transitions only; numbers that change fast stay out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from poolkeeper import names
from poolkeeper.kube.events import Event
from poolkeeper.observed.poolers import Pod
from poolkeeper.observed.refs import Ref
from poolkeeper.observed.upstream import Whereabouts
from poolkeeper.pgbouncer.configuration import Configuration
from poolkeeper.plan import addresses, pause, pause_orders, renewal
from poolkeeper.plan.reloads import shown_as
from poolkeeper.plan.status import budget, client_slots, copies, image
from poolkeeper.plan.status import data_path as data_path_status
from poolkeeper.plan.status.condition import FALSE, TRUE, UNKNOWN, Condition, last_known
from poolkeeper.plan.status.image import pooler_image
from poolkeeper.plan.status.keepers import keepers_current
from poolkeeper.plan.wanted import Wanted, allotted
from poolkeeper.plan.world import Resource, World
from poolkeeper.spec.parse import PooledDatabase, SpecError

FAILING_CONSUMERS_LISTED = 10
_MESSAGE_LIMIT = 1024
_FAULTS_FROM_THE_START = (
    "SpecValid",
    "UpstreamReachable",
    "ConsumersSynced",
    budget.KIND,
    image.KIND,
    client_slots.KIND,
    data_path_status.KIND,
)
_FALSE_AS_PLANNED = frozenset({pause_orders.PAUSING, pause_orders.RESUMING, pause_orders.RESUMED})
"""Reasons whose Event is no warning."""


def of(
    database: PooledDatabase, wanted: Wanted, world: World, now: datetime
) -> tuple[dict[str, Any] | None, tuple[Event, ...]]:
    """The status to write (None if it is already written) and the Events of its transitions."""
    resource = world.resource
    assert resource is not None
    data_path = (
        spec_valid(None),
        upstream_reachable(wanted, world),
        pooler_available(database, world),
        config_applied(wanted, world),
    )
    pausing = pause.advance(resource, pause_orders.resumed(world), now)
    paused = pause_orders.condition(wanted, world, pausing, now)
    synced = copies.with_copies(consumers_synced(wanted, world), world)
    conditions = (
        ready(data_path),
        *data_path,
        synced,
        keepers_current(wanted, world),
        budget.within_budget(database, wanted.consumers, world),
        pooler_image(database, wanted, world),
        client_slots.client_slots_condition(wanted, world),
        data_path_status.data_path_condition(wanted, world),
        *([paused] if paused is not None else []),
    )
    pods = [pod for pod in world.pods if not pod.terminating]
    config = wanted.configuration
    own = [item for item in wanted.consumers.granted if item.namespace == database.namespace]
    failing = _failing_consumers(wanted, world)
    total = len(wanted.consumers.granted) + len(wanted.consumers.refused)
    body = {
        "replicas": len(pods),
        "readyReplicas": sum(pod.ready for pod in pods),
        "selector": ",".join(f"{key}={value}" for key, value in names.pod_selector(database.uid).items()),
        "endpoints": {"host": wanted.host, "port": names.POOLER_PORT},
        "consumers": {
            "total": total,
            "synced": total - len(failing),
            "failing": failing[:FAILING_CONSUMERS_LISTED],
        },
        **({"appliedConfig": config.generation} if config and conditions[4].status == TRUE else {}),
        **({"binding": {"name": names.binding_name(own[0].secret_name)}} if own else {}),
        **({pause.FIELD: pause.to_record(pausing)} if pausing is not None else {}),
        **budget.record(world),
    }
    where, moved = _upstream(resource, wanted, world, now)
    renewed, renewals = renewal.report(wanted, world, now)
    written, events = _written(resource, {**body, **where, **renewed}, conditions, now)
    copied = copies.found(synced, world) if written is not None else ()
    return written, (*events, *copied, *moved, *renewals)


def of_invalid_spec(
    resource: Resource, error: SpecError, wanted: Wanted, world: World, now: datetime
) -> tuple[dict[str, Any] | None, tuple[Event, ...]]:
    """The status while the spec is invalid: what runs is left as it is, and so is what it reported."""
    invalid = spec_valid(error)
    where, moved = _upstream(resource, wanted, world, now)
    renewed, renewals = renewal.report(wanted, world, now)
    own = ("conditions", "observedGeneration")
    kept = {key: value for key, value in resource.status.items() if key not in own} | where | renewed
    pods = [pod for pod in world.pods if not pod.terminating]
    counts = {"replicas": len(pods), "readyReplicas": sum(pod.ready for pod in pods)}
    pausing = pause.advance(resource, pause_orders.resumed(world), now)
    if pausing is not None:
        kept = {**kept, pause.FIELD: pause.to_record(pausing)}
    others = tuple(
        Condition(item["type"], item["status"], item["reason"], item["message"])
        for item in resource.status.get("conditions", ())
        if item["type"] not in ("Ready", "SpecValid")
    )
    written, events = _written(resource, {**kept, **counts}, (ready((invalid,)), invalid, *others), now)
    return written, (*events, *moved, *renewals)


def spec_valid(error: SpecError | None) -> Condition:
    """Whether the spec is valid beyond what the CRD's schema can check."""
    if error is None:
        return Condition("SpecValid", TRUE, "Valid", "the spec is valid")
    return Condition("SpecValid", FALSE, "Invalid", str(error))


def upstream_reachable(wanted: Wanted, world: World) -> Condition:
    """Whether a login to the upstream works; it is tried, not assumed."""
    kind = "UpstreamReachable"
    kept = "; the last credentials that worked stay in use" if world.logins.upstream is not None else ""
    if wanted.fault is not None:
        return Condition(kind, FALSE, wanted.fault.reason, f"{wanted.fault.message}{kept}")
    probe = world.probe
    if probe is None or probe.target != wanted.resolved:
        return last_known(world, kind) or Condition(
            kind, UNKNOWN, "NotProbed", "no login to the upstream has been tried yet"
        )
    if probe.reachable:
        return Condition(kind, TRUE, "Reachable", f"{probe.message}{_unused(wanted.unused_parameters)}")
    in_use = wanted.target != wanted.resolved
    return Condition(kind, FALSE, probe.reason, f"{probe.message}{kept if in_use else ''}")


def _unused(parameters: tuple[str, ...]) -> str:
    if not parameters:
        return ""
    return f"; without effect in the URL: {', '.join(parameters)} (set in the app what tunes a client)"


def pooler_available(database: PooledDatabase, world: World) -> Condition:
    """Whether pooler pods serve, and whether something keeps their rollout from completing."""
    kind = "PoolerAvailable"
    replicas = database.pooler.replicas
    pods = [pod for pod in world.pods if not pod.terminating]
    ready_pods = sum(pod.ready for pod in pods)
    counts = f"{ready_pods} of {replicas} pooler pods are ready"
    refused = _refusal(
        world, "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler"
    )
    if refused is not None:
        return Condition(kind, FALSE, *refused)
    if replicas == 0:
        return Condition(
            kind, FALSE, "ScaledToZero", "spec.pooler.replicas is 0: no pooler runs; scale it up to serve"
        )
    if world.rollout is not None and world.rollout.failure:
        return Condition(kind, FALSE, "PodsRefused", f"{counts}; {world.rollout.failure}")
    for pod in sorted(pods, key=lambda item: item.name):
        if pod.problem:
            reason = pod.problem.partition(":")[0]
            return Condition(kind, FALSE, reason, f"{counts}; pod {pod.name}: {pod.problem}")
    if ready_pods == 0:
        return Condition(kind, FALSE, "NoPodReady", f"{counts}; see the pods' Events if this lasts")
    if ready_pods < replicas:
        return Condition(kind, TRUE, "Progressing", counts)
    return Condition(kind, TRUE, "Available", f"{replicas} pooler pods are ready")


def config_applied(wanted: Wanted, world: World) -> Condition:
    """Whether the console of every ready pod shows the configuration that the spec asks for."""
    kind = "ConfigApplied"
    refused = _refusal(world, "Secret", role_names=_own_secret_names(world))
    if refused is not None:
        return Condition(kind, FALSE, *refused)
    config = wanted.configuration
    if config is None:
        return Condition(
            kind,
            UNKNOWN,
            "NoUpstream",
            "no configuration yet: the upstream's Secret has to be complete first",
        )
    pods = [pod for pod in world.pods if pod.ready and not pod.terminating]
    if not pods:
        return Condition(kind, UNKNOWN, "NoPodReady", "no pooler pod is ready to show its configuration")
    behind = [pod for pod in sorted(pods, key=lambda item: item.name) if not _shows(pod, config, world)]
    if not behind and wanted.withheld:
        problem = "; ".join(wanted.withheld[name] for name in sorted(wanted.withheld))
        return Condition(kind, FALSE, "ParameterWithheld", f"not in the poolers' configuration: {problem}")
    if not behind:
        return Condition(kind, TRUE, "Applied", "every ready pod's console shows the configuration")
    shown = world.shown.get(behind[0].uid)
    problem = shown.problem if shown is not None and shown.problem else "not looked at yet"
    return Condition(
        kind, FALSE, "NotShown", f"{len(behind)} of {len(pods)} ready pods lag; {behind[0].name}: {problem}"
    )


def consumers_synced(wanted: Wanted, world: World) -> Condition:
    """Whether every consumer that is named, or selected and willing, has its Secrets."""
    kind = "ConsumersSynced"
    failing = _failing_consumers(wanted, world)
    total = len(wanted.consumers.granted) + len(wanted.consumers.refused)
    if wanted.configuration is None:
        return Condition(kind, UNKNOWN, "NoUpstream", "Secrets follow once the upstream's Secret is complete")
    if failing:
        first = failing[0]
        where = f"{first['namespace']}/{first['secretName']}"
        return Condition(
            kind,
            FALSE,
            first["reason"],
            f"{len(failing)} of {total} consumers lack their Secrets; {where}: {first['message']}",
        )
    return Condition(kind, TRUE, "Synced", f"{total} consumers have their Secrets")


def ready(data_path: Sequence[Condition]) -> Condition:
    """The summary of the data path: the first condition that is not true, in the order of causes."""
    for condition in data_path:
        if condition.status != TRUE:
            return Condition("Ready", FALSE, condition.reason, condition.message)
    return Condition("Ready", TRUE, "Ready", "the poolers serve")


def _shows(pod: Pod, config: Configuration, world: World) -> bool:
    shown = world.shown.get(pod.uid)
    return shown is not None and (shown.generation, shown.restarts, shown.problem) == (
        shown_as(config, allotted(pod, world)),
        pod.restarts,
        "",
    )


def _own_secret_names(world: World) -> frozenset[str]:
    assert world.resource is not None
    spec = world.resource.spec
    assert isinstance(spec, PooledDatabase)
    return frozenset(
        {names.config_name(spec.name), names.logins_name(spec.name)} | spec.upstream.secret_names()
    )


def _refusal(world: World, *kinds: str, role_names: frozenset[str] | None = None) -> tuple[str, str] | None:
    assert world.resource is not None
    spec = world.resource.spec
    assert isinstance(spec, PooledDatabase)
    for ref, refusal in sorted(world.refusals.items()):
        if ref.kind not in kinds or ref.namespace != spec.namespace:
            continue
        if role_names is None or ref.name in role_names:
            return refusal.reason, refusal.message
    return None


def _failing_consumers(wanted: Wanted, world: World) -> list[dict[str, str]]:
    failing = [
        {
            "namespace": item.namespace,
            "secretName": item.secret_name,
            "reason": item.reason,
            "message": _short(item.message),
        }
        for item in wanted.consumers.refused
    ]
    for consumer in wanted.consumers.granted:
        target = wanted.target
        if target is not None and budget.left_out(consumer, target.database, world.budget):
            failing.append(budget.no_connection_left(consumer))
            continue
        for name in names.consumer_secrets(consumer.secret_name):
            refusal = world.refusals.get(Ref("Secret", consumer.namespace, name))
            if refusal is not None:
                failing.append(
                    {
                        "namespace": consumer.namespace,
                        "secretName": consumer.secret_name,
                        "reason": refusal.reason,
                        "message": _short(refusal.message),
                    }
                )
                break
    return failing


def _written(
    resource: Resource, body: Mapping[str, Any], conditions: Sequence[Condition], now: datetime
) -> tuple[dict[str, Any] | None, tuple[Event, ...]]:
    """The whole status with transition times; None if it equals the present one."""
    previous = {item["type"]: item for item in resource.status.get("conditions", ())}
    written = []
    events = []
    for condition in conditions:
        before = previous.get(condition.type)
        same = before is not None and before["status"] == condition.status
        written.append(
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": _short(condition.message),
                "observedGeneration": resource.generation,
                "lastTransitionTime": before["lastTransitionTime"]
                if same and before is not None
                else now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
        if _worth_an_event(before, condition):
            events.append(_transition(resource, before, condition))
    reported = {"observedGeneration": resource.generation, **body, "conditions": written}
    if reported == resource.status:
        return None, ()
    return reported, tuple(events)


def _worth_an_event(before: Mapping[str, Any] | None, condition: Condition) -> bool:
    """Whether it is a transition to a known state or, if new, a fault that the user has to fix."""
    if condition.status == UNKNOWN:
        return False
    if before is None:
        return condition.status == FALSE and condition.type in _FAULTS_FROM_THE_START
    return (before["status"], before["reason"]) != (condition.status, condition.reason)


def consumer_removed(ref: Ref, uid: str) -> Event:
    """The Event of a consumer that lost its Secrets: it left the spec, or consent was withdrawn."""
    return Event(
        name=hashlib.sha256(f"removed/{uid}".encode()).hexdigest()[:16],
        type="Normal",
        reason="ConsumerRemoved",
        message=f"the Secrets of consumer {ref.namespace}/{ref.name} are removed, and its login ends",
    )


def pod_retired(pod: Pod) -> Event:
    """The Event of a pod that was evicted since no statement got through it."""
    return Event(
        name=hashlib.sha256(f"retired/{pod.uid}".encode()).hexdigest()[:16],
        type="Warning",
        reason="PoolerRetired",
        message=f"pod {pod.name} answered no probe while another pod did: it is evicted and drained, and"
        " another takes its place",
    )


def _upstream(
    resource: Resource, wanted: Wanted, world: World, now: datetime
) -> tuple[dict[str, Any], tuple[Event, ...]]:
    """The place of the upstream that the poolers were led to, and the Event that they left another."""
    record = addresses.to_record(wanted, world)
    if record is None:
        return {}, ()
    before = addresses.recorded(wanted, world)
    if record == before:
        return {"upstream": resource.status["upstream"]}, ()
    body = {
        "host": record.host,
        "addresses": sorted(record.addresses),
        "endpoints": sorted(record.endpoints),
        "since": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    gone = addresses.left(before, record) if before is not None else frozenset()
    if before is None or not gone:
        return {"upstream": body}, ()
    seed = f"{resource.uid}/moved/{resource.status['upstream'].get('since')}/{sorted(gone)}"
    return {"upstream": body}, (
        Event(
            name=hashlib.sha256(seed.encode()).hexdigest()[:16],
            type="Normal",
            reason="UpstreamMoved",
            message=_short(_moved_message(before, record, world)),
        ),
    )


def _moved_message(before: Whereabouts, record: Whereabouts, world: World) -> str:
    changes = [
        f"{what} {addresses.listed(old)} became {addresses.listed(new)}"
        for what, old, new in (
            ("address", before.addresses, record.addresses),
            ("endpoint", before.endpoints, record.endpoints),
        )
        if old - new
    ]
    moved = [item for item in world.moved.values() if item.whereabouts.host == record.host]
    took = f" within {max(item.seconds for item in moved):.1f} s" if moved else ""
    left = sum(item.left for item in moved)
    remain = (
        f"; {left} connections still lead elsewhere: check what the poolers' own DNS answers" if left else ""
    )
    return f"the upstream {record.host} moved: {', '.join(changes)}; the poolers followed{took}{remain}"


def _transition(resource: Resource, before: Mapping[str, Any] | None, condition: Condition) -> Event:
    """The Event of a transition. Its name holds the state before, which only the status write that follows
    replaces: after a crash between the two, the same Event is posted again, and already exists."""
    seed = [resource.uid, condition.type, condition.status, condition.reason]
    seed += [before["lastTransitionTime"], before["reason"]] if before else []
    return Event(
        name=hashlib.sha256("/".join(seed).encode()).hexdigest()[:16],
        type="Warning" if condition.status == FALSE and condition.reason not in _FALSE_AS_PLANNED else "Normal",
        reason=condition.type if condition.status == TRUE else condition.reason,
        message=_short(f"{condition.type} is {condition.status}: {condition.message}"),
    )


def _short(text: str) -> str:
    """The text, bounded since the API server bounds it; a refusal quoted from elsewhere may be long."""
    return text if len(text) <= _MESSAGE_LIMIT else f"{text[: _MESSAGE_LIMIT - 1]}…"
