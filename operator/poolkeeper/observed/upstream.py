"""Whether an upstream can be reached, and where it is."""

from __future__ import annotations

from dataclasses import dataclass

from poolkeeper.upstream import faults
from poolkeeper.upstream.target import Target


@dataclass(frozen=True)
class Probe:
    """The outcome of the last login to an upstream target, by the operator or through a pooler pod."""

    target: Target
    reachable: bool
    reason: str
    message: str
    server_version: int | None = None
    """PostgreSQL's version number (170002) as the target last showed it; None until it did."""

    @property
    def rejected(self) -> bool:
        """The server answered and refused: waiting won't help, and an earlier target that works must stay."""
        return self.reason in (faults.AUTHENTICATION_FAILED, faults.DATABASE_MISSING, faults.TLS_FAILED)


@dataclass(frozen=True)
class Whereabouts:
    """Where an upstream's host is: the addresses of its name, and the ready endpoints of the Service that it
    names. Each is empty if unknown."""

    host: str
    addresses: frozenset[str] = frozenset()
    endpoints: frozenset[str] = frozenset()
