"""The observations of one PooledDatabase: the input of plan().

The store builds it from the watches, the API server's answers, the pods' consoles and the upstream. Nothing
here knows where the values came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from poolkeeper.budget.allotments import Stored
from poolkeeper.budget.seen import BudgetSeen
from poolkeeper.credentials.logins import Logins
from poolkeeper.observed.apps import AppPod, Workload
from poolkeeper.observed.consoles import PauseSeen, Shown
from poolkeeper.observed.namespaces import Namespace
from poolkeeper.observed.poolers import Moved, Pod, Renewed, Rollout
from poolkeeper.observed.refs import ApiRefusal, Owner, Ref
from poolkeeper.observed.upstream import Probe, Whereabouts
from poolkeeper.spec.parse import PooledDatabase, SpecError
from poolkeeper.upstream.target import Target


@dataclass(frozen=True)
class Child:
    """An object that the operator made; `digest` covers the fields we own (plan/ownership.py)."""

    uid: str
    owner_uid: str
    role: str
    digest: bytes
    applied: bytes = b""
    """Digest of what we applied, if the API server stores the same in other words: both are right."""


@dataclass(frozen=True)
class Resource:
    """The PooledDatabase itself: its metadata, its parsed spec or the error in it, its last status."""

    uid: str
    generation: int
    deleting: bool
    finalized: bool
    """It has our finalizer."""
    spec: PooledDatabase | SpecError
    status: Mapping[str, Any]
    reconnect: str = ""
    """The annotation poolkeeper.io/reconnect."""


@dataclass(frozen=True)
class World:
    """Everything plan() may read for one PooledDatabase. `resource` is None if it does not exist."""

    resource: Resource | None
    children: Mapping[Ref, Child] = field(default_factory=dict)
    copies: Mapping[Ref, str] = field(default_factory=dict)
    """UIDs of the objects that carry our labels and that the operator did not make: they are left alone."""
    pods: tuple[Pod, ...] = ()
    app_pods: tuple[AppPod, ...] = ()
    """App pods that ask for the database of one of the consumers."""
    workloads: Mapping[Owner, Workload | ApiRefusal | None] = field(default_factory=dict)
    """The workloads behind the app pods, as last read; None: there is none."""
    workloads_due: frozenset[Owner] = frozenset()
    """Controllers whose workloads have to be read again before a decision relies on them."""
    rollout: Rollout | None = None
    namespaces: Mapping[str, Namespace] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    """Data of the Secrets that the upstream names, by name; a Secret that does not exist is absent."""
    managed: frozenset[str] = frozenset()
    """Names of those Secrets that turned out to be the operator's own; their data is not in `sources`."""
    marked: frozenset[str] = frozenset()
    """Names of Secrets in this namespace that carry our source label because of this PooledDatabase."""
    logins: Logins = field(default_factory=Logins)
    """The stored logins, completed by freshly minted ones for consumers that have none yet."""
    shown: Mapping[str, Shown] = field(default_factory=dict)
    """By pod UID, or AppPod.process()."""
    paused: Mapping[str, PauseSeen] = field(default_factory=dict)
    """By pod UID, during a pause."""
    probe: Probe | None = None
    probe_due: bool = False
    """The last probe is older than its interval."""
    probing: Target | None = None
    """The target of a probe that is under way; its answer starts another run."""
    next_probe_seconds: float | None = None
    whereabouts: Whereabouts | None = None
    """Of the observed host; None until something is known."""
    moved: Mapping[str, Moved] = field(default_factory=dict)
    """By pod UID."""
    schema: str = ""
    """Fingerprint of the schema that server connections are to be renewed for; empty while unknown."""
    renewed: Mapping[str, Renewed] = field(default_factory=dict)
    """By pod UID."""
    budget: BudgetSeen | None = None
    stored: Stored | None = None
    """The budget as stored; None as long as the poolers' Secret doesn't exist."""
    files: Mapping[Ref, Mapping[str, str]] = field(default_factory=dict)
    """The contents of the Secrets that pods mount: the poolers' and the keepers'."""
    refusals: Mapping[Ref, ApiRefusal] = field(default_factory=dict)
