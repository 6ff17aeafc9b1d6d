"""What was found out about the upstream of each PooledDatabase: whether logins succeed, where its host is, and
the schema of its database."""

from __future__ import annotations

import time
from collections.abc import Sized
from dataclasses import replace

from poolkeeper.observed.refs import Key
from poolkeeper.observed.upstream import Probe, Whereabouts

PROBE_SECONDS = 60.0
"""How often the operator logs in to an upstream, with few PooledDatabases."""
PROBES_PER_SECOND = 10.0
"""Maximum number of logins a second, with many PooledDatabases."""
FIRST_RETRY_SECONDS = 2.0


class Upstreams:
    """The memory of each upstream, until its PooledDatabase is gone."""

    def __init__(self, databases: Sized) -> None:
        """`databases` are all PooledDatabases: the more there are, the less often each upstream is probed."""
        self._databases = databases
        self._probes: dict[Key, tuple[Probe, float, float]] = {}
        """Outcome, monotonic time, seconds until the next."""
        self._whereabouts: dict[Key, tuple[Whereabouts, float]] = {}
        """With the monotonic time of its last change."""
        self._schemas: dict[Key, str] = {}

    def probed(self, key: Key, probe: Probe) -> None:
        """Take in the outcome of a login to the upstream. Failures are retried soon, then ever later."""
        before = self._probes.get(key)
        interval = max(PROBE_SECONDS, len(self._databases) / PROBES_PER_SECOND)
        if not probe.reachable:
            again = before is not None and not before[0].reachable and before[0].target == probe.target
            interval = min(before[2] * 2, interval / 2) if again and before else FIRST_RETRY_SECONDS
            if before is not None and before[0].target == probe.target:
                # A server that can't be reached for a while keeps its version.
                probe = replace(probe, server_version=before[0].server_version)
        self._probes[key] = (probe, time.monotonic(), interval)

    def probe(self, key: Key) -> Probe | None:
        """The outcome of the last login."""
        return self._probes[key][0] if key in self._probes else None

    def seconds_to_probe(self, key: Key) -> float | None:
        """Seconds until the next login is due; not above 0 if it is due now, None before the first."""
        if key not in self._probes:
            return None
        _, at, interval = self._probes[key]
        return interval - (time.monotonic() - at)

    def locate(self, key: Key, whereabouts: Whereabouts) -> frozenset[Key]:
        """Take in where the upstream's host was found. Returns the key if that has changed."""
        if self.whereabouts(key) == whereabouts:
            return frozenset()
        self._whereabouts[key] = (whereabouts, time.monotonic())
        return frozenset({key})

    def whereabouts(self, key: Key) -> Whereabouts | None:
        """Where the upstream's host was last found; None until something is known."""
        return self._whereabouts[key][0] if key in self._whereabouts else None

    def seconds_since_move(self, key: Key) -> float:
        """Seconds since the whereabouts last changed; 0 until something is known."""
        return time.monotonic() - self._whereabouts[key][1] if key in self._whereabouts else 0.0

    def put_schema(self, key: Key, fingerprint: str) -> frozenset[Key]:
        """Take in the schema to renew server connections for. Returns the key if it has changed."""
        if self._schemas.get(key) == fingerprint:
            return frozenset()
        self._schemas[key] = fingerprint
        return frozenset({key})

    def schema(self, key: Key) -> str:
        """Fingerprint of the schema to renew server connections for; empty while unknown."""
        return self._schemas.get(key, "")

    def drop(self, key: Key) -> None:
        """Forget the upstream of a PooledDatabase that is gone."""
        for memory in (self._probes, self._whereabouts, self._schemas):
            memory.pop(key, None)
