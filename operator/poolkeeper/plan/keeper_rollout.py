"""The workload to restart next, so that its pods get the keepers they should have. Pure.

Workloads of a PooledDatabase are restarted one at a time, in the order of their names, and only once for the
same keeper: an annotation of the workload's pod template records for which keeper it was last restarted.
Everything follows from what the API server shows, so an operator that starts in the middle continues where the
last one ended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from poolkeeper import names
from poolkeeper.consumers.consent import Consumer
from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.observed.apps import AppPod, Workload
from poolkeeper.observed.refs import ApiRefusal, Owner, Ref
from poolkeeper.plan.wanted import Wanted
from poolkeeper.plan.world import World
from poolkeeper.spec.types import WORKLOAD

_NAMED = 3


@dataclass(frozen=True)
class Restart:
    """A workload whose pod template is to get these annotations."""

    owner: Owner
    workload: Workload
    annotations: Mapping[str, str]


@dataclass(frozen=True)
class Restarts:
    """The next step, and its report as (reason, message)."""

    look: tuple[Owner, ...] = ()
    """Pods' controllers, whose workloads have to be read before anything can be decided."""
    next: Restart | None = None
    report: tuple[str, str] | None = None
    waiting: bool = False
    """Something is under way that no event reports."""


def annotation(secret_name: str) -> str:
    """The key, in a pod template, that records for which keeper of this consumer's Secret it was restarted."""
    return names.RESTARTED_FOR_ANNOTATION.format(names.fit(secret_name, names.RESTARTED_FOR_LIMIT))


def value(template: KeeperTemplate) -> str:
    """The annotation's value: the same for keepers that differ in nothing that a restart is for."""
    text = json.dumps([template.image, template.auth])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def restarts(wanted: Wanted, world: World) -> Restarts:
    """The next step of the rollout that spec.keeper.rollout asks for; nothing if all pods are right."""
    if wanted.keeper_rollout != WORKLOAD or not wanted.templates:
        return Restarts()
    behind = [pod for pod in world.app_pods if not pod.terminating and _behind(pod, wanted, world)]
    if not behind:
        return Restarts()
    current = {owner: seen for owner, seen in world.workloads.items() if owner not in world.workloads_due}
    refused = next((seen for seen in current.values() if isinstance(seen, ApiRefusal)), None)
    if refused is not None:
        return Restarts(report=("RestartForbidden", _forbidden(refused)), waiting=True)
    # Also of pods that are current: their workload may be the one that is being restarted.
    owners = {pod.owner for pod in world.app_pods if pod.owner is not None and _ours(pod, wanted)}
    if due := sorted((owners | world.workloads.keys()) - current.keys()):
        return Restarts(look=tuple(due), waiting=True)
    return _decide(_Sorted.of(behind, wanted, world))


@dataclass(frozen=True)
class _Sorted:
    """Workloads by what happens to them next, each list in order."""

    going_on: list[Workload]
    to_do: list[Restart]
    held: list[Workload]
    done: list[Workload]
    """Restarted for this very keeper, but still behind."""
    alone: list[AppPod]
    """Pods of no workload that asks for the keeper: bare pods, and those of Jobs."""

    @classmethod
    def of(cls, behind: Iterable[AppPod], wanted: Wanted, world: World) -> _Sorted:
        # Several ReplicaSets belong to one Deployment: its last reading counts.
        read = (item for item in world.workloads.values() if isinstance(item, Workload))
        seen = {item.ref: item for item in sorted(read, key=lambda item: (int(item.version), item.held))}
        marks = {ref: _marks(item, wanted) for ref, item in seen.items()}
        marked = {ref for ref, item in seen.items() if marks[ref] and marks[ref].items() <= item.marks.items()}
        found: dict[Ref, Restart] = {}
        alone = []
        for pod in behind:
            workload = world.workloads.get(pod.owner) if pod.owner is not None else None
            if pod.owner is None or not isinstance(workload, Workload) or not marks[workload.ref]:
                alone.append(pod)
            else:
                found[workload.ref] = Restart(pod.owner, seen[workload.ref], marks[workload.ref])
        in_order = sorted(found)
        return cls(
            going_on=[seen[ref] for ref in sorted(marked) if not seen[ref].complete and not seen[ref].held],
            to_do=[found[ref] for ref in in_order if ref not in marked and not seen[ref].held],
            held=[seen[ref] for ref in in_order if seen[ref].held],
            done=[seen[ref] for ref in in_order if ref in marked and seen[ref].complete and not seen[ref].held],
            alone=alone,
        )


def _marks(workload: Workload, wanted: Wanted) -> dict[str, str]:
    """The marks that its template has to have: for the databases of this resource that it asks for itself."""
    return {
        annotation(name): value(template)
        for name in sorted(workload.asks)
        if (template := wanted.templates.get(Consumer(workload.ref.namespace, name))) is not None
    }


def _decide(found: _Sorted) -> Restarts:
    following = found.to_do if found.going_on else found.to_do[1:]
    texts = []
    if found.going_on:
        texts.append(f"{_listed(found.going_on)} is being restarted for its keepers{_stalled(found.going_on)}")
    elif found.to_do:
        texts.append(f"{found.to_do[0].workload.ref} is restarted next for its keepers")
    if following:
        texts.append(f"{len(following)} more {'waits' if len(following) == 1 else 'wait'} for it")
    for workload in found.held[:_NAMED]:
        texts.append(f"{workload.ref} is left alone, since {workload.held}; restart its pods yourself")
    for workload in found.done[:_NAMED]:
        texts.append(
            f"{workload.ref} was restarted for this and has pods that are behind all the same; see why they "
            "got no such keeper, and restart it yourself"
        )
    if found.alone:
        pod = min(found.alone, key=lambda pod: (pod.namespace, pod.name))
        is_left = "1 pod is" if len(found.alone) == 1 else f"{len(found.alone)} pods are"
        texts.append(
            f"{is_left} left alone, of no Deployment, StatefulSet or DaemonSet whose template has the label "
            f"{names.DATABASE_LABEL}; delete pod {pod.namespace}/{pod.name} when it suits"
        )
    waiting = bool(found.going_on or found.to_do)
    return Restarts(
        next=found.to_do[0] if found.to_do and not found.going_on else None,
        report=("Restarting" if waiting else "LeftAlone", "; ".join(texts)) if texts else None,
        waiting=waiting,
    )


def _behind(pod: AppPod, wanted: Wanted, world: World) -> bool:
    """Whether a restart would give the pod another keeper: its Secret already describes the new ones."""
    lacking = [
        item.secret_name
        for item in pod.keepers
        if (template := wanted.templates.get(Consumer(pod.namespace, item.secret_name))) is not None
        and (item.image, item.auth) != (template.image, template.auth)
    ]
    return any(_written(pod, name, wanted, world) for name in (*pod.lacks, *lacking))


def _written(pod: AppPod, secret_name: str, wanted: Wanted, world: World) -> bool:
    ref = Ref("Secret", pod.namespace, names.keeper_name(secret_name))
    known = Consumer(pod.namespace, secret_name) in wanted.keepers
    return known and ref in world.children and ref not in world.refusals


def _ours(pod: AppPod, wanted: Wanted) -> bool:
    asked = (*pod.lacks, *(keeper.secret_name for keeper in pod.keepers))
    return any(Consumer(pod.namespace, name) in wanted.keepers for name in asked)


def _listed(workloads: list[Workload]) -> str:
    return ", ".join(str(workload.ref) for workload in workloads[:_NAMED])


def _stalled(workloads: list[Workload]) -> str:
    return next((f" and makes no progress ({item.stalled})" for item in workloads if item.stalled), "")


def _forbidden(refusal: ApiRefusal) -> str:
    return (
        "spec.keeper.rollout is Workload, and the operator may not read workloads; install the chart with "
        f"keeper.restartWorkloads=true, or set rollout to Manual and restart them yourself ({refusal.message})"
    )
