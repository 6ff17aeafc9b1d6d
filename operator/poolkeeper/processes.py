"""What to do at processes that run: whose console has to show something else, who leaves a pooler. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from poolkeeper import names
from poolkeeper.clients import KeeperConsole
from poolkeeper.consent import Consumer
from poolkeeper.desired.entries import login_name
from poolkeeper.desired.keeper_config import shown_by
from poolkeeper.desired.pgbouncer_config import Configuration
from poolkeeper.wanted import Wanted
from poolkeeper.world import AppPod, ConsoleAccess, Keeper, Pod, World


@dataclass(frozen=True)
class Reload:
    """A process whose console must come to show `configuration`."""

    process: str
    """Key of World.shown."""
    namespace: str
    pod: str
    uid: str
    annotations: Mapping[str, str]
    """What the pod has to get beforehand, so that kubelet brings it the files at once."""
    restarts: int
    access: ConsoleAccess
    configuration: Configuration


@dataclass(frozen=True)
class Leaving:
    """A pooler pod that terminates: seconds since its deletion, and until it is killed."""

    uid: str
    name: str
    access: ConsoleAccess
    since: float
    left: float


def poolers_behind(wanted: Wanted, world: World) -> tuple[Reload, ...]:
    """The ready poolers that were not brought to the configuration yet, or not since they restarted."""
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
            replace(config, settings={**config.settings, "peer_id": str(wanted.peers[pod.uid])}),
        )
        for pod in world.pods
        if serves(pod) and not _attempted(pod.uid, config.generation, pod.restarts, world)
    )


def keepers_behind(wanted: Wanted, world: World) -> tuple[Reload, ...]:
    """Likewise of the keepers."""
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
    """The pooler pods that terminate and are not killed yet."""
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
    """Every keeper, as one that may have to leave a pooler. None while no other pooler could take it in."""
    if not any(map(serves, world.pods)):
        return ()
    return tuple(
        KeeperConsole(
            pod.process(keeper),
            f"{pod.namespace}/{pod.name}" + (f" {keeper.container}" if len(pod.keepers) > 1 else ""),
            login_name(consumer),
            wanted.keeper_at(consumer, pod.ip, keeper.port),
        )
        for pod, keeper, consumer in running_keepers(wanted, world)
    )


def running_keepers(wanted: Wanted, world: World) -> Iterator[tuple[AppPod, Keeper, Consumer]]:
    """Those that serve one of the consumers, by pod and name."""
    granted = frozenset(wanted.consumers.granted)
    for pod in world.app_pods:
        for keeper in pod.keepers:
            consumer = Consumer(pod.namespace, keeper.secret_name)
            if keeper.running and pod.ip and consumer in granted:
                yield pod, keeper, consumer


def serves(pod: Pod) -> bool:
    """Whether the pooler takes clients in."""
    return pod.ready and not pod.terminating and bool(pod.ip)


def _attempted(process: str, generation: str, restarts: int, world: World) -> bool:
    shown = world.shown.get(process)
    return shown is not None and (shown.generation, shown.restarts) == (generation, restarts)
