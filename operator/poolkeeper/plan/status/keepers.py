"""The condition KeepersCurrent: whether app pods have their keepers, each showing its configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from poolkeeper import names
from poolkeeper.consumers.consent import Consumer
from poolkeeper.observed.apps import AppPod, Keeper
from poolkeeper.plan.keeper_rollout import restarts
from poolkeeper.plan.reloads import running_keepers
from poolkeeper.plan.status.condition import FALSE, TRUE, UNKNOWN, Condition, last_known
from poolkeeper.plan.wanted import Wanted
from poolkeeper.plan.world import World
from poolkeeper.spec.types import TRUST, WORKLOAD

KIND = "KeepersCurrent"


def keepers_current(wanted: Wanted, world: World) -> Condition:
    """The condition. Not part of Ready: a keeper that is behind still serves."""
    pods = sorted(
        (pod for pod in world.app_pods if not pod.terminating), key=lambda pod: (pod.namespace, pod.name)
    )
    keepers = [
        (pod, keeper, consumer)
        for pod, keeper, consumer in running_keepers(wanted, world)
        if not pod.terminating
    ]
    keepers.sort(key=lambda item: (item[0].namespace, item[0].name, item[1].container))
    if wanted.configuration is None:
        return Condition(KIND, UNKNOWN, "NoUpstream", "keepers follow once the upstream's Secret is complete")
    faults = [fault for fault in _faults(wanted, world, pods, keepers) if fault is not None]
    if faults:
        return Condition(KIND, FALSE, faults[0][0], "; ".join(message for _, message in faults))
    if any(not _looked_at(pod, keeper, wanted, consumer, world) for pod, keeper, consumer in keepers):
        return last_known(world, KIND) or Condition(
            KIND, UNKNOWN, "Updating", "keepers are being brought to their configuration"
        )
    if not wanted.keepers:
        return Condition(KIND, TRUE, "Disabled", "spec.keeper.enabled is false, and no pod has a keeper")
    if not keepers:
        return Condition(KIND, TRUE, "NoKeepers", f"no pod with the label {names.DATABASE_LABEL} runs")
    return Condition(KIND, TRUE, "Current", f"{_counted(keepers, 'shows its', 'show their')} configuration")


Fault = tuple[str, str]
Running = tuple[AppPod, Keeper, Consumer]


def _faults(
    wanted: Wanted, world: World, pods: Sequence[AppPod], keepers: Sequence[Running]
) -> Iterable[Fault | None]:
    if not wanted.keepers:
        if keepers:
            yield (
                "Disabled",
                f"spec.keeper.enabled is false, but {_counted(keepers, 'still runs', 'still run')}, with a "
                "configuration that changes no more; restart their workloads, or enable keepers again",
            )
        return
    yield restarts(wanted, world).report
    yield _unresolving(keepers)
    yield _behind(wanted, world, keepers)
    yield _lacking(wanted, pods)
    yield _outdated(wanted, keepers)
    yield _another_auth(wanted, keepers)
    yield from wanted.keeper_restrictions


def _unresolving(keepers: Sequence[Running]) -> Fault | None:
    """Keepers that can't resolve the poolers' name, in pods from before such pods were refused."""
    found = [pod for pod, _, _ in keepers if pod.obstacle]
    if not found:
        return None
    pod = found[0]
    return (
        "NotResolving",
        f"{len(found)} of {len(keepers)} keepers do not find the poolers; pod {pod.namespace}/{pod.name} "
        f"{pod.obstacle}",
    )


def _behind(wanted: Wanted, world: World, keepers: Sequence[Running]) -> Fault | None:
    """Keepers whose reload was tried and failed."""
    failed = [
        (item, shown.problem)
        for item in keepers
        if (shown := world.shown.get(item[0].process(item[1]))) is not None and shown.problem
    ]
    if not failed:
        return None
    (pod, _, _), problem = failed[0]
    return (
        "NotShown",
        f"{len(failed)} of {len(keepers)} keepers do not show their configuration, and serve with the one they "
        f"have; pod {pod.namespace}/{pod.name}: {problem}; if it can't be reached, let NetworkPolicies of "
        f"namespace {pod.namespace} admit Poolkeeper's operator to the keeper's port",
    )


def _lacking(wanted: Wanted, pods: Sequence[AppPod]) -> Fault | None:
    lacking = [
        pod for pod in pods if any(Consumer(pod.namespace, name) in wanted.keepers for name in pod.lacks)
    ]
    if not lacking:
        return None
    pod = lacking[0]
    count = f"{len(lacking)} {'pod has' if len(lacking) == 1 else 'pods have'}"
    return (
        "KeeperMissing",
        f"{count} the label {names.DATABASE_LABEL} and no keeper, since none could be injected when they were "
        f"made; delete pod {pod.namespace}/{pod.name}, or restart its workload",
    )


def _outdated(wanted: Wanted, keepers: Sequence[Running]) -> Fault | None:
    """Keepers of another image. A new image needs a new pod, on which the pod's owner decides."""
    outdated = [item for item in keepers if item[1].image != wanted.templates[item[2]].image]
    if not outdated:
        return None
    pod, keeper, consumer = outdated[0]
    return (
        "ImageOutdated",
        f"{_counted(outdated, 'runs', 'run')} another image than {wanted.templates[consumer].image}"
        f"{_remedy(wanted)}; pod {pod.namespace}/{pod.name}: {keeper.image}",
    )


def _another_auth(wanted: Wanted, keepers: Sequence[Running]) -> Fault | None:
    """Keepers with another `auth`. The containers' variables go with it, and a pod keeps those for life."""
    outdated = [item for item in keepers if item[1].auth != wanted.templates[item[2]].auth]
    if not outdated:
        return None
    pod, _, consumer = outdated[0]
    auth = wanted.templates[consumer].auth
    if auth == TRUST:
        text = _counted(outdated, "demands a password of its app", "demand a password of their apps")
    else:
        text = _counted(
            outdated, "takes its app in without a password", "take their apps in without a password"
        )
    return (
        "AuthOutdated",
        f"{text}, from before spec.keeper.auth became {auth}{_remedy(wanted)}; pod {pod.namespace}/{pod.name}",
    )


def _remedy(wanted: Wanted) -> str:
    return "" if wanted.keeper_rollout == WORKLOAD else "; restart the workloads when it suits them"


def _counted(keepers: Sequence[Running], one: str, several: str) -> str:
    return f"{len(keepers)} keeper {one}" if len(keepers) == 1 else f"{len(keepers)} keepers {several}"


def _looked_at(pod: AppPod, keeper: Keeper, wanted: Wanted, consumer: Consumer, world: World) -> bool:
    config, shown = wanted.keepers.get(consumer), world.shown.get(pod.process(keeper))
    return config is None or (
        shown is not None and (shown.generation, shown.restarts) == (config.generation, keeper.restarts)
    )
