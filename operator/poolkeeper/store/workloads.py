"""The workloads behind app pods as last read, and how long that counts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection

from poolkeeper.observed.apps import Workload
from poolkeeper.observed.refs import ApiRefusal, Key, Owner

Seen = Workload | ApiRefusal | None
"""None: there is no such workload."""

WORKLOAD_SECONDS = 60.0
"""How long the last reading of an app's workload counts if no rollout was under way. If the workload has
changed meanwhile, the API server refuses its restart."""
WORKLOAD_BUSY_SECONDS = 1.0
"""How long it counts if the workload was being rolled out, or could not be read."""


class KnownWorkloads:
    """Workloads by PooledDatabase, and by the controllers of its app pods."""

    def __init__(self) -> None:
        self._known: dict[Key, dict[Owner, tuple[Seen, float]]] = defaultdict(dict)
        """With the monotonic time."""
        self._due: dict[Key, set[Owner]] = {}

    def begin(self, key: Key, owners: Collection[Owner | None]) -> None:
        """Start a run; `owners` are the controllers that pods have now. Other workloads are forgotten, unless
        they are being restarted."""
        now = time.monotonic()
        known = self._known.pop(key, {})
        kept = {owner: item for owner, item in known.items() if owner in owners or _is_restarted(item[0])}
        self._due.pop(key, None)
        if kept:
            self._known[key] = kept
            self._due[key] = {
                owner
                for owner, (seen, at) in kept.items()
                if now - at >= (WORKLOAD_SECONDS if seen is None or _rests(seen) else WORKLOAD_BUSY_SECONDS)
            }

    def put(self, key: Key, owner: Owner, seen: Seen) -> None:
        """Take in the current state of a workload."""
        self._known[key][owner] = (seen, time.monotonic())
        self._due.get(key, set()).discard(owner)

    def drop(self, key: Key) -> None:
        """Forget a PooledDatabase that is gone."""
        self._known.pop(key, None)
        self._due.pop(key, None)

    def of(self, key: Key) -> dict[Owner, Seen]:
        """The workloads as last read."""
        return {owner: seen for owner, (seen, _) in self._known.get(key, {}).items()}

    def due(self, key: Key) -> frozenset[Owner]:
        """The controllers whose workloads have to be read again in this run."""
        return frozenset(self._due.get(key, ()))


def _is_restarted(seen: Seen) -> bool:
    return isinstance(seen, Workload) and not seen.complete and bool(seen.marks)


def _rests(seen: Workload | ApiRefusal) -> bool:
    return isinstance(seen, Workload) and seen.complete
