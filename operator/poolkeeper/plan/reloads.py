"""Steps at running poolers and keepers: reloads, admissions, drains, and a pod to retire. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from poolkeeper import names
from poolkeeper.budget.division import Caps
from poolkeeper.consumers.consent import Consumer
from poolkeeper.consumers.entries import login_name
from poolkeeper.observed.apps import AppPod, Keeper
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.observed.poolers import Pod
from poolkeeper.pgbouncer.clients import KeeperConsole
from poolkeeper.pgbouncer.configuration import Configuration
from poolkeeper.pgbouncer.keeper_configuration import shown_by
from poolkeeper.plan.wanted import Wanted, allotted
from poolkeeper.plan.world import World


@dataclass(frozen=True)
class Reload:
    """A process whose console has to show `configuration`."""

    process: str
    """Key of World.shown."""
    namespace: str
    pod: str
    uid: str
    annotations: Mapping[str, str]
    """Annotations that the pod needs first, so that kubelet updates its files at once."""
    restarts: int
    access: ConsoleAccess
    configuration: Configuration

    @property
    def shown_as(self) -> str:
        """The name of its configuration in World.shown."""
        return shown_as(self.configuration, self.configuration.databases)


@dataclass(frozen=True)
class Leaving:
    """A terminating pooler pod: seconds since its deletion, and until it is killed."""

    uid: str
    name: str
    access: ConsoleAccess
    since: float
    left: float


def poolers_behind(wanted: Wanted, world: World) -> tuple[Reload, ...]:
    """The poolers with a reachable console that were not reloaded to the configuration since they started."""
    config = wanted.configuration
    if config is None or world.resource is None:
        return ()
    return tuple(
        Reload(
            pod.uid,
            wanted.namespace,
            pod.name,
            pod.uid,
            {} if pod.generation == config.generation else {names.GENERATION_ANNOTATION: config.generation},
            pod.restarts,
            wanted.console_at(pod.ip),
            _of_pod(config, pod, wanted.peers[pod.uid], allotted(pod, world)),
        )
        for pod in world.pods
        if reachable(pod)
        and not _attempted(pod.uid, shown_as(config, allotted(pod, world)), pod.restarts, world)
    )


def _of_pod(config: Configuration, pod: Pod, peer: int, caps: Caps) -> Configuration:
    """The configuration that a pooler's console must show: of the entries only those in its table."""
    databases = {entry: columns for entry, columns in config.databases.items() if entry in caps}
    return replace(config, settings={**config.settings, "peer_id": str(peer)}, databases=databases)


def shown_as(config: Configuration, entries: Iterable[str]) -> str:
    """The name, in World.shown, of a configuration with these of its entries."""
    present = sorted(entry for entry in entries if entry in config.databases)
    return f"{config.generation} {hashlib.sha256(' '.join(present).encode()).hexdigest()[:8]}"


def admissible(wanted: Wanted, world: World) -> tuple[Pod, ...]:
    """Pods to admit: the budget has room for them, and they show their configuration."""
    config = wanted.configuration
    if config is None or world.budget is None:
        return ()
    return tuple(
        pod
        for pod in world.pods
        if pod.uid in world.budget.admissible
        and not pod.admitted
        and reachable(pod)
        and _attempted(pod.uid, shown_as(config, allotted(pod, world)), pod.restarts, world)
        and not world.shown[pod.uid].problem
    )


def keepers_behind(wanted: Wanted, world: World) -> tuple[Reload, ...]:
    """The keepers that were not yet reloaded to their configuration, or not since they restarted."""
    found = []
    for pod, keeper, consumer in running_keepers(wanted, world):
        config = wanted.keepers.get(consumer)
        if config is None or pod.terminating:
            continue
        process = pod.process(keeper)
        if _attempted(process, config.generation, keeper.restarts, world):
            continue
        annotation = names.KEEPER_GENERATION_ANNOTATION.format(container=keeper.container)
        annotations = {} if keeper.generation == config.generation else {annotation: config.generation}
        access, shown = wanted.keeper_at(consumer, pod.ip, keeper.port), shown_by(config, keeper.auth)
        found.append(
            Reload(process, pod.namespace, pod.name, pod.uid, annotations, keeper.restarts, access, shown)
        )
    return tuple(found)


def leaving(wanted: Wanted, world: World, now: datetime) -> tuple[Leaving, ...]:
    """The terminating pooler pods that are not killed yet."""
    found = []
    for pod in world.pods:
        if not pod.terminating or not pod.ip or pod.killed_at is None or wanted.logins.console is None:
            continue
        left = (pod.killed_at - now).total_seconds()
        if left > 0:
            since = max(pod.grace - left, 0.0)
            found.append(Leaving(pod.uid, pod.name, wanted.console_at(pod.ip), since, left))
    return tuple(found)


def moving(wanted: Wanted, world: World) -> tuple[KeeperConsole, ...]:
    """Every keeper, as it may have to leave a pooler. None while no other pooler could admit it."""
    if not any(map(serves, world.pods)):
        return ()
    return tuple(
        KeeperConsole(
            pod.process(keeper),
            pod.namespace,
            f"{pod.namespace}/{pod.name}" + (f" {keeper.container}" if len(pod.keepers) > 1 else ""),
            login_name(consumer),
            wanted.keeper_at(consumer, pod.ip, keeper.port),
        )
        for pod, keeper, consumer in running_keepers(wanted, world)
    )


def running_keepers(wanted: Wanted, world: World) -> Iterator[tuple[AppPod, Keeper, Consumer]]:
    """The running keepers that serve one of the consumers, each with its pod and consumer."""
    granted = frozenset(wanted.consumers.granted)
    for pod in world.app_pods:
        for keeper in pod.keepers:
            consumer = Consumer(pod.namespace, keeper.secret_name)
            if keeper.running and pod.ip and consumer in granted:
                yield pod, keeper, consumer


def reachable(pod: Pod) -> bool:
    """Whether the pooler runs, admitted or not, and does not terminate."""
    return pod.running and not pod.terminating and bool(pod.ip)


def retiring(world: World) -> Pod | None:
    """The pooler pod to evict, since no statement gets through it; None while another pod is starting or
    ending."""
    silent = world.budget.silent if world.budget is not None else ""
    pods = [pod for pod in world.pods if not pod.stopped]
    if len(pods) < 2 or not all(map(serves, pods)):
        return None
    return next((pod for pod in pods if pod.uid == silent), None)


def serves(pod: Pod) -> bool:
    """Whether the pooler accepts clients."""
    return pod.ready and not pod.terminating and bool(pod.ip)


def _attempted(process: str, generation: str, restarts: int, world: World) -> bool:
    shown = world.shown.get(process)
    return shown is not None and (shown.generation, shown.restarts) == (generation, restarts)
