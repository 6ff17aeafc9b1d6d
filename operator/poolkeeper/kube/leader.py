"""Leader election by a Lease: every replica watches, only the leader works.

The protocol is client-go's: a candidate takes over when the lease has not changed for its duration by the
candidate's own clock, and every write carries the resource version that it is based on. (The official client's
own lock, kubernetes.aio 37.0, can't create its Lease and sets no limit on its requests.)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

from poolkeeper.kube.client import Cluster, ClusterError, Conflict
from poolkeeper.observed.refs import Ref
from poolkeeper.settings import Settings

log = logging.getLogger(__name__)

LEASE_SECONDS = 8
"""How long a lease lasts. A killed leader is replaced within this and one retry."""
RENEW_SECONDS = 5.5
"""How long a leader continues without renewal; what stops its work has the rest of LEASE_SECONDS."""
RETRY_SECONDS = 1.0
_REQUEST_SECONDS = 2.0
_FIRST_SECOND = 1_767_225_600
"""The first second of 2026: the API server keeps the count in 32 bits."""


class LostLease(Exception):
    """The lease could not be renewed in time: another replica may lead, so this process has to end."""


class Election:
    """One candidate for one lease."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._identity = settings.identity
        self.ref = Ref("Lease", settings.namespace, settings.lease)
        self._seen: tuple[str, float] = ("", 0.0)
        """The resource version last seen, and when it was first seen, on the monotonic clock."""
        self._leads = False
        self.renewed = 0.0
        """When the last renewal that succeeded was sent, on the monotonic clock."""
        self.term = 0
        """How often the lease had been taken when this process took it: more than for every earlier process."""

    async def take(self, fit: Callable[[], bool]) -> None:
        """Wait for the lease and take it; while the candidate is not `fit`, it leaves the lease alone."""
        while not (fit() and await self._hold()):  # noqa: ASYNC110
            await asyncio.sleep(RETRY_SECONDS)

    async def renewals(self) -> AsyncIterator[None]:
        """Renew the lease that was taken; yields after each renewal. Raises LostLease."""
        while True:
            try:
                async with asyncio.timeout_at(self.renewed + RENEW_SECONDS):
                    await asyncio.sleep(RETRY_SECONDS)
                    while not await self._hold():  # noqa: ASYNC110
                        await asyncio.sleep(RETRY_SECONDS)
            except TimeoutError:
                raise LostLease(f"{self.ref} could not be renewed for {RENEW_SECONDS:g} s") from None
            yield

    async def _hold(self) -> bool:
        """Take or renew the lease; False if another holds it or the API server does not answer."""
        before = time.monotonic()
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                lease = await self._cluster.get(self.ref)
                if lease is not None and not self._may_take(lease):
                    return False
                mine = self._lease(lease)
                await (self._cluster.post(mine) if lease is None else self._cluster.put(mine))
                if not self._leads:
                    self._leads, self.term = True, mine["spec"]["leaseTransitions"]
        except Conflict:
            return False
        except (ClusterError, TimeoutError) as error:
            log.warning("%s: %s", self.ref, str(error) or "no answer")
            return False
        self.renewed = before
        return True

    def _may_take(self, lease: dict[str, Any]) -> bool:
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, time.monotonic())
        spec = lease.get("spec", {})
        holder = spec.get("holderIdentity") or self._identity
        duration = spec.get("leaseDurationSeconds", LEASE_SECONDS)
        return bool(holder == self._identity or time.monotonic() - self._seen[1] >= duration)

    async def release(self) -> None:
        """Let the next replica take over at once; best effort, since the lease expires anyway."""
        if not self._leads:
            return
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                lease = await self._cluster.get(self.ref)
                if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                    lease["spec"]["holderIdentity"] = ""
                    await self._cluster.put(lease)
        except (ClusterError, TimeoutError) as error:
            log.warning("%s was not released: %s", self.ref, error)

    def _lease(self, before: dict[str, Any] | None) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict((before or {}).get("spec", {}))
        if not self._leads or spec.get("holderIdentity") != self._identity:
            # A restarted container takes the lease again, too, and the count of a deleted lease doesn't restart
            # at 0: by the number an operator knows what later ones have stored.
            spec["acquireTime"] = now
            spec["leaseTransitions"] = max(
                spec.get("leaseTransitions", 0) + 1, 0 if before else int(time.time()) - _FIRST_SECOND
            )
        spec |= {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": now,
        }
        metadata = before["metadata"] if before else {"namespace": self.ref.namespace, "name": self.ref.name}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": spec,
        }
