"""App pods with keepers, and the workloads that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from poolkeeper.observed.refs import Owner, Ref


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
