"""Pooler pods, their Deployment, and moves and renewals of their server connections."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from poolkeeper.observed.upstream import Whereabouts


@dataclass(frozen=True)
class Rollout:
    """The progress that the pooler Deployment reports; `failure` quotes what refuses its pods, or is empty."""

    observed: bool
    updated_replicas: int
    replicas: int
    failure: str
    most_pods: int | None = None
    """How many pods the budget had room for when it was last written; None: for more than it has."""
    borrowed: str = ""
    """Digest of the settings that a restart takes (our annotation) if the pods have names.BORROWED_LABEL."""


@dataclass(frozen=True)
class Pod:
    """A pooler pod. `generation` is the configuration that it was last asked to show (our annotation)."""

    name: str
    uid: str
    ip: str
    ready: bool
    terminating: bool
    restarts: int
    generation: str
    problem: str
    """Why its container does not run (`ImagePullBackOff: ...`), or empty."""
    running: bool = False
    """Its PgBouncer runs, whether or not clients are admitted."""
    admitted: bool = False
    """Its readiness gate is open. It never closes again."""
    stopped: bool = False
    """Its containers have ended for good."""
    peer: int | None = None
    """Its peer_id, by which poolers pass on a cancel request that belongs to another pooler."""
    lines: str = ""
    """Its own lines of configuration (our annotation)."""
    includes: bool = False
    """Its configuration includes its table of caps."""
    allotment: str = ""
    """The revision of the table that it was last asked to show (our annotation)."""
    grace: float = 0.0
    """Seconds from its deletion until it is killed, if it is terminating."""
    killed_at: datetime | None = None
    image: str = ""
    """The image of its PgBouncer, as the pod's spec names it."""


@dataclass(frozen=True)
class Moved:
    """A pooler whose connections were moved to where the upstream is: how long that took since the move was
    noticed, and how many were still elsewhere when the operator gave up."""

    whereabouts: Whereabouts
    seconds: float
    left: int


@dataclass(frozen=True)
class RenewalCause:
    """Why server connections were renewed, or have to be: a value of the annotation poolkeeper.io/reconnect,
    and the fingerprint of a schema. Each is empty if there was none yet."""

    request: str = ""
    schema: str = ""


@dataclass(frozen=True)
class Renewed:
    """A pooler that has renewed its server connections: how long that took, and how many were left when the
    operator gave up."""

    cause: RenewalCause
    seconds: float
    left: int
