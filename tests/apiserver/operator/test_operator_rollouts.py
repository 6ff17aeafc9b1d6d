"""spec.keeper.rollout: Workload, on a real API server with the chart's rights and policy. The test plays the
controllers: it makes the pods of a workload, and replaces them once the pod template says something else."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import pytest

from poolkeeper import names
from poolkeeper.keeper import injection
from poolkeeper.keeper import template as keeper_template
from poolkeeper.plan.keeper_rollout import annotation
from tests.apiserver import chart_paths
from tests.apiserver.operator.api_proxy import Answer, Call
from tests.apiserver.operator.operator_process import Operator
from tests.apiserver.operator.site import Lane, Site, eventually, path
from tests.fast.helm_chart import render

Object = dict[str, Any]

MARK = annotation("database")
RESTARTING = ("--set", "keeper.restartWorkloads=true")
_RBAC = "/apis/rbac.authorization.k8s.io/v1/clusterroles/poolkeeper"
_PLURALS = {
    "Deployment": "deployments",
    "ReplicaSet": "replicasets",
    "StatefulSet": "statefulsets",
    "DaemonSet": "daemonsets",
}
QUIET_SECONDS = 4.0
"""Longer than an operator lets pass between two looks at a workload."""


class App:
    """A workload of one pod in `web`, which asks for a keeper."""

    def __init__(self, lane: Lane, name: str, kind: str = "Deployment") -> None:
        self.lane, self.name, self.kind, self.round = lane, name, kind, 0
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        lane.api.apply(f"/api/v1/namespaces/{lane.web}/serviceaccounts/default", account)
        labels = {"app": name, names.DATABASE_LABEL: "database"}
        containers = [{"name": "app", "image": "example.com/app:1"}]
        template = {"metadata": {"labels": labels}, "spec": {"containers": containers}}
        spec: Object = {"selector": {"matchLabels": {"app": name}}, "template": template}
        if kind == "StatefulSet":
            spec["serviceName"] = name
        body = {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        lane.api.create(self._path(kind), body)
        self.replace()

    def _path(self, kind: str, name: str = "", subresource: str = "") -> str:
        collection = f"/apis/apps/v1/namespaces/{self.lane.web}/{_PLURALS[kind]}"
        return "/".join(part for part in (collection, name, subresource) if part)

    def get(self) -> Object:
        return self.lane.api.get(self._path(self.kind, self.name))

    def mark(self) -> str:
        annotations = self.get()["spec"]["template"]["metadata"].get("annotations", {})
        return str(annotations.get(MARK, ""))

    def replace(self, *, keeper: bool = True, image: str = "") -> None:
        """A new pod of the present template in the place of the last one, and the status that says so."""
        before, self.round = f"{self.name}-{self.round}", self.round + 1
        live = self.get()
        owner = {"apiVersion": "apps/v1", "kind": self.kind, "name": self.name, "uid": live["metadata"]["uid"]}
        if self.kind == "Deployment":
            metadata = {"name": f"{self.name}-{self.round}", "ownerReferences": [{**owner, "controller": True}]}
            labels = {"pod-template-hash": str(self.round)}
            spec = copy.deepcopy({key: live["spec"][key] for key in ("selector", "template")})
            spec["selector"]["matchLabels"] |= labels
            spec["template"]["metadata"]["labels"] |= labels
            made = self.lane.api.create(
                self._path("ReplicaSet"),
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata, "spec": spec},
            )
            owner = {**owner, "kind": "ReplicaSet", "name": metadata["name"], "uid": made["metadata"]["uid"]}
        pod = copy.deepcopy(live["spec"]["template"])
        pod["metadata"] |= {
            "name": f"{self.name}-{self.round}",
            "ownerReferences": [{**owner, "controller": True}],
        }
        make_pod(self.lane, pod, keeper=keeper, image=image)
        if self.round > 1:
            self.lane.api.request("DELETE", path("Pod", self.lane.web, before), gracePeriodSeconds="0")
        self.report()

    def report(self) -> None:
        """The controllers have looked at the workload and find everything in its place."""
        counts = {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "readyReplicas": 1}
        if self.kind == "DaemonSet":
            counts = dict.fromkeys(
                (
                    "currentNumberScheduled",
                    "numberMisscheduled",
                    "desiredNumberScheduled",
                    "numberReady",
                    "updatedNumberScheduled",
                    "numberAvailable",
                ),
                1,
            )
        seen = {"observedGeneration": self.get()["metadata"]["generation"]}
        self.lane.api.merge(self._path(self.kind, self.name, "status"), {"status": {**counts, **seen}})


def make_pod(lane: Lane, pod: Object, *, keeper: bool = True, image: str = "") -> None:
    """A pod whose keeper has not started, so that nobody looks for its console."""
    pod = {"apiVersion": "v1", "kind": "Pod", **pod}
    if keeper:
        secret = lane.get("Secret", "database-keeper", lane.web)
        template = keeper_template.parse(secret["metadata"]["annotations"][names.KEEPER_ANNOTATION])
        pod = injection.inject(pod, {"database": template}).pod
        pod["spec"]["initContainers"][0]["image"] = image or template.image
    lane.api.create(path("Pod", lane.web), pod)


@pytest.fixture
def rights(site: Site) -> Iterator[None]:
    """What the chart grants with keeper.restartWorkloads, and the policy that limits it, for one test."""
    grant(site)
    yield
    site.api.apply(_RBAC, role())
    for obj in policy():
        site.api.delete(chart_paths.path(obj))


def grant(site: Site) -> None:
    for obj in policy():
        site.api.apply(chart_paths.path(obj), obj)
    site.api.apply(_RBAC, role(*RESTARTING))


def policy() -> list[Object]:
    """The policy on workloads, with its binding."""
    return [obj for obj in render(*RESTARTING) if obj["metadata"]["name"] == "poolkeeper-workload-restart"]


def role(*values: str) -> Object:
    [found] = [
        obj
        for obj in render(*values)
        if (obj["kind"], obj["metadata"]["name"]) == ("ClusterRole", "poolkeeper")
    ]
    return found


def asked_for(lane: Lane, image: str, rollout: str = "Workload") -> None:
    lane.apply(consumers=[{"namespace": lane.web}], keeper={"image": image, "rollout": rollout})


@pytest.fixture
def operator(site: Site, lane: Lane) -> Operator:
    """One that has made the keepers' Secret for image one:1."""
    made = site.operator(lane.namespaces).start()
    asked_for(lane, "one:1")
    lane.synced(1, seconds=20)
    return made


def marked(app: App, seconds: float = 15) -> str:
    return eventually(lambda: app.mark() or False, seconds)  # type: ignore[return-value]


def says(lane: Lane, reason: str, words: str) -> None:
    """The status follows what it speaks of a moment later."""

    def said() -> None:
        assert words in lane.expect("KeepersCurrent", "False", reason, seconds=0)

    eventually(said, 10)


def restarts(lane: Lane) -> list[str]:
    """The workloads that were changed, from the API server's audit log."""
    plurals = [f"{plural}/ " for plural in _PLURALS.values()]
    return [
        line
        for line in lane.writes()
        if line.startswith("patch") and any(part in line for part in plurals) and "shop-pooler" not in line
    ]


@pytest.mark.usefixtures("rights")
def test_workloads_are_restarted_one_after_the_other_each_once(lane: Lane, operator: Operator) -> None:
    apps = [App(lane, "a"), App(lane, "b", "StatefulSet"), App(lane, "c", "DaemonSet")]
    lane.expect("KeepersCurrent", "True", "NoKeepers")
    before = {app.name: app.get() for app in apps}
    asked_for(lane, "two:1")
    order = [apps[2], apps[0], apps[1]]  # by kind, then by name
    for number, app in enumerate(order):
        text = marked(app)
        assert [other.mark() for other in order] == [text] * (number + 1) + [""] * (2 - number)
        says(lane, "Restarting", f"{app.kind} {lane.web}/{app.name} is being restarted")
        time.sleep(QUIET_SECONDS)
        assert [other.mark() for other in order[number + 1 :]] == [""] * (2 - number), "it is not over yet"
        app.replace()
    lane.expect("KeepersCurrent", "True", "NoKeepers")
    for app in apps:
        now, old = app.get(), before[app.name]
        del now["spec"]["template"]["metadata"]["annotations"]
        assert now["spec"] == old["spec"]
    assert len(restarts(lane)) == 3, restarts(lane)
    events = lane.api.get(path("Event", lane.web))["items"]
    told = [event["involvedObject"] for event in events if event["reason"] == "RestartedForKeeper"]
    assert sorted((about["kind"], about["name"]) for about in told) == [
        ("DaemonSet", "c"),
        ("Deployment", "a"),
        ("StatefulSet", "b"),
    ]


@pytest.mark.usefixtures("rights")
@pytest.mark.parametrize("phase", ["before", "after"])
def test_an_operator_that_is_killed_at_a_restart_does_it_once(
    phase: str, lane: Lane, operator: Operator
) -> None:
    apps = [App(lane, "a"), App(lane, "b")]

    def fatal(call: Call) -> bool:
        if not (call.method == "PATCH" and call.path.endswith(f"{lane.web}/deployments/a")):
            return False
        operator.kill()
        return True

    if phase == "before":
        operator.gate.fault = lambda call: Answer(503, "Unavailable", "killed") if fatal(call) else None
    else:
        operator.gate.loses = fatal
    asked_for(lane, "two:1")
    eventually(lambda: not operator.running, 15)
    operator.gate.fault, operator.gate.loses = (lambda call: None), (lambda call: False)
    assert bool(apps[0].mark()) == (phase == "after")
    operator.start()
    marked(apps[0])
    time.sleep(QUIET_SECONDS)
    assert apps[1].mark() == ""
    apps[0].replace()
    marked(apps[1])
    operator.kill()
    operator.reap()
    apps[1].replace()
    operator.start()
    lane.expect("KeepersCurrent", "True", "NoKeepers", seconds=20)
    assert len(restarts(lane)) == 2, restarts(lane)


@pytest.mark.usefixtures("rights")
def test_a_restart_that_changes_nothing_is_not_done_again(lane: Lane, operator: Operator) -> None:
    """Its new pods come without their keeper, as where the webhook is not asked."""
    app = App(lane, "a")
    bare: Object = {
        "metadata": {"name": "bare", "labels": {names.DATABASE_LABEL: "database"}},
        "spec": {"containers": [{"name": "app", "image": "example.com/app:1"}]},
    }
    make_pod(lane, bare)
    asked_for(lane, "two:1")
    text = marked(app)
    app.replace(keeper=False)
    says(lane, "LeftAlone", f"Deployment {lane.web}/a was restarted for this")
    says(lane, "LeftAlone", f"delete pod {lane.web}/bare when it suits")
    says(lane, "LeftAlone", "1 pod has the label")
    time.sleep(QUIET_SECONDS)
    before = lane.writes()
    time.sleep(QUIET_SECONDS)
    assert (app.mark(), len(restarts(lane)), lane.writes()) == (text, 1, before)
    asked_for(lane, "three:1")
    eventually(lambda: app.mark() != text, 15)


def test_without_the_right_nothing_is_restarted_and_the_condition_says_so(
    site: Site, lane: Lane, operator: Operator, request: pytest.FixtureRequest
) -> None:
    app = App(lane, "a")
    asked_for(lane, "two:1", "Manual")
    lane.expect("KeepersCurrent", "True", "NoKeepers")
    time.sleep(QUIET_SECONDS)
    assert app.mark() == "", "nobody asked for it"
    asked_for(lane, "two:1")
    message = lane.expect("KeepersCurrent", "False", "RestartForbidden")
    assert "keeper.restartWorkloads=true" in message
    assert "replicasets" in message
    time.sleep(QUIET_SECONDS)
    assert (app.mark(), restarts(lane)) == ("", [])
    request.getfixturevalue("rights")
    marked(app)
    app.replace()
    lane.expect("KeepersCurrent", "True", "NoKeepers", seconds=20)
