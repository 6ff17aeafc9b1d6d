"""Reads the workloads behind app pods and restarts one, as plan/keeper_rollout.py decides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from poolkeeper.kube import events
from poolkeeper.kube.client import RESOURCES, Cluster, Conflict, Refused
from poolkeeper.kube.events import Event
from poolkeeper.observed.apps import Workload
from poolkeeper.observed.refs import ApiRefusal, Key, Owner, Ref
from poolkeeper.plan.keeper_rollout import Restart
from poolkeeper.store import reading
from poolkeeper.store.store import Store
from poolkeeper.store.workload_reading import workload

log = logging.getLogger(__name__)

_AT_ONCE = 16


async def look(cluster: Cluster, store: Store, key: Key, owners: Iterable[Owner]) -> None:
    """Read the workloads behind these controllers of pods, until the API server refuses one."""
    left = list(owners)
    while left:
        now, left = left[:_AT_ONCE], left[_AT_ONCE:]
        found = await asyncio.gather(*(_behind(cluster, owner) for owner in now))
        for owner, seen in zip(now, found, strict=True):
            store.workloads.put(key, owner, seen)
        if any(isinstance(seen, ApiRefusal) for seen in found):
            return


async def restart(cluster: Cluster, store: Store, key: Key, steps: Restart) -> bool:
    """Restart one workload; False if it has changed since that was decided, or the API server refuses."""
    known = steps.workload
    try:
        answer = await cluster.annotate_template(known.ref, known.uid, known.version, steps.annotations)
    except Conflict:
        store.workloads.put(key, steps.owner, await _behind(cluster, steps.owner))
        return False
    except Refused as error:
        held = f"the API server refuses to change it ({error.message})"
        store.workloads.put(key, steps.owner, replace(known, held=held))
        return False
    log.info("%s/%s: restarts %s for its keepers", key.namespace, key.name, known.ref)
    store.workloads.put(key, steps.owner, workload({**answer, "kind": known.ref.kind}))
    await _tell(cluster, key, steps)
    return True


async def _tell(cluster: Cluster, key: Key, steps: Restart) -> None:
    """Post an Event on the workload, for its owners. Its name follows from what the restart is for."""
    ref = steps.workload.ref
    about = {
        "apiVersion": RESOURCES[ref.kind].api_version,
        "kind": ref.kind,
        "namespace": ref.namespace,
        "name": ref.name,
        "uid": steps.workload.uid,
    }
    text = f"its pods lack the keeper that PooledDatabase {key.namespace}/{key.name} has for new ones"
    event = Event(f"keeper-{min(steps.annotations.values())}", "Normal", "RestartedForKeeper", text)
    try:
        await cluster.post(events.body(event, about, datetime.now(UTC)))
    except Conflict:
        return  # the workload was restarted for this image before
    except Refused as error:
        log.warning("%s/%s: Event refused: %s", key.namespace, key.name, error.message)


async def _behind(cluster: Cluster, owner: Owner) -> Workload | ApiRefusal | None:
    try:
        found = await cluster.get(Ref(owner.kind, owner.namespace, owner.name))
        if found is None or found["metadata"]["uid"] != owner.uid:
            return None
        if owner.kind == "ReplicaSet":
            above = reading.deployment_of(found)
            return None if above is None else await _behind(cluster, above)
    except Refused as error:
        return ApiRefusal(error.reason, error.message)
    return workload({**found, "kind": owner.kind})
