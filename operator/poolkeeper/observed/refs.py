"""Names of objects: a PooledDatabase, any other one, a controller; and the API server's refusal of a write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


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


class Owner(NamedTuple):
    """A controller of apps/v1: a pod's ReplicaSet, StatefulSet or DaemonSet, or a ReplicaSet's Deployment."""

    namespace: str
    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class ApiRefusal:
    """The API server's refusal of a write, which looks permanent; dropped once a later write succeeds."""

    reason: str
    message: str
