"""What is planned for running keepers and for poolers that leave, and what the status says of keepers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poolkeeper import names
from poolkeeper.kube.client import Refused
from poolkeeper.observed.apps import AppPod, Keeper
from poolkeeper.observed.consoles import ConsoleAccess, Shown
from poolkeeper.observed.refs import Key
from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.clients import KeeperConsole
from poolkeeper.pgbouncer.configuration import Configuration
from poolkeeper.pgbouncer.console import Answer
from poolkeeper.plan.plan import Plan
from poolkeeper.plan.reloads import Leaving, Reload
from poolkeeper.queue import Queue
from poolkeeper.store.store import Store
from poolkeeper.workers import background
from poolkeeper.workers.background import Background
from poolkeeper.workers.drain import Drained
from tests.fast.worlds import KEY, NOW, SETTINGS, Simulation, ready_pod

IMAGE = "keeper:1"


def app(number: int = 1, **changes: Any) -> AppPod:
    keeper = Keeper("keeper", "database", IMAGE, "Trust", 6432, running=True, restarts=0, generation="")
    keepers = (replace(keeper, **{key: changes.pop(key) for key in list(changes) if hasattr(keeper, key)}),)
    pod = AppPod("web", f"app-{number}", f"uid-{number}", f"10.1.0.{number}", False, keepers, ())
    return replace(pod, **changes)


@pytest.fixture
def cluster() -> Simulation:
    made = Simulation(pods=(ready_pod(1), ready_pod(2)))
    made.edit(keeper={"enabled": True, "image": IMAGE})
    made.settle()
    return made


def current(cluster: Simulation) -> dict[str, Any]:
    cluster.step()
    return cluster.condition("KeepersCurrent")


def test_without_pods_that_ask_for_one_there_is_nothing_to_say(cluster: Simulation) -> None:
    assert (current(cluster)["status"], current(cluster)["reason"]) == ("True", "NoKeepers")


def test_a_keeper_that_was_not_looked_at_is_brought_to_the_configuration(cluster: Simulation) -> None:
    cluster.app_pods = (app(1), app(2))
    steps = cluster.plan()
    assert steps.settled, "it does not hold up what else is to be done"
    assert [(item.namespace, item.pod, item.access.ip, item.access.port) for item in steps.keepers] == [
        ("web", "app-1", "10.1.0.1", 6432),
        ("web", "app-2", "10.1.0.2", 6432),
    ]
    [config] = {item.configuration.generation for item in steps.keepers}
    assert steps.keepers[0].annotations == {"poolkeeper.io/keeper-generation": config}
    assert steps.keepers[0].configuration.settings["server_lifetime"] == "20"
    assert steps.keepers[0].access.name.endswith(".keeper"), "the certificate is the keepers' own"
    cluster.settle()
    cluster.step()
    assert cluster.plan().keepers == ()
    assert (current(cluster)["status"], current(cluster)["message"]) == (
        "True",
        "2 keepers show their configuration",
    )


def test_a_keeper_that_resolves_nothing_is_not_current_whatever_it_shows_f12(cluster: Simulation) -> None:
    cluster.app_pods = (app(1), app(2, obstacle="has dnsPolicy Default; set it to ClusterFirst"))
    cluster.settle()
    found = current(cluster)
    assert (found["status"], found["reason"]) == ("False", "NotResolving")
    assert found["message"] == (
        "1 of 2 keepers do not find the poolers; pod web/app-2 has dnsPolicy Default; set it to ClusterFirst"
    )


def test_a_keeper_that_was_annotated_before_is_not_annotated_again(cluster: Simulation) -> None:
    cluster.app_pods = (app(1),)
    config = cluster.plan().keepers[0].configuration
    cluster.app_pods = (app(1, generation=config.generation),)
    assert cluster.plan().keepers[0].annotations == {}


def test_a_change_reaches_keepers_and_a_change_of_poolers_alone_does_not(cluster: Simulation) -> None:
    cluster.app_pods = (app(1),)
    cluster.settle()
    before = cluster.log.count("keeper app-1 " + cluster.shown["uid-1/keeper"].generation)
    cluster.edit(pooler={"parameters": {"query_wait_timeout": 20}})
    cluster.settle()
    assert sum(line.startswith("keeper") for line in cluster.log) == before == 1
    cluster.edit(keeper={"enabled": True, "image": IMAGE, "poolSize": 7})
    cluster.settle()
    cluster.step()
    assert sum(line.startswith("keeper") for line in cluster.log) == 2
    assert current(cluster)["status"] == "True"


@pytest.mark.parametrize(
    "changes",
    [
        {"running": False},
        {"terminating": True},
        {"ip": ""},
        {"secret_name": "another"},
        {"namespace": "elsewhere"},
    ],
)
def test_what_is_not_there_or_nobodys_consumer_is_left_alone(
    changes: Mapping[str, Any], cluster: Simulation
) -> None:
    """A pod can name any Secret: only a consumer's keepers are ever visited."""
    cluster.app_pods = (app(1, **changes),)
    assert cluster.plan().keepers == ()


def test_a_restarted_keeper_is_looked_at_again(cluster: Simulation) -> None:
    cluster.app_pods = (app(1),)
    cluster.settle()
    cluster.app_pods = (app(1, restarts=1),)
    assert [item.restarts for item in cluster.plan().keepers] == [1]


def test_a_keeper_that_cannot_be_reached_is_named_with_the_remedy(cluster: Simulation) -> None:
    cluster.app_pods = (app(1), app(2))
    cluster.settle()
    shown = cluster.shown["uid-2/keeper"]
    cluster.shown["uid-2/keeper"] = replace(shown, problem="console at 10.1.0.2:6432: no answer within 4 s")
    found = current(cluster)
    assert (found["status"], found["reason"]) == ("False", "NotShown")
    for part in ("1 of 2 keepers", "web/app-2", "no answer within 4 s", "NetworkPolicies of namespace web"):
        assert part in found["message"]
    assert cluster.condition("Ready")["status"] == "True"
    assert cluster.plan().requeue is not None


def test_a_pod_without_its_keeper_is_named_with_the_remedy(cluster: Simulation) -> None:
    cluster.app_pods = (app(1), app(2, keepers=(), lacks=("database",)), app(3, keepers=(), lacks=("other",)))
    cluster.settle()
    found = current(cluster)
    assert (found["status"], found["reason"]) == ("False", "KeeperMissing")
    assert found["message"].startswith("1 pod has the label poolkeeper.io/database and no keeper")
    assert "delete pod web/app-2, or restart its workload" in found["message"]


def test_a_keeper_of_an_older_image_is_counted_and_left_running(cluster: Simulation) -> None:
    cluster.app_pods = (app(1, image="keeper:0"), app(2, image="keeper:0"))
    cluster.settle()
    found = current(cluster)
    assert (found["status"], found["reason"]) == ("False", "ImageOutdated")
    assert found["message"].startswith("2 keepers run another image than keeper:1")


def scram(cluster: Simulation, auth: str = "Scram") -> None:
    cluster.edit(keeper={"enabled": True, "image": IMAGE, "auth": auth})
    cluster.settle()


def test_a_keeper_from_before_a_password_was_demanded_is_counted_and_serves(cluster: Simulation) -> None:
    cluster.app_pods = (app(1), app(2), app(3, auth="Scram"))
    scram(cluster)
    found = current(cluster)
    assert (found["status"], found["reason"]) == ("False", "AuthOutdated")
    assert found["message"].startswith("2 keepers take their apps in without a password, from before")
    assert "became Scram; restart the workloads" in found["message"]
    settings = {item.pod: item.configuration.settings["auth_hba_file"] for item in forgotten(cluster).keepers}
    assert settings["app-1"] == settings["app-2"]
    assert "/hba-scram-" not in settings["app-1"]
    assert "/hba-scram-" in settings["app-3"]


def forgotten(cluster: Simulation) -> Plan:
    """The plan of an operator that has seen the poolers' consoles only."""
    cluster.shown = {key: value for key, value in cluster.shown.items() if "/" not in key}
    return cluster.plan()


def test_a_password_is_there_for_as_long_as_a_pod_needs_it(cluster: Simulation) -> None:
    assert "app-password" not in cluster.values("web", "database-keeper")
    scram(cluster)
    password = cluster.values("web", "database-keeper")["app-password"]
    cluster.app_pods = (app(1, auth="Scram", running=False),)
    scram(cluster, "Trust")
    values = cluster.values("web", "database-keeper")
    assert values["app-password"] == password
    assert "scram.ini" in values
    cluster.app_pods = (app(1, auth="Scram"),)
    cluster.settle()
    found = current(cluster)
    assert found["reason"] == "AuthOutdated"
    assert found["message"].startswith("1 keeper demands a password of its app, from before")
    cluster.app_pods = (app(1),)
    cluster.settle()
    assert "app-password" not in cluster.values("web", "database-keeper")
    assert current(cluster)["status"] == "True"


def test_keepers_that_are_switched_off_but_run_are_told_of(cluster: Simulation) -> None:
    cluster.app_pods = (app(1),)
    cluster.settle()
    cluster.edit(keeper={"enabled": False})
    cluster.settle()
    assert (current(cluster)["status"], current(cluster)["reason"]) == ("False", "Disabled")
    cluster.app_pods = ()
    assert (current(cluster)["status"], current(cluster)["reason"]) == ("True", "Disabled")


def test_while_keepers_are_being_changed_the_status_stays_as_it_was(cluster: Simulation) -> None:
    cluster.app_pods = (app(1),)
    cluster.settle()
    cluster.step()
    before = cluster.condition("KeepersCurrent")
    cluster.shown.clear()
    for pod in cluster.pods:
        cluster.shown[pod.uid] = Shown(cluster.plan().reload[0].shown_as, 0, "", cluster.version)
    assert cluster.plan().keepers
    assert cluster.plan().status is None
    assert cluster.condition("KeepersCurrent") == before


def test_a_pooler_that_terminates_is_drained_until_it_is_killed(cluster: Simulation) -> None:
    cluster.app_pods = (app(1), app(2, terminating=True))
    cluster.settle()
    killed_at = NOW + timedelta(seconds=30)
    cluster.pods = (replace(ready_pod(1), terminating=True, grace=35.0, killed_at=killed_at), ready_pod(2))
    steps = cluster.plan()
    [pod] = steps.leaving
    assert (pod.uid, pod.access.ip, pod.since, pod.left) == ("pod-1", "10.0.0.1", 5.0, 30.0)
    assert [item.name for item in steps.moving] == ["web/app-1", "web/app-2"], "also those that are ending"
    cluster.pods = (replace(cluster.pods[0], killed_at=NOW - timedelta(seconds=1)), ready_pod(2))
    assert cluster.plan().leaving == ()


def test_nobody_leaves_a_pooler_before_another_one_serves(cluster: Simulation) -> None:
    cluster.app_pods = (app(1),)
    cluster.settle()
    killed_at = NOW + timedelta(seconds=30)
    leaving = replace(ready_pod(1), terminating=True, grace=35.0, killed_at=killed_at)
    cluster.pods = (leaving, replace(ready_pod(2), ready=False))
    assert cluster.plan().leaving
    assert cluster.plan().moving == ()


def test_a_drain_begins_although_other_work_is_to_be_done_first(cluster: Simulation) -> None:
    killed_at = NOW + timedelta(seconds=30)
    cluster.pods = (replace(ready_pod(1), terminating=True, grace=35.0, killed_at=killed_at), ready_pod(2))
    cluster.edit(pooler={"parameters": {"query_wait_timeout": 20}})
    steps: Plan = cluster.plan()
    assert not steps.settled
    assert steps.leaving


# --- the tasks in the background ----------------------------------------------------------------------------


def test_a_pooler_that_leaves_is_drained_while_the_spec_makes_no_sense(cluster: Simulation) -> None:
    cluster.app_pods = (app(1), app(2))
    cluster.settle()
    killed_at = NOW + timedelta(seconds=30)
    cluster.pods = (replace(ready_pod(1), terminating=True, grace=35.0, killed_at=killed_at), ready_pod(2))
    before = cluster.plan()
    cluster.edit(pooler={"replicas": -1})
    steps = cluster.plan()
    assert steps.status is not None
    assert {item["type"]: item["status"] for item in steps.status["conditions"]}["SpecValid"] == "False"
    assert steps.leaving == before.leaving != ()
    assert steps.moving == before.moving != ()


class Annotations:
    """Takes every annotation, but for pods that are gone or refused."""

    def __init__(self) -> None:
        self.made: list[str] = []

    async def __call__(self, namespace: str, pod: str, uid: str, annotations: Mapping[str, str]) -> bool:
        if pod == "refused":
            raise Refused("Forbidden", "not this pod")
        self.made.append(pod)
        return pod != "gone"


def reload(pod: str) -> Reload:
    config = Configuration("g", {}, {}, {}, frozenset())
    access = ConsoleAccess(f"ip-of-{pod}", 6432, "", "", "")
    return Reload(
        f"{pod}/keeper", "web", pod, pod, {names.KEEPER_GENERATION_ANNOTATION: "g"}, 0, access, config
    )


@pytest.fixture
def parts() -> tuple[Store, Queue[Key], Annotations, Background]:
    async def work(_: Key) -> None:
        raise AssertionError("nobody works here")

    store, queue, annotations = Store(SETTINGS), Queue(work, 1), Annotations()
    return store, queue, annotations, Background(store, queue, annotations)


Parts = tuple[Store, Queue[Key], Annotations, Background]


PODS = ("good", "lost", "gone", "refused", "false", "slow", "k")


def outcomes(store: Store) -> dict[str, str]:
    shown = store.processes.shown(f"{pod}/keeper" for pod in PODS)
    return {process: item.problem for process, item in shown.items()}


async def test_one_keeper_that_fails_does_not_keep_the_others_from_theirs(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, _, tasks = parts

    async def apply(access: ConsoleAccess, _config: Configuration, _timeout: float) -> Answer:
        if access.ip == "ip-of-false":
            raise KeyError("key")
        return Answer("no answer") if access.ip == "ip-of-lost" else Answer(None, "PgBouncer 1.26.1")

    monkeypatch.setattr(console, "apply", apply)
    assert await tasks.update(KEY, [reload(pod) for pod in ("good", "lost", "gone", "refused", "false")])
    assert outcomes(store) == {
        "good/keeper": "",
        "lost/keeper": "no answer",
        "refused/keeper": "not this pod",
        "false/keeper": "its console's tables lack 'key'; it is no keeper",
    }
    [good] = store.processes.shown(["good/keeper"]).values()
    assert good.version == "PgBouncer 1.26.1"


async def test_slow_keepers_are_not_waited_for_and_start_another_run(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, queue, _, tasks = parts
    answer = asyncio.Event()

    async def apply(_access: ConsoleAccess, _config: Configuration, _timeout: float) -> Answer:
        await answer.wait()
        return Answer(None)

    monkeypatch.setattr(console, "apply", apply)
    monkeypatch.setattr(background, "PATIENCE_SECONDS", 0.01)
    assert not await tasks.update(KEY, [reload("slow")])
    assert not await tasks.update(KEY, [reload("slow")]), "it is still the same one"
    assert queue.idle
    answer.set()
    while queue.idle:
        await asyncio.sleep(0)
    assert outcomes(store) == {"slow/keeper": ""}


async def test_a_pod_is_drained_once_and_the_drain_sees_the_keepers_of_every_moment(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, queue, _, tasks = parts
    seen: list[object] = []
    end = asyncio.Event()
    keeper = KeeperConsole("k/keeper", "web", "web/k", "web", ConsoleAccess("10.0.0.9", 6432, "", "", ""))

    async def drain(_departure: object, keepers: Any) -> Any:
        seen.append(keepers())
        await end.wait()
        seen.append(keepers())
        return Drained(True, {keeper: "no answer"})

    monkeypatch.setattr(tasks._keepers, "drain", drain)
    pod = Leaving("uid", "pod", ConsoleAccess("10.0.0.1", 6432, "", "", ""), 0.0, 30.0)
    store.processes.show("k/keeper", Shown("g", 0, ""))
    tasks.drain(KEY, [pod], ())
    await asyncio.sleep(0)
    tasks.drain(KEY, [pod], (keeper,))
    end.set()
    while queue.idle:
        await asyncio.sleep(0)
    tasks.drain(KEY, [pod], (keeper,))
    await asyncio.sleep(0)
    assert seen == [(), (keeper,)], "once, although the pod is still there"
    assert outcomes(store) == {}, "who could not be told to leave is looked at again"
    tasks.drain(KEY, [], ())
    assert tasks._drains == {}
