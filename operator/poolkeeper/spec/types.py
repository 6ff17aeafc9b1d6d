"""The types of a PooledDatabase: its fields in the shape that the rest of the operator uses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MANUAL, WORKLOAD = ROLLOUTS = ("Manual", "Workload")
"""Which side restarts app pods whose keepers are not as they should be: their owners, or the operator."""
TRUST, SCRAM = AUTHS = ("Trust", "Scram")
"""Whether an app needs a password at its keeper."""


@dataclass(frozen=True)
class SecretKeyRef:
    """One key of a Secret in the PooledDatabase's own namespace."""

    name: str
    key: str


@dataclass(frozen=True)
class CredentialsRef:
    """The Secret with the upstream's user name and password, in the PooledDatabase's own namespace. With the
    last three keys it holds the host, port and database too, which the spec then does not."""

    name: str
    username_key: str
    password_key: str
    host_key: str | None = None
    port_key: str | None = None
    database_key: str | None = None


@dataclass(frozen=True)
class Tls:
    """TLS towards the upstream. Without a mode, the URL's own sslmode counts, or else `require`. With a CA,
    `require` means `verify-ca`."""

    mode: str | None
    ca: SecretKeyRef | None


@dataclass(frozen=True)
class Upstream:
    """Where the database is: host, database and credentials, or else `uri` alone. Host and database are None if
    the credentials' Secret holds them."""

    host: str | None
    port: int
    database: str | None
    credentials: CredentialsRef | None
    uri: SecretKeyRef | None
    tls: Tls

    def secret_names(self) -> frozenset[str]:
        """Every Secret that this upstream reads."""
        references = (self.credentials, self.uri, self.tls.ca)
        return frozenset(reference.name for reference in references if reference is not None)


@dataclass(frozen=True)
class Autoscaling:
    """The minimum and maximum number of pooler pods for a HorizontalPodAutoscaler."""

    min: int
    max: int


@dataclass(frozen=True)
class Pooler:
    """The pooler pods. `parameters` are PgBouncer's settings as canonical text; drain_seconds is seconds;
    `allowed_faults` are the accepted names of engine/known_faults.py."""

    replicas: int
    mode: str
    parameters: Mapping[str, str]
    image: str | None
    image_pull_secrets: tuple[str, ...]
    resources: dict[str, Any] | None
    pod_labels: Mapping[str, str]
    pod_annotations: Mapping[str, str]
    node_selector: Mapping[str, str]
    tolerations: list[dict[str, Any]]
    affinity: dict[str, Any] | None
    priority_class_name: str | None
    drain_seconds: int
    service_annotations: Mapping[str, str] = field(default_factory=dict)
    autoscaling: Autoscaling | None = None
    startup_parameters: Mapping[str, str] = field(default_factory=dict)
    """Apply, Ignore or Refuse, by name: as written in the spec, without defaults."""
    isolation: str = "Fast"
    """Fast or Strict."""
    allowed_faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Keeper:
    """The keepers injected into app pods. `pool_size` is how many connections to the poolers one keeper opens
    for its transaction endpoint, and as many for its session endpoint. `auth` is Trust or Scram.
    `image_pull_secrets` are Secrets of the app pods' namespaces. `rollout` is Manual or Workload."""

    enabled: bool
    image: str | None
    resources: dict[str, Any] | None
    pool_size: int
    auth: str
    image_pull_secrets: tuple[str, ...]
    rollout: str


@dataclass(frozen=True)
class MatchExpression:
    """One requirement on a label; operator is In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        if self.operator == "Exists":
            return self.key in labels
        if self.operator == "DoesNotExist":
            return self.key not in labels
        # NotIn holds for an object without the label, as everywhere in Kubernetes.
        return (labels.get(self.key) in self.values) == (self.operator == "In")


@dataclass(frozen=True)
class LabelSelector:
    """A label selector; the empty one matches everything."""

    match_labels: Mapping[str, str] = field(default_factory=dict)
    match_expressions: tuple[MatchExpression, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            expression.matches(labels) for expression in self.match_expressions
        )


@dataclass(frozen=True)
class Terms:
    """A consumer's part of the budget. `weight` is relative to those of other consumers. `max_connections`,
    over all poolers and both endpoints, and `max_client_connections` are limits; None is no limit.
    `session_connections` are the server connections of its session endpoint on each pooler pod."""

    weight: int = 100
    max_connections: int | None = None
    max_client_connections: int | None = None
    session_connections: int = 2


@dataclass(frozen=True)
class ConsumerRule:
    """Where consumers' Secrets go: one namespace by name, or every namespace that the selector matches."""

    namespace: str | None
    selector: LabelSelector | None
    secret_name: str
    terms: Terms = Terms()


@dataclass(frozen=True)
class Budget:
    """The connections that the poolers may use of their server. `max_connections` is the maximum, None for all
    of their share. `reserve` connections stay free on the server. `weight` is relative to those of the other
    PooledDatabases on the server."""

    max_connections: int | None = None
    reserve: int = 5
    weight: int = 100


@dataclass(frozen=True)
class PooledDatabase:
    """A PooledDatabase with a valid spec. `deleting` is true once it has a deletion timestamp."""

    namespace: str
    name: str
    uid: str
    generation: int
    deleting: bool
    upstream: Upstream
    pooler: Pooler
    keeper: Keeper
    consumers: tuple[ConsumerRule, ...]
    paused: bool
    pause_timeout_seconds: int
    budget: Budget = Budget()
