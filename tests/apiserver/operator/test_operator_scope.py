"""The chart's `watchNamespaces` with their Roles: one is deleted, or its rights are taken away.

On a control plane of its own, whose operators have the rights of those Roles and no others.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.apiserver import chart_paths
from tests.apiserver.client import Refused
from tests.apiserver.operator.operator_process import OPERATOR_NAMESPACE, Operator
from tests.apiserver.operator.site import PASSWORD, Lane, Site, eventually, path
from tests.fast.helm_chart import Object, installed, render

_RBAC = "/apis/rbac.authorization.k8s.io/v1"


def rights(*namespaces: str) -> list[Object]:
    """What the chart grants the operator where it watches these; the webhook's are not of interest."""
    return [
        obj
        for obj in installed(render("--set", f"watchNamespaces={{{','.join(namespaces)}}}"))
        if obj["kind"] in ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
        and not obj["metadata"]["name"].endswith("-webhook")
    ]


class ScopedSite(Site):
    """Its operators have what the chart grants with `watchNamespaces`."""

    def grant(self, *namespaces: str) -> None:
        """Replace the rights over everything by a Role in each of these namespaces."""
        for obj in rights(*namespaces):
            self.api.apply(chart_paths.path(obj), obj)
        for plural in ("clusterroles", "clusterrolebindings"):
            self._drop(f"{_RBAC}/{plural}/poolkeeper")

    def grant_again(self, namespace: str) -> None:
        """Put back the Role of one namespace."""
        for obj in rights(namespace):
            if obj["metadata"].get("namespace") == namespace:
                self.api.apply(chart_paths.path(obj), obj)

    def revoke(self, namespace: str) -> None:
        """Take away the rights in one namespace."""
        self._drop(f"{_RBAC}/namespaces/{namespace}/rolebindings/poolkeeper")

    def forbid_watches(self, namespace: str) -> None:
        """Take away the verb watch in one namespace."""
        for obj in rights(namespace):
            if obj["kind"] == "Role" and obj["metadata"]["namespace"] == namespace:
                rules = [{**rule, "verbs": [v for v in rule["verbs"] if v != "watch"]} for rule in obj["rules"]]
                self.api.apply(chart_paths.path(obj), {**obj, "rules": rules})

    def _drop(self, target: str) -> None:
        try:
            self.api.delete(target)
        except Refused as refusal:
            if refusal.code != 404:
                raise


@pytest.fixture(scope="module")
def scoped_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScopedSite]:
    with ScopedSite.opened(tmp_path_factory.mktemp("scoped-site")) as made:
        yield made


@pytest.fixture
def lanes(scoped_site: ScopedSite) -> Iterator[tuple[Lane, Lane]]:
    """Two that the operator has rights in: one stays, the other loses them."""
    made = Lane(scoped_site), Lane(scoped_site)
    scoped_site.grant(*made[0].namespaces, *made[1].namespaces)
    yield made
    scoped_site.stop_operators()


def start(site: ScopedSite, lanes: tuple[Lane, Lane]) -> Operator:
    return site.operator([*lanes[0].namespaces, *lanes[1].namespaces]).start()


def events(site: Site, reason: str, namespace: str) -> list[Object]:
    """The Events of one reason that name a namespace, beside the operator."""
    items = site.api.get(path("Event", OPERATOR_NAMESPACE))["items"]
    return [item for item in items if item["reason"] == reason and namespace in item["message"]]


def reported(site: Site, reason: str, namespace: str) -> None:
    eventually(lambda: bool(events(site, reason, namespace)), 30)


def follows(lane: Lane, count: int) -> None:
    """A change is served: what was there before shows nothing."""
    consumers = [{"namespace": lane.web}, {"namespace": lane.backend, "secretName": "shop-db"}]
    lane.apply(consumers=consumers[:count])
    lane.synced(count)


def test_rights_taken_away_in_one_namespace_stop_no_other_one(
    scoped_site: ScopedSite, lanes: tuple[Lane, Lane]
) -> None:
    """And it is served again once they are back."""
    stays, loses = lanes
    operator = start(scoped_site, lanes)
    for lane in lanes:
        lane.apply()
        lane.synced()
    scoped_site.revoke(loses.data)
    operator.kill()
    operator.reap()
    operator.start()
    reported(scoped_site, "NotServed", loses.data)
    follows(stays, 1)
    loses.apply(consumers=[{"namespace": loses.web}])
    # What its PooledDatabase made elsewhere stays: nothing shows that it is gone.
    assert loses.secret(loses.backend, "shop-db") is not None
    scoped_site.grant_again(loses.data)
    loses.synced(1)
    reported(scoped_site, "ServedAgain", loses.data)
    follows(stays, 2)
    follows(loses, 2)
    assert operator.running, operator.said()[-3000:]
    assert "Traceback" not in operator.said(), operator.said()[-3000:]


def test_rights_taken_away_under_a_running_operator(scoped_site: ScopedSite, lanes: tuple[Lane, Lane]) -> None:
    """A consumer's namespace: its PooledDatabase says so, and serves the other consumer."""
    stays, loses = lanes
    operator = start(scoped_site, lanes)
    for lane in lanes:
        lane.apply()
        lane.synced()
    scoped_site.revoke(loses.web)
    operator.gate.expire_watches()
    reported(scoped_site, "NotServed", loses.web)
    follows(stays, 1)
    loses.apply(consumers=[{"namespace": loses.web, "secretName": "new"}, {"namespace": loses.backend}])
    assert "forbidden" in loses.expect("ConsumersSynced", "False", "Forbidden")
    eventually(lambda: loses.secret(loses.backend, "database") is not None, 30)
    assert len(events(scoped_site, "NotServed", loses.web)) == 1
    assert operator.said().count(f"namespace {loses.web} is not served") == 1
    # What happened meanwhile in the namespace shows once it is listed again.
    loses.api.delete(path("Secret", loses.web, "database"))
    scoped_site.grant_again(loses.web)
    loses.synced(2)
    reported(scoped_site, "ServedAgain", loses.web)
    assert loses.secret(loses.web, "new") is not None
    follows(loses, 1)
    eventually(lambda: loses.secret(loses.web, "new") is None, 30)
    assert operator.running, operator.said()[-3000:]
    assert "Traceback" not in operator.said(), operator.said()[-3000:]


def test_the_right_to_watch_alone_taken_away_is_reported_and_everything_is_served(
    scoped_site: ScopedSite, lanes: tuple[Lane, Lane]
) -> None:
    stays, loses = lanes
    operator = start(scoped_site, lanes)
    for lane in lanes:
        lane.apply()
        lane.synced()
    scoped_site.forbid_watches(loses.data)
    operator.gate.expire_watches()
    follows(stays, 1)
    follows(loses, 1)
    reported(scoped_site, "WatchLost", loses.data)
    follows(loses, 2)
    [event] = events(scoped_site, "WatchLost", loses.data)
    assert "PooledDatabase" in event["message"]
    assert "Secret" in event["message"]
    scoped_site.grant_again(loses.data)
    reported(scoped_site, "WatchRegained", loses.data)
    follows(loses, 1)
    assert not events(scoped_site, "NotServed", loses.data)
    assert operator.running, operator.said()[-3000:]
    assert "Traceback" not in operator.said(), operator.said()[-3000:]


def test_a_watched_namespace_is_deleted_and_made_again(
    scoped_site: ScopedSite, lanes: tuple[Lane, Lane]
) -> None:
    """Its Role goes with it, maybe before the operator has removed its finalizer: the report has the remedy."""
    stays, loses = lanes
    operator = start(scoped_site, lanes)
    for lane in lanes:
        lane.apply()
        lane.synced()
    target = f"/api/v1/namespaces/{loses.data}"
    scoped_site.api.delete(target)
    bindings = f"{_RBAC}/namespaces/{loses.data}/rolebindings"
    eventually(lambda: not scoped_site.api.get(bindings)["items"], 30)
    operator.gate.expire_watches()
    reported(scoped_site, "NotServed", loses.data)
    assert "finalizers" in events(scoped_site, "NotServed", loses.data)[0]["message"]
    operator.terminate()
    operator.start()
    follows(stays, 1)

    def gone() -> bool:
        for item in scoped_site.api.get(path("PooledDatabase", loses.data))["items"]:
            name = item["metadata"]["name"]
            scoped_site.api.merge(path("PooledDatabase", loses.data, name), {"metadata": {"finalizers": None}})
        try:
            scoped_site.api.get(target)
        except Refused as refusal:
            return refusal.code == 404
        return False

    eventually(gone, 60, every=0.2)
    scoped_site.create_namespace(loses.data)
    scoped_site.grant_again(loses.data)
    loses.put_source(username="o", password=PASSWORD)
    loses.apply()
    loses.synced(2, seconds=60)
    follows(stays, 2)
    assert operator.running, operator.said()[-3000:]
    assert "Traceback" not in operator.said(), operator.said()[-3000:]
