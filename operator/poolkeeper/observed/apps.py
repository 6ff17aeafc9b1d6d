"""App pods with keepers, and the workloads that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from poolkeeper.observed.refs import Owner, Ref


@dataclass(frozen=True)
class Keeper:
    """A keeper of an app pod. `generation` is the configuration that it was last asked to show."""

    container: str
    secret_name: str
    """The consumer's Secret."""
    image: str
    auth: str
    port: int
    running: bool
    restarts: int
    generation: str


@dataclass(frozen=True)
class Workload:
    """The workload of an app's pods: a Deployment, StatefulSet or DaemonSet."""

    ref: Ref
    uid: str
    version: str
    asks: frozenset[str]
    """The consumers' Secrets whose databases its pod template asks for."""
    marks: Mapping[str, str]
    """The annotations of its pod template that record what it was restarted for."""
    complete: bool
    """All of its pods are of the current template, and available."""
    held: str
    """Why a new template would not replace its pods, or empty."""
    stalled: str
    """Its own message about a rollout without progress, or empty."""


@dataclass(frozen=True)
class AppPod:
    """A pod that asks for keepers by label. What it claims proves nothing."""

    namespace: str
    name: str
    uid: str
    ip: str
    terminating: bool
    keepers: tuple[Keeper, ...]
    lacks: tuple[str, ...]
    """Consumers' Secrets that it asks a keeper for, but has none."""
    owner: Owner | None = None
    """None for a pod that no restart of a workload would replace."""
    obstacle: str = ""
    """Why its keepers can't resolve the poolers' name, and the remedy."""

    def process(self, keeper: Keeper) -> str:
        """The key of a keeper in World.shown."""
        return f"{self.uid}/{keeper.container}"
