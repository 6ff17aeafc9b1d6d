"""Which workload the operator restarts for its keepers, in which order, and what it says of the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.observed.apps import AppPod, Workload
from poolkeeper.observed.refs import ApiRefusal, Owner, Ref
from poolkeeper.plan import keeper_rollout
from poolkeeper.plan.keeper_rollout import Restart
from poolkeeper.plan.plan import WATCH_SECONDS, Plan
from poolkeeper.store.workload_reading import workload
from tests.fast.plan.status.test_keepers import IMAGE, app
from tests.fast.worlds import Simulation, ready_pod

MARK = "poolkeeper.io/restarted-for-database"
NEWER = "keeper:2"


def owner(name: str) -> Owner:
    return Owner("web", "ReplicaSet", f"{name}-1", f"uid-of-{name}-1")


def deployed(name: str, **changes: Any) -> Workload:
    return Workload(
        **{
            "ref": Ref("Deployment", "web", name),
            "uid": f"uid-of-{name}",
            "version": "1",
            "asks": frozenset({"database"}),
            "marks": {},
            "complete": True,
            "held": "",
            "stalled": "",
            **changes,
        }
    )


def pod(number: int, name: str, **changes: Any) -> AppPod:
    return app(number, owner=owner(name), **changes)


@pytest.fixture
def cluster() -> Simulation:
    """Three workloads of one pod each, and a new image since they were made."""
    made = Simulation(pods=(ready_pod(1), ready_pod(2)))
    made.edit(keeper={"image": IMAGE, "rollout": "Workload"})
    made.app_pods = (pod(3, "c"), pod(2, "b"), pod(1, "a"))
    made.settle()
    made.edit(keeper={"image": NEWER, "rollout": "Workload"})
    made.workloads = {owner(name): deployed(name) for name in "abc"}
    made.settle()
    return made


def see(cluster: Simulation, name: str, **changes: Any) -> None:
    known = cluster.workloads[owner(name)]
    assert isinstance(known, Workload)
    cluster.workloads = {**cluster.workloads, owner(name): replace(known, **changes)}


def restarted(cluster: Simulation) -> Restart:
    steps = cluster.plan()
    assert steps.settled
    assert steps.restart is not None
    return steps.restart


def report(cluster: Simulation) -> tuple[str, str]:
    cluster.step()
    found = cluster.condition("KeepersCurrent")
    assert found["status"] == "False"
    assert cluster.condition("Ready")["status"] == "True"
    return found["reason"], found["message"]


def test_workloads_are_restarted_one_after_the_other_in_order(cluster: Simulation) -> None:
    pods = {"a": 1, "b": 2, "c": 3}
    for name in "abc":
        step = restarted(cluster)
        assert (step.workload.ref.name, set(step.annotations)) == (name, {MARK})
        see(cluster, name, version="2", marks=dict(step.annotations), complete=False)
        steps = cluster.plan()
        assert (steps.restart, steps.look, steps.requeue) == (None, (), WATCH_SECONDS)
        reason, message = report(cluster)
        assert reason == "Restarting"
        assert message.startswith(f"Deployment web/{name} is being restarted")
        del pods[name]
        new = app(9, owner=owner(name), image=NEWER)
        cluster.app_pods = (new, *(pod(number, other) for other, number in pods.items()))
        if pods:
            assert cluster.plan().restart is None, "the new pods are there, and not all of them available"
        see(cluster, name, version="3", complete=True)
    cluster.settle()
    assert cluster.condition("KeepersCurrent")["status"] == "True"
    assert (cluster.plan().restart, cluster.plan().look) == (None, ())


def test_the_owners_restart_them_unless_asked_otherwise(cluster: Simulation) -> None:
    cluster.edit(keeper={"image": NEWER})
    cluster.settle()
    assert (cluster.plan().restart, cluster.plan().look) == (None, ())
    reason, message = report(cluster)
    assert reason == "ImageOutdated"
    assert "restart the workloads when it suits them" in message


@pytest.mark.parametrize(
    "changes",
    [{"auth": "Scram"}, {"keepers": (), "lacks": ("database",)}, {"image": "keeper:0", "running": False}],
    ids=["auth", "lacks its keeper", "does not run"],
)
def test_whatever_a_new_pod_would_have_otherwise_is_a_reason(changes: dict[str, Any]) -> None:
    cluster = Simulation(pods=(ready_pod(1), ready_pod(2)))
    cluster.edit(keeper={"image": IMAGE, "rollout": "Workload"})
    cluster.app_pods = (pod(1, "a", **changes),)
    cluster.workloads = {owner("a"): deployed("a")}
    cluster.settle()
    assert restarted(cluster).workload.ref.name == "a"


def test_nothing_is_restarted_before_new_pods_get_what_they_should(cluster: Simulation) -> None:
    cluster.edit(keeper={"image": "keeper:3", "rollout": "Workload"})
    before = cluster.plan()
    assert not before.settled
    assert before.restart is None
    cluster.settle()
    assert restarted(cluster).annotations != before_digest(cluster)


def before_digest(cluster: Simulation) -> dict[str, str]:
    return {MARK: keeper_rollout.value(template(NEWER))}


def template(image: str, auth: str = "Trust", **changes: Any) -> KeeperTemplate:
    return replace(KeeperTemplate(image, "Always", None, "shop", "shop.session", auth), **changes)


def test_the_mark_follows_from_what_a_restart_is_for_and_from_nothing_else() -> None:
    one = keeper_rollout.value(template("keeper:1"))
    assert one == keeper_rollout.value(template("keeper:1", resources={"limits": {}}, database="other"))
    assert (
        len(
            {
                one,
                keeper_rollout.value(template("keeper:2")),
                keeper_rollout.value(template("keeper:1", "Scram")),
            }
        )
        == 3
    )
    long = keeper_rollout.annotation("x" * 245)
    assert len(long.removeprefix("poolkeeper.io/")) == 63
    assert long != keeper_rollout.annotation("x" * 244)


def test_what_was_restarted_for_this_is_never_restarted_for_it_again(cluster: Simulation) -> None:
    """Its pods are behind for another reason: nobody injects them."""
    marks = restarted(cluster).annotations
    for name in "abc":
        see(cluster, name, marks=dict(marks))
    assert cluster.plan().restart is None
    reason, message = report(cluster)
    assert reason == "LeftAlone"
    assert "Deployment web/a was restarted for this and has pods that are behind all the same" in message
    assert cluster.plan().requeue != WATCH_SECONDS
    cluster.edit(keeper={"image": "keeper:3", "rollout": "Workload"})
    cluster.settle()
    assert restarted(cluster).workload.ref.name == "a"


def test_a_restart_that_does_not_end_holds_up_the_others_and_is_told_of(cluster: Simulation) -> None:
    marks = dict(restarted(cluster).annotations)
    see(cluster, "a", marks=marks, complete=False, stalled="ReplicaSet a-2 has timed out")
    assert cluster.plan().restart is None
    assert "makes no progress (ReplicaSet a-2 has timed out); 2 more wait for it" in report(cluster)[1]
    cluster.app_pods = cluster.app_pods[:2]
    assert cluster.plan().restart is None, "also between its old pods and its new ones"


def test_an_image_that_was_wrong_can_be_put_right(cluster: Simulation) -> None:
    see(cluster, "a", marks={MARK: "another"}, complete=False)
    assert restarted(cluster).workload.ref.name == "a"


@pytest.mark.parametrize("why", ["it is paused", "its updateStrategy is OnDelete"])
def test_a_workload_whose_pods_a_restart_would_not_replace_is_left_alone(why: str, cluster: Simulation) -> None:
    see(cluster, "a", held=why)
    assert restarted(cluster).workload.ref.name == "b"
    assert f"Deployment web/a is left alone, since {why}; restart its pods yourself" in report(cluster)[1]


def test_pods_of_jobs_bare_ones_and_those_labelled_by_hand_are_left_alone(cluster: Simulation) -> None:
    see(cluster, "a", asks=frozenset())
    cluster.app_pods = (*cluster.app_pods[1:], app(4), app(5, owner=owner("gone")))
    cluster.workloads = {**cluster.workloads, owner("gone"): None}
    assert restarted(cluster).workload.ref.name == "b"
    message = report(cluster)[1]
    assert (
        "3 pods are left alone, of no Deployment, StatefulSet or DaemonSet whose template has the label"
        in message
    )
    assert "delete pod web/app-1 when it suits" in message


def test_a_pod_of_no_consumer_is_nobodys_business(cluster: Simulation) -> None:
    cluster.app_pods = (pod(1, "a", namespace="elsewhere"), pod(2, "b", terminating=True))
    assert (cluster.plan().restart, cluster.plan().look) == (None, ())


def test_what_is_not_known_is_read_first(cluster: Simulation) -> None:
    cluster.workloads = {owner("a"): deployed("a")}
    steps: Plan = cluster.plan()
    assert (steps.restart, steps.look) == (None, (owner("b"), owner("c")))
    cluster.workloads = {owner(name): deployed(name) for name in "abc"}
    cluster.workloads_due = frozenset({owner("b")})
    assert (cluster.plan().restart, cluster.plan().look) == (None, (owner("b"),))


def test_a_missing_right_is_told_of_with_the_remedy(cluster: Simulation) -> None:
    cluster.workloads = {owner("a"): ApiRefusal("Forbidden", 'cannot get resource "replicasets"')}
    steps = cluster.plan()
    assert (steps.restart, steps.look, steps.requeue) == (None, (), WATCH_SECONDS)
    reason, message = report(cluster)
    assert reason == "RestartForbidden"
    assert "keeper.restartWorkloads=true" in message
    assert 'cannot get resource "replicasets"' in message
    cluster.workloads_due = frozenset({owner("a")})
    assert cluster.plan().look == (owner("a"), owner("b"), owner("c"))


def test_of_two_replica_sets_of_one_deployment_the_later_word_counts(cluster: Simulation) -> None:
    marks = dict(restarted(cluster).annotations)
    newer = Owner("web", "ReplicaSet", "a-0", "uid-of-a-0")
    later = deployed("a", version="10", marks=marks, complete=False)
    cluster.workloads = {newer: later, **cluster.workloads}
    assert cluster.plan().restart is None


# --- workloads as the API server shows them ------------------------------------------------------------------


def live(kind: str = "Deployment", **changes: Any) -> dict[str, Any]:
    """Complete: two pods wanted, two there."""
    counts = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "readyReplicas": 2}
    if kind == "DaemonSet":
        counts = {"desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 2}
    spec = {} if kind == "DaemonSet" else {"replicas": 2}
    labels = {"poolkeeper.io/database": "database"}
    template = {"metadata": {"labels": labels, "annotations": {MARK: "x", "team": "shop"}}}
    return {
        "kind": kind,
        "metadata": {
            "namespace": "web",
            "name": "a",
            "uid": "u",
            "resourceVersion": "7",
            "generation": 3,
        },
        "spec": {**spec, "template": template, **changes.pop("spec", {})},
        "status": {"observedGeneration": 3, **counts, **changes},
    }


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet"])
def test_a_workload_is_read(kind: str) -> None:
    found = workload(live(kind))
    assert found == deployed("a", ref=Ref(kind, "web", "a"), uid="u", version="7", marks={MARK: "x"})
    assert not workload(live(kind, observedGeneration=2)).complete, "nobody has looked at the change yet"


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Deployment", {"updatedReplicas": 1}),
        ("Deployment", {"replicas": 3}),
        ("Deployment", {"availableReplicas": 1}),
        ("StatefulSet", {"updatedReplicas": 1}),
        ("StatefulSet", {"availableReplicas": 1}),
        ("DaemonSet", {"updatedNumberScheduled": 1}),
        ("DaemonSet", {"numberAvailable": 1}),
    ],
)
def test_a_rollout_that_goes_on_is_seen(kind: str, changes: dict[str, int]) -> None:
    assert not workload(live(kind, **changes)).complete


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"paused": True}, "paused"),
        ({"updateStrategy": {"type": "OnDelete"}}, "OnDelete"),
        ({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}}, "partition"),
        ({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}}, ""),
    ],
)
def test_what_holds_a_workload_is_seen(spec: dict[str, Any], word: str) -> None:
    held = workload(live(spec=spec)).held
    assert word in held
    assert bool(held) == bool(word)


def test_a_rollout_past_its_deadline_is_quoted() -> None:
    condition = {"type": "Progressing", "status": "False", "reason": "R", "message": "timed out"}
    assert workload(live(conditions=[condition])).stalled == "timed out"
    assert workload(live(conditions=[{**condition, "status": "True"}])).stalled == ""
