"""Reads the workloads behind app pods and restarts one, as keeper_rollout.py decides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace

from poolkeeper import sightings
from poolkeeper.cluster import Cluster, Conflict, Refused
from poolkeeper.keeper_rollout import Restart
from poolkeeper.store import Store
from poolkeeper.workloads import workload
from poolkeeper.world import ApiRefusal, Key, Owner, Ref, Workload

log = logging.getLogger(__name__)

_AT_ONCE = 16


async def look(cluster: Cluster, store: Store, key: Key, owners: Iterable[Owner]) -> None:
    """Read what stands behind these controllers of pods, until the API server refuses it."""
    left = list(owners)
    while left:
        now, left = left[:_AT_ONCE], left[_AT_ONCE:]
        found = await asyncio.gather(*(_behind(cluster, owner) for owner in now))
        for owner, seen in zip(now, found, strict=True):
            store.work(key, owner, seen)
        if any(isinstance(seen, ApiRefusal) for seen in found):
            return


async def restart(cluster: Cluster, store: Store, key: Key, steps: Restart) -> bool:
    """Restart one workload; False if it is not what it was when that was decided."""
    known = steps.workload
    try:
        answer = await cluster.annotate_template(known.ref, known.uid, known.version, steps.annotations)
    except Conflict:
        store.work(key, steps.owner, await _behind(cluster, steps.owner))
        return False
    except Refused as error:
        held = f"the API server refuses to change it ({error.message})"
        store.work(key, steps.owner, replace(known, held=held))
        return False
    log.info("%s/%s: restarts %s for its keepers", key.namespace, key.name, known.ref)
    store.work(key, steps.owner, workload({**answer, "kind": known.ref.kind}))
    return True


async def _behind(cluster: Cluster, owner: Owner) -> Workload | ApiRefusal | None:
    try:
        found = await cluster.get(Ref(owner.kind, owner.namespace, owner.name))
        if found is None or found["metadata"]["uid"] != owner.uid:
            return None
        if owner.kind == "ReplicaSet":
            above = sightings.deployment_of(found)
            return None if above is None else await _behind(cluster, above)
    except Refused as error:
        return ApiRefusal(error.reason, error.message)
    return workload({**found, "kind": owner.kind})
