"""What names an object: a PooledDatabase, any other one, a workload; and what the API server refused of one."""

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
    """The controller of a pod, of apps/v1: a ReplicaSet, StatefulSet or DaemonSet."""

    namespace: str
    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class ApiRefusal:
    """The API server's permanent-looking answer to one of our writes; goes when a later write succeeds."""

    reason: str
    message: str
