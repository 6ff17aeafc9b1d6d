"""What was observed: the input of plan(), as values.

The store builds one World per PooledDatabase from the watches, the API server's answers, the pods' consoles
and the upstream. Nothing here knows where the values came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from poolkeeper import faults
from poolkeeper.allotments import Stored
from poolkeeper.api import PooledDatabase, SpecError
from poolkeeper.budget import SERVER
from poolkeeper.logins import Logins
from poolkeeper.target import Target


class Key(NamedTuple):
    """Names one PooledDatabase; the unit of work of the queue."""

    namespace: str
    name: str


class Ref(NamedTuple):
    """Names one object of the cluster."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True)
class Namespace:
    """A namespace as consent needs it; `accept_from` is the annotation's text, empty if absent."""

    labels: Mapping[str, str]
    accept_from: str
    terminating: bool


@dataclass(frozen=True)
class Child:
    """An object that carries our labels; `digest` covers the fields we own (see ownership.py)."""

    uid: str
    owner_uid: str
    role: str
    digest: bytes
    applied: bytes = b""
    """Digest of what we applied, where the API server says the same in other words: both are right."""


@dataclass(frozen=True)
class Rollout:
    """The pooler Deployment's own word on its progress; `failure` quotes what refuses its pods, else empty."""

    observed: bool
    updated_replicas: int
    replicas: int
    failure: str
    most_pods: int | None = None
    """So many pods the budget had room for when it was written last; None: more than it has."""


@dataclass(frozen=True)
class Pod:
    """A pooler pod. `generation` is the configuration it was last told to show (our annotation)."""

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
    """Its PgBouncer runs, whether or not clients may come."""
    admitted: bool = False
    """Its readiness gate is open. It never closes again."""
    stopped: bool = False
    """Its containers have ended for good."""
    peer: int | None = None
    """Its peer_id, by which poolers pass on a cancel request that belongs to another of them."""
    lines: str = ""
    """The configuration of its own that it has (our annotation)."""
    includes: bool = False
    """It includes its table of caps."""
    allotment: str = ""
    """The revision of the table that it was last told to show (our annotation)."""
    grace: float = 0.0
    """Seconds from its deletion until it is killed, if it is terminating."""
    killed_at: datetime | None = None
    image: str = ""
    """The image that its PgBouncer was made of, as its spec names it."""


@dataclass(frozen=True)
class Keeper:
    """A keeper of an app pod, as it runs. `generation` is the configuration it was last told to show."""

    container: str
    secret_name: str
    """The consumer's Secret."""
    image: str
    auth: str
    port: int
    running: bool
    restarts: int
    generation: str


class Owner(NamedTuple):
    """The controller of a pod, of apps/v1: a ReplicaSet, StatefulSet or DaemonSet."""

    namespace: str
    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class Workload:
    """What an app's pods come from: a Deployment, StatefulSet or DaemonSet."""

    ref: Ref
    uid: str
    version: str
    asks: frozenset[str]
    """The consumers' Secrets whose databases its pod template asks for."""
    marks: Mapping[str, str]
    """The annotations of its pod template that say what it was restarted for."""
    complete: bool
    """All of its pods are made of the present template, and available."""
    held: str
    """Why another template would not replace its pods, or empty."""
    stalled: str
    """What it says itself of a rollout that makes no progress, or empty."""


@dataclass(frozen=True)
class AppPod:
    """A pod whose owner asks for keepers by label. What it says of itself proves nothing."""

    namespace: str
    name: str
    uid: str
    ip: str
    terminating: bool
    keepers: tuple[Keeper, ...]
    lacks: tuple[str, ...]
    """Consumers' Secrets that it asks a keeper for and has none."""
    owner: Owner | None = None
    """None for a pod that no restart of a workload would replace."""

    def process(self, keeper: Keeper) -> str:
        """What a keeper is known by in World.shown."""
        return f"{self.uid}/{keeper.container}"


@dataclass(frozen=True)
class ConsoleAccess:
    """How to log in at the console of one process: where it is, the login's password, and the name and
    authority (PEM) of the certificate that it has to show."""

    ip: str
    port: int
    password: str = field(repr=False)
    name: str
    authority: str


@dataclass(frozen=True)
class Shown:
    """What a pod's console showed last: the generation asked for, what differed (empty if nothing), and the
    answer to SHOW VERSION (empty if the console gave none)."""

    generation: str
    restarts: int
    problem: str
    version: str = ""


@dataclass(frozen=True)
class PauseSeen:
    """What a pooler's console showed last of a pause. `held`: every transaction entry is paused and has no
    server connection left, else `waits_for` is one that has. `resumed`: told to resume, it holds nobody back.
    `problem`: why its console could not be asked."""

    held: bool = False
    waits_for: str = ""
    resumed: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Probe:
    """The outcome of the last login to an upstream target, by the operator or through a pooler pod."""

    target: Target
    reachable: bool
    reason: str
    message: str
    server_version: int | None = None
    """PostgreSQL's version number (170002) as the target showed it last; None as long as it did not."""

    @property
    def rejected(self) -> bool:
        """The server was met and said no: waiting won't help, and an earlier target that works must stay."""
        return self.reason in (faults.AUTHENTICATION_FAILED, faults.DATABASE_MISSING, faults.TLS_FAILED)


@dataclass(frozen=True)
class Whereabouts:
    """Where an upstream's host is: the addresses of its name, and the ready endpoints of the Service that it
    names. Empty where nothing is known."""

    host: str
    addresses: frozenset[str] = frozenset()
    endpoints: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Moved:
    """A pooler whose connections were led to where the upstream is: how long that took since it was seen, and
    how many were still elsewhere when it was given up."""

    whereabouts: Whereabouts
    seconds: float
    left: int


@dataclass(frozen=True)
class AtLimit:
    """A consumer, `namespace/secretName`, that has as many clients at a pooler as that admits. `limited`: its
    own limits.maxClientConnections is what bounds it."""

    consumer: str
    pod: str
    clients: int
    bound: int
    limited: bool


@dataclass(frozen=True)
class Wedge:
    """A fault of a pooler's data path: its kind (a reason of data_path.py), the pod, the consumer
    (`namespace/secretName`), how many server connections were ended, and what there is to say of it."""

    kind: str
    pod: str
    consumer: str
    number: int = 0
    said: str = ""


@dataclass(frozen=True)
class RenewalCause:
    """Why server connections were renewed, or have to be: a value of the annotation poolkeeper.io/reconnect,
    and the fingerprint of a schema. Empty where there was none yet."""

    request: str = ""
    schema: str = ""


@dataclass(frozen=True)
class Renewed:
    """A pooler that has renewed its server connections: how long that took, and how many were left when it was
    given up."""

    cause: RenewalCause
    seconds: float
    left: int


@dataclass(frozen=True)
class BudgetSeen:
    """What the budget of a PooledDatabase came to when it was worked out last, in server connections."""

    server: str = ""
    """Eight hexadecimal digits that name the server; empty while nobody knows which one it is."""
    problem: str = ""
    """Why the server could not be measured, and what to do; empty if it was."""
    arithmetic: str = ""
    """How `usable` comes about."""
    max_connections: int = 0
    others: int = 0
    reserve: int = 0
    usable: int = 0
    """For all poolers on the server."""
    share: int = 0
    """Of this PooledDatabase."""
    shared_with: int = 0
    """So many other PooledDatabases are on the server."""
    held: int = 0
    """What its pods may hold now, together."""
    pods: Mapping[str, int] = field(default_factory=dict)
    """The same of each pod, by name."""
    waiting: tuple[str, ...] = ()
    """Names of pods that are not admitted yet."""
    most_pods: int | None = None
    """More pods than that are not worth having: not every entry would fit on each. None: not known yet."""
    problems: tuple[str, ...] = ()
    """What does not fit, in words."""
    bottleneck: str = SERVER
    """What would have to be larger for a larger share."""
    left_out: frozenset[str] = frozenset()
    """Entries that no connection is left for."""
    excess: int = 0
    """By how much more is held than is usable, which has fallen."""
    admissible: frozenset[str] = frozenset()
    """UIDs of pods that clients may come to, as far as the budget goes."""
    at_limit: tuple[AtLimit, ...] = ()
    """Consumers that were at the bound of their clients lately, by name."""
    wedges: tuple[Wedge, ...] = ()
    """What was wrong with the data path lately, the gravest first."""
    silent: str = ""
    """UID of a pod that is to be retired, since it alone answers no probe; empty for none."""


@dataclass(frozen=True)
class ApiRefusal:
    """The API server's permanent-looking answer to one of our writes; goes when a later write succeeds."""

    reason: str
    message: str


@dataclass(frozen=True)
class Resource:
    """The PooledDatabase itself: its metadata, its parsed spec or what is wrong with it, its last status."""

    uid: str
    generation: int
    deleting: bool
    finalized: bool
    """Our finalizer is on it."""
    spec: PooledDatabase | SpecError
    status: Mapping[str, Any]
    reconnect: str = ""
    """The annotation poolkeeper.io/reconnect."""


@dataclass(frozen=True)
class World:
    """Everything plan() may look at for one PooledDatabase. `resource` is None if it does not exist."""

    resource: Resource | None
    children: Mapping[Ref, Child] = field(default_factory=dict)
    pods: tuple[Pod, ...] = ()
    app_pods: tuple[AppPod, ...] = ()
    """Those that ask for the database of one of the consumers."""
    workloads: Mapping[Owner, Workload | ApiRefusal | None] = field(default_factory=dict)
    """What was read of the workloads behind the app pods; None where there is none."""
    workloads_due: frozenset[Owner] = frozenset()
    """Those of them to be read again before anything is made of them."""
    rollout: Rollout | None = None
    namespaces: Mapping[str, Namespace] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    """Data of the Secrets that the upstream names, by name; a Secret that does not exist is absent."""
    managed: frozenset[str] = frozenset()
    """Names of those that turned out to be Secrets of the operator's own; their data are not in `sources`."""
    marked: frozenset[str] = frozenset()
    """Names of Secrets in this namespace that carry our source label because of this PooledDatabase."""
    logins: Logins = field(default_factory=Logins)
    """The stored logins, completed by freshly minted ones where a consumer has none yet."""
    shown: Mapping[str, Shown] = field(default_factory=dict)
    """By pod UID, or AppPod.process()."""
    paused: Mapping[str, PauseSeen] = field(default_factory=dict)
    """By pod UID, while a pause goes on."""
    probe: Probe | None = None
    probe_due: bool = False
    """The last probe is older than its interval."""
    probing: Target | None = None
    """What a probe that is under way logs in to; its answer starts another run."""
    next_probe_seconds: float | None = None
    whereabouts: Whereabouts | None = None
    """Of the host that is observed; None until something is known."""
    moved: Mapping[str, Moved] = field(default_factory=dict)
    """By pod UID."""
    schema: str = ""
    """Fingerprint of the schema that server connections are to be renewed for, empty while it is not known."""
    renewed: Mapping[str, Renewed] = field(default_factory=dict)
    """By pod UID."""
    budget: BudgetSeen | None = None
    stored: Stored | None = None
    """What is stored of the budget; None as long as the poolers' Secret doesn't exist."""
    files: Mapping[Ref, Mapping[str, str]] = field(default_factory=dict)
    """What is in the Secrets that pods mount: the poolers' one and those of keepers."""
    refusals: Mapping[Ref, ApiRefusal] = field(default_factory=dict)
