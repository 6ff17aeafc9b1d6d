"""What is read of the workloads behind app pods, how long it counts, and what becomes of a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from poolkeeper import names
from poolkeeper.credentials.logins import Logins
from poolkeeper.kube.client import Conflict, Refused
from poolkeeper.observed.apps import Workload
from poolkeeper.observed.refs import ApiRefusal, Owner, Ref
from poolkeeper.plan.keeper_rollout import Restart
from poolkeeper.store import reading, workloads
from poolkeeper.store.store import Store
from poolkeeper.store.workload_reading import workload
from poolkeeper.workers import restarts
from tests.fast.plan.test_keeper_rollout import live
from tests.fast.store.test_app_pods import asking, secret
from tests.fast.worlds import KEY, SETTINGS, body

Object = dict[str, Any]

SET = Owner("web", "ReplicaSet", "a-1", "uid-of-a-1")


def controlled_by(kind: str, name: str, uid: str, api_version: str = "apps/v1", **more: Any) -> Object:
    owner = {"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": True, **more}
    return {"ownerReferences": [owner]}


class Objects:
    """An API server with these objects; `refuses` is raised for those named."""

    def __init__(self, *objects: Object, refuses: Mapping[str, Exception] | None = None) -> None:
        self.objects = {(item["kind"], item["metadata"]["name"]): item for item in objects}
        self.refuses = refuses or {}
        self.asked: list[str] = []
        self.posted: list[str] = []
        self.patched: list[tuple[Ref, str, str, Mapping[str, str]]] = []

    async def get(self, ref: Ref) -> Object | None:
        self.asked.append(f"{ref.kind} {ref.name}")
        if ref.name in self.refuses:
            raise self.refuses[ref.name]
        return self.objects.get((ref.kind, ref.name))

    async def post(self, body: Mapping[str, Any]) -> Object:
        self.posted.append(
            f"{body['involvedObject']['kind']} {body['involvedObject']['name']} {body['reason']}"
        )
        if "post" in self.refuses:
            raise self.refuses["post"]
        return {}

    async def annotate_template(
        self, ref: Ref, uid: str, version: str, annotations: Mapping[str, str]
    ) -> Object:
        self.patched.append((ref, uid, version, annotations))
        if "patch" in self.refuses:
            raise self.refuses["patch"]
        made = live()
        made["metadata"] |= {"generation": 4, "resourceVersion": "8"}
        made["spec"]["template"]["metadata"]["annotations"] |= annotations
        return made


def replica_set(**metadata: Any) -> Object:
    above = controlled_by("Deployment", "a", "u")
    return {
        "kind": "ReplicaSet",
        "metadata": {"namespace": "web", "name": "a-1", "uid": SET.uid, **above, **metadata},
    }


def seen(cluster: Objects, *owners: Owner) -> dict[Owner, Workload | ApiRefusal | None]:
    memory = Store(SETTINGS)
    asyncio.run(restarts.look(cluster, memory, KEY, owners))  # type: ignore[arg-type]
    return dict(memory.world(KEY, Logins()).workloads)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (controlled_by("ReplicaSet", "a-1", "u"), Owner("web", "ReplicaSet", "a-1", "u")),
        (controlled_by("StatefulSet", "a", "u"), Owner("web", "StatefulSet", "a", "u")),
        (controlled_by("DaemonSet", "a", "u"), Owner("web", "DaemonSet", "a", "u")),
        (controlled_by("Job", "a", "u", "batch/v1"), None),
        (controlled_by("StatefulSet", "a", "u", "apps.kruise.io/v1beta1"), None),
        (controlled_by("ReplicaSet", "a-1", "u", controller=False), None),
        ({}, None),
    ],
    ids=["ReplicaSet", "StatefulSet", "DaemonSet", "Job", "of another group", "no controller", "bare"],
)
def test_a_pods_controller_counts_where_a_restart_would_replace_the_pod(
    metadata: Object, expected: Owner | None
) -> None:
    pod = asking()
    pod["metadata"] |= metadata
    found = reading.app_pod(pod)
    assert found is not None
    assert found.owner == expected


def test_behind_a_replica_set_stands_its_deployment() -> None:
    cluster = Objects(replica_set(), live(), live("StatefulSet"))
    direct = Owner("web", "StatefulSet", "a", "u")
    assert seen(cluster, SET, direct) == {SET: workload(live()), direct: workload(live("StatefulSet"))}


@pytest.mark.parametrize(
    "objects",
    [
        (),
        (replica_set(),),
        (replica_set(uid="another"), live()),
        (replica_set(ownerReferences=[]), live()),
        (replica_set(**controlled_by("Rollout", "a", "u", "argoproj.io/v1alpha1")), live()),
        (replica_set(**controlled_by("Deployment", "a", "of one before")), live()),
    ],
    ids=["gone", "Deployment gone", "another set", "bare set", "another kind", "another Deployment"],
)
def test_what_a_pod_says_of_its_owner_has_to_be_so(objects: tuple[Object, ...]) -> None:
    assert seen(Objects(*objects), SET) == {SET: None}


def test_nobody_asks_on_where_the_right_is_missing() -> None:
    owners = [Owner("web", "StatefulSet", f"s-{number:02}", "u") for number in range(40)]
    cluster = Objects(refuses={"s-03": Refused("Forbidden", "cannot get")})
    found = seen(cluster, *owners)
    assert found[owners[3]] == ApiRefusal("Forbidden", "cannot get")
    assert len(cluster.asked) < 20


def restarted(cluster: Objects) -> tuple[bool, Workload | ApiRefusal | None]:
    memory, known = Store(SETTINGS), workload(live())
    steps = Restart(SET, known, {"poolkeeper.io/restarted-for-database": "new"})
    done = asyncio.run(restarts.restart(cluster, memory, KEY, steps))  # type: ignore[arg-type]
    assert cluster.patched == [(known.ref, "u", "7", steps.annotations)]
    return done, memory.world(KEY, Logins()).workloads[SET]


@pytest.mark.parametrize(
    "refuses", [{}, {"post": Conflict("Conflict", "there")}, {"post": Refused("Forbidden", "no")}]
)
def test_a_restart_is_remembered_as_one_that_goes_on_and_told_to_its_owner(
    refuses: Mapping[str, Exception],
) -> None:
    cluster = Objects(refuses=refuses)
    done, known = restarted(cluster)
    assert done
    assert cluster.posted == ["Deployment a RestartedForKeeper"]
    assert isinstance(known, Workload)
    assert (known.marks, known.complete) == ({"poolkeeper.io/restarted-for-database": "new"}, False)


def test_a_workload_that_was_changed_meanwhile_is_read_again() -> None:
    changed = live(spec={"paused": True})
    done, known = restarted(Objects(replica_set(), changed, refuses={"patch": Conflict("Conflict", "changed")}))
    assert (done, known) == (False, workload(changed))


def test_a_workload_that_may_not_be_changed_holds_up_nobody_else() -> None:
    done, known = restarted(Objects(refuses={"patch": Refused("Forbidden", "a webhook says no")}))
    assert not done
    assert known == replace(workload(live()), held="the API server refuses to change it (a webhook says no)")


# --- how long it counts ---------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(workloads, "time", made)
    return made


@pytest.fixture
def memory() -> Store:
    """With one app pod, of the ReplicaSet."""
    made = Store(SETTINGS)
    resource = body()
    resource["metadata"]["resourceVersion"] = "1"
    made.observe(resource)
    child = secret()
    child["metadata"]["labels"] = {names.ROLE_LABEL: names.ROLE_CONSUMER}
    made.observe(child)
    pod = asking()
    pod["metadata"] |= controlled_by("ReplicaSet", SET.name, SET.uid)
    made.observe(pod)
    assert [one.owner for one in made.world(KEY, Logins()).app_pods] == [SET]
    return made


def due(memory: Store) -> tuple[set[Owner], set[Owner]]:
    """(known, to be read again) in the next run."""
    memory.begin(KEY)
    world = memory.world(KEY, Logins())
    return set(world.workloads), set(world.workloads_due)


BUSY = workload(live(availableReplicas=1))


@pytest.mark.parametrize(
    ("known", "seconds"),
    [
        (workload(live()), workloads.WORKLOAD_SECONDS),
        (None, workloads.WORKLOAD_SECONDS),
        (BUSY, workloads.WORKLOAD_BUSY_SECONDS),
        (ApiRefusal("Forbidden", "no"), workloads.WORKLOAD_BUSY_SECONDS),
    ],
    ids=["at rest", "none", "busy", "refused"],
)
def test_what_was_read_counts_for_a_while(
    known: Workload | ApiRefusal | None, seconds: float, memory: Store, clock: Clock
) -> None:
    memory.workloads.put(KEY, SET, known)
    clock.now += seconds - 0.1
    assert due(memory) == ({SET}, set())
    clock.now += 0.2
    assert due(memory) == ({SET}, {SET})
    memory.workloads.put(KEY, SET, known)
    assert memory.world(KEY, Logins()).workloads_due == frozenset()


def test_workloads_without_pods_are_forgotten_unless_they_are_being_restarted(
    memory: Store, clock: Clock
) -> None:
    other, third = SET._replace(name="other"), SET._replace(name="third")
    memory.workloads.put(KEY, SET, workload(live()))
    memory.workloads.put(KEY, other, workload(live()))
    memory.workloads.put(KEY, third, BUSY)
    assert BUSY.marks
    assert due(memory)[0] == {SET, third}
    clock.now += 5
    assert due(memory) == ({SET, third}, {third})


def test_nothing_of_it_is_left_when_the_resource_is_gone(memory: Store) -> None:
    memory.workloads.put(KEY, SET, workload(live()))
    memory.forget(Ref(names.KIND, KEY.namespace, KEY.name))
    assert memory.world(KEY, Logins()).workloads == {}
