"""App pods with keepers: what is made of what the API server shows, whom it concerns, and who gains nothing."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

from poolkeeper import names
from poolkeeper.credentials.logins import Logins
from poolkeeper.keeper.injection import inject
from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.observed.consoles import Shown
from poolkeeper.observed.refs import Key, Ref
from poolkeeper.store import reading
from poolkeeper.store.store import Store
from tests.fast.worlds import KEY, SETTINGS, UID, body

Object = dict[str, Any]
NOBODY: frozenset[Key] = frozenset()
TEMPLATE = KeeperTemplate("pgbouncer:1", "IfNotPresent", None, "shop", "shop.session")


def asking(
    name: str = "app-1", namespace: str = "web", version: int = 1, databases: str = "database"
) -> Object:
    """A pod as its owner wrote it, bound to a node and running."""
    first = databases.split(",")[0]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": f"uid-of-{name}",
            "resourceVersion": str(version),
            "labels": {names.DATABASE_LABEL: first},
            "annotations": {names.DATABASES_ANNOTATION: databases},
        },
        "spec": {"containers": [{"name": "app", "image": "app:1"}]},
        "status": {"phase": "Running", "podIP": "10.1.0.7"},
    }


def with_keepers(pod: Object) -> Object:
    """What injection and kubelet make of it."""
    asked = pod["metadata"]["annotations"][names.DATABASES_ANNOTATION].split(",")
    made = inject(pod, dict.fromkeys(asked, TEMPLATE)).pod
    made["status"]["initContainerStatuses"] = [
        {"name": item["name"], "restartCount": 2, "state": {"running": {}}}
        for item in made["spec"]["initContainers"]
    ]
    return made


def secret(
    namespace: str = "web", name: str = "database", owner: str = "data/shop", version: int = 1
) -> Object:
    of, _, database = owner.partition("/")
    return {
        "kind": "Secret",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": f"uid-of-{namespace}-{name}",
            "resourceVersion": str(version),
            "labels": names.child_labels(of, database, UID, names.ROLE_CONSUMER),
            "annotations": {names.OWNER_ANNOTATION: owner},
        },
    }


def filled() -> Store:
    store = Store(SETTINGS)
    resource = body()
    resource["metadata"]["resourceVersion"] = "1"
    store.observe(resource)
    store.observe(secret())
    return store


def seen(store: Store) -> list[str]:
    return [pod.name for pod in store.world(KEY, Logins()).app_pods]


def test_a_pod_with_a_keeper_is_seen_with_its_port_image_and_state() -> None:
    pod = reading.app_pod(with_keepers(asking()))
    assert pod is not None
    [keeper] = pod.keepers
    assert (keeper.secret_name, keeper.image, keeper.port) == ("database", "pgbouncer:1", 6432)
    assert (keeper.running, keeper.restarts, keeper.generation) == (True, 2, "")
    assert (pod.ip, pod.lacks, pod.terminating) == ("10.1.0.7", (), False)


def test_a_keeper_that_was_injected_although_it_resolves_nothing_is_seen_f12() -> None:
    made = with_keepers(asking())
    for changes, resolves in (
        ({}, True),
        ({"dnsPolicy": "ClusterFirst"}, True),
        ({"dnsPolicy": "Default"}, False),
    ):
        pod = reading.app_pod({**made, "spec": {**made["spec"], **changes}})
        assert pod is not None
        assert (pod.obstacle == "") == resolves
    pod = reading.app_pod({**asking(), "spec": {"containers": [], "dnsPolicy": "Default"}})
    assert pod is not None
    assert pod.obstacle == "", "it has no keeper"


def test_each_of_several_keepers_has_a_generation_of_its_own() -> None:
    """They may belong to different PooledDatabases, each of which tells its own what to show."""
    made = with_keepers(asking(databases="database,reports"))
    made["metadata"]["annotations"]["poolkeeper.io/keeper-2-generation"] = "abc"
    pod = reading.app_pod(made)
    assert pod is not None
    assert [(item.secret_name, item.port, item.generation) for item in pod.keepers] == [
        ("database", 6432, ""),
        ("reports", 6433, "abc"),
    ]


def test_what_a_pod_asks_for_and_has_no_keeper_for_is_noted() -> None:
    pod = reading.app_pod(asking(databases="database,reports"))
    assert pod is not None
    assert (pod.keepers, pod.lacks) == ((), ("database", "reports"))
    confused = asking()
    confused["metadata"]["annotations"][names.DATABASES_ANNOTATION] = "other"
    pod = reading.app_pod(confused)
    assert pod is not None
    assert pod.lacks == ("database",)


def test_a_keeper_that_does_not_run_yet_and_one_without_a_status_are_not_running() -> None:
    made = with_keepers(asking())
    made["status"]["initContainerStatuses"][0]["state"] = {"waiting": {}}
    statuses: list[Any] = [made["status"], {}]
    for status in statuses:
        pod = reading.app_pod({**made, "status": status})
        assert pod is not None
        assert not pod.keepers[0].running


def test_a_finished_pod_is_none() -> None:
    for phase in ("Succeeded", "Failed"):
        made = with_keepers(asking())
        made["status"]["phase"] = phase
        assert reading.app_pod(made) is None


def test_the_operator_is_not_led_to_an_address_of_the_node() -> None:
    made = with_keepers(asking())
    made["spec"]["hostNetwork"] = True
    pod = reading.app_pod(made)
    assert pod is not None
    assert pod.keepers == ()


def test_a_pod_concerns_the_owner_of_the_secret_that_it_names() -> None:
    store = filled()
    assert store.observe(asking()) == {KEY}
    assert seen(store) == ["app-1"]
    assert store.observe(with_keepers(asking(version=2))) == {KEY}
    assert store.observe(with_keepers(asking(version=3))) == NOBODY
    assert store.observe(with_keepers(asking(version=4)), deleted=True) == {KEY}
    assert seen(store) == []


def test_a_pod_that_names_nobodys_secret_concerns_nobody_until_the_secret_is_there() -> None:
    store = filled()
    assert store.observe(asking(namespace="elsewhere")) == NOBODY
    assert seen(store) == []
    assert store.observe(secret("elsewhere")) == {KEY}
    assert seen(store) == ["app-1"]


def test_a_pod_of_two_databases_is_seen_by_both() -> None:
    store = filled()
    store.observe(secret(name="reports", owner="data/reports"))
    assert store.observe(asking(databases="database,reports")) == {KEY, Key("data", "reports")}
    assert [pod.name for pod in store.world(Key("data", "reports"), Logins()).app_pods] == ["app-1"]


def test_a_finished_pod_is_forgotten() -> None:
    store = filled()
    store.observe(with_keepers(asking()))
    finished = with_keepers(asking(version=2))
    finished["status"]["phase"] = "Succeeded"
    assert store.observe(finished) == {KEY}
    assert seen(store) == []


def test_a_pod_that_claims_to_be_a_pooler_of_another_namespace_is_an_app_pod_at_most() -> None:
    store = filled()
    forged = with_keepers(asking())
    forged["metadata"]["labels"][names.ROLE_LABEL] = names.ROLE_POOLER
    forged["metadata"]["annotations"][names.OWNER_ANNOTATION] = "data/shop"
    assert store.observe(forged) == {KEY}
    assert not store.world(KEY, Logins()).pods
    assert seen(store) == ["app-1"]


def test_an_app_pod_that_names_an_owner_is_no_pooler_without_the_role() -> None:
    store = filled()
    forged = with_keepers(asking(namespace="data"))
    forged["metadata"]["annotations"][names.OWNER_ANNOTATION] = "data/shop"
    store.observe(forged)
    assert not store.world(KEY, Logins()).pods


def test_what_a_keeper_showed_goes_with_its_pod_and_stays_with_an_unrelated_change() -> None:
    store = filled()
    store.observe(with_keepers(asking()))
    store.processes.show("uid-of-app-1/keeper", Shown("g", 2, ""))
    moved = with_keepers(asking(version=2))
    moved["status"]["podIP"] = "10.1.0.8"
    store.observe(moved)
    assert store.world(KEY, Logins()).shown == {"uid-of-app-1/keeper": Shown("g", 2, "")}
    store.observe(copy.deepcopy(moved), deleted=True)
    store.observe(with_keepers(asking(version=9)))
    assert store.world(KEY, Logins()).shown == {}


def test_a_keeper_that_failed_is_not_tried_again_in_every_run() -> None:
    store = filled()
    store.observe(with_keepers(asking()))
    store.processes.show("uid-of-app-1/keeper", Shown("g", 2, "no answer"))
    store.begin(KEY)
    assert store.world(KEY, Logins()).shown
    store.processes.unshow("uid-of-app-1/keeper")
    assert not store.world(KEY, Logins()).shown


async def pages(*objects: Object, version: int) -> AsyncIterator[tuple[list[Object], int]]:
    yield list(objects), version


async def test_a_complete_list_removes_the_pods_that_it_lacks() -> None:
    store = filled()
    store.observe(asking("app-1"))
    store.observe(asking("app-2", version=2))
    assert await store.replace("Pod", pages(asking("app-2", version=2), version=5)) == {KEY}
    assert seen(store) == ["app-2"]
    assert await store.replace("Pod", pages(version=6)) == {KEY}
    assert seen(store) == []


def test_nothing_is_left_of_pods_that_are_gone() -> None:
    """Each asks for another Secret, whose name its owner makes up."""
    store = filled()
    store.observe(asking())
    tracemalloc.start()
    try:
        for number in range(1000):
            pod = asking("app-2", databases=f"made-up-{number}")
            store.observe(pod)
            store.observe(pod, deleted=True)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2**17
    assert seen(store) == ["app-1"]


def test_a_pod_that_was_found_gone_is_forgotten_but_not_its_successor_of_the_same_name() -> None:
    store, ref = filled(), Ref("Pod", "web", "app-1")
    store.observe(with_keepers(asking()))
    assert store.forget(ref, "uid-of-the-one-before") == NOBODY
    assert seen(store) == ["app-1"]
    assert store.forget(ref, "uid-of-app-1") == {KEY}
    assert seen(store) == []
