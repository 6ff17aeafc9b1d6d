"""Connections of a PostgreSQL server, sampled, against what its poolers may hold: arithmetic alone.

A sample is a look at pg_stat_activity and, right afterwards, at every pooler's console. A backend of the
poolers' role that no console shows any more was left by a client that is gone: PgBouncer has forgotten it, or
has just closed it, and PostgreSQL ends it as soon as it notices. Those are counted apart.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

OPERATOR = "poolkeeper"
"""What the operator's own connections are called; they log in with the poolers' role."""
_BUSY = "active"


class Backend(NamedTuple):
    """A client's backend. `started` in epoch seconds."""

    pid: int
    started: float
    role: str
    superuser: bool
    address: str
    port: int
    application: str


class Link(NamedTuple):
    """A pooler's connection to its server as its console shows it; while it logs in, `pid` is 0."""

    pid: int
    port: int
    state: str


@dataclass(frozen=True)
class Limits:
    """A server's settings."""

    max_connections: int
    superuser_reserved: int
    reserved: int

    def usable(self, reserve: int) -> int:
        """What is there for poolers and everybody else who is no superuser, if `reserve` stay free."""
        return self.max_connections - self.superuser_reserved - self.reserved - reserve


@dataclass(frozen=True)
class Sample:
    """`consoles` are by the pods' addresses; None: no answer. `at` in epoch seconds."""

    at: float
    backends: tuple[Backend, ...]
    consoles: Mapping[str, tuple[Link, ...] | None]


@dataclass(frozen=True)
class Count:
    """Backends of one sample: the poolers', those of `held` that work for a client, everybody else's, and those
    that no pooler knows any more. Superusers' don't count: their slots are reserved."""

    at: float
    held: int
    busy: int
    others: int
    left: int

    @property
    def counted(self) -> int:
        return self.held + self.others


def count(sample: Sample, roles: Collection[str]) -> Count:
    """Tell the backends of a sample apart. `roles` are those that the poolers log in with.

    In doubt a pooler holds them: so it is with all of a pod whose console does not answer.
    """
    links = {link.pid: link for each in sample.consoles.values() for link in each or () if link.pid}
    ports = {(address, link.port): link for address, each in sample.consoles.items() for link in each or ()}
    held = busy = others = left = 0
    for backend in sample.backends:
        if backend.superuser:
            continue
        if backend.role not in roles or backend.application.startswith(OPERATOR):
            others += 1
            continue
        link = links.get(backend.pid) or ports.get((backend.address, backend.port))
        silent = backend.address in sample.consoles and sample.consoles[backend.address] is None
        if link is None and not silent:
            left += 1
            continue
        held += 1
        busy += link is not None and link.state == _BUSY
    return Count(sample.at, held, busy, others, left)


@dataclass(frozen=True)
class Table:
    """From `at` on the pooler at this address showed these caps, by entry."""

    at: float
    address: str
    caps: Mapping[str, int]


@dataclass(frozen=True)
class Record:
    """All that a sampler has written down; `limits` with the times from which they held."""

    limits: tuple[tuple[float, Limits], ...]
    samples: tuple[Sample, ...]
    tables: tuple[Table, ...]

    def limits_at(self, at: float) -> Limits:
        index = bisect.bisect_right([since for since, _ in self.limits], at)
        return self.limits[max(index, 1) - 1][1]


def parse(document: Mapping[str, Any]) -> Record:
    """The record as the agent's sampler gives it."""
    backends = [Backend(*row) for row in document["backends"]]
    return Record(
        tuple((at, Limits(*rest)) for at, *rest in document["limits"]),
        tuple(
            Sample(
                at,
                tuple(backends[number] for number in numbers),
                {
                    address: None if links is None else tuple(Link(*link) for link in links)
                    for address, links in consoles.items()
                },
            )
            for at, numbers, consoles in document["samples"]
        ),
        tuple(Table(*row) for row in document["tables"]),
    )


@dataclass(frozen=True)
class Verdict:
    """What the samples come to. `over` are those with more than is usable, each with what was usable."""

    counts: tuple[Count, ...]
    over: tuple[tuple[Count, int], ...]

    @property
    def most(self) -> int:
        """The most that poolers and others held at a time."""
        return max(count.counted for count in self.counts)

    @property
    def longest_gap(self) -> float:
        """The longest time between two samples, in seconds."""
        times = [count.at for count in self.counts]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    def __str__(self) -> str:
        first = self.counts[0].at
        lines = [
            f"{len(self.counts)} samples, {len(self.over)} over what is usable; at the most {self.most} held,"
            f" {max(count.others for count in self.counts)} of others and"
            f" {max(count.left for count in self.counts)} left by clients that are gone;"
            f" longest gap {self.longest_gap:.2f} s"
        ]
        lines += [
            f"  at {count.at - first:.2f} s: {count.held} held + {count.others} of others > {usable}"
            f" (and {count.left} left)"
            for count, usable in self.over[:10]
        ]
        return "\n".join(lines)


def judge(record: Record, roles: Collection[str], reserve: int) -> Verdict:
    """Hold every sample against what was usable at its time. Raises ValueError if there is none."""
    if not record.samples:
        raise ValueError("there is no sample")
    counts = tuple(count(sample, roles) for sample in record.samples)
    limits = [(one, record.limits_at(one.at).usable(reserve)) for one in counts]
    return Verdict(counts, tuple((one, usable) for one, usable in limits if one.counted > usable))


def settled_at(tables: Sequence[Table], since: float, until: float) -> float:
    """When the last console's caps changed between two moments, or `since` if none did."""
    return max((table.at for table in tables if since <= table.at <= until), default=since)
