"""Keepers under a running operator: a real PgBouncer on the files of the Secret, in a pod that only the API
server knows. The test does kubelet's part."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from e2e.cluster.ports import free_port
from poolkeeper import names
from poolkeeper.keeper import injection
from poolkeeper.keeper import template as keeper_template
from poolkeeper.keeper.container import listen
from poolkeeper.pgbouncer.configuration import INI, POD_FILE
from tests.apiserver.operator.pooler_pod import bring
from tests.apiserver.operator.site import Lane, Site, eventually, path
from tests.pgbouncer.keeper_process import keeper_command
from tests.pgbouncer.processes import USER, running

Object = dict[str, Any]
GENERATION = "poolkeeper.io/keeper-generation"


class AppPod:
    """A pod with a keeper; `place` is where its files are mounted."""

    def __init__(self, lane: Lane, name: str, place: Path, *, keeper: bool = True) -> None:
        self.lane, self.name, self.place, self.port = lane, name, place, free_port()
        place.mkdir()
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        lane.api.apply(f"/api/v1/namespaces/{lane.web}/serviceaccounts/default", account)
        pod: Object = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "labels": {names.DATABASE_LABEL: "database"},
                "annotations": {injection.KEEPER_PORT_ANNOTATION: str(self.port)},
            },
            "spec": {"containers": [{"name": "app", "image": "app:1"}]},
        }
        status: Object = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
        if keeper:
            secret = lane.get("Secret", "database-keeper", lane.web)
            template = keeper_template.parse(secret["metadata"]["annotations"][names.KEEPER_ANNOTATION])
            pod = injection.inject(pod, {"database": template}).pod
            self.auth = template.auth
            status["initContainerStatuses"] = [
                {
                    "name": "keeper",
                    "ready": True,
                    "restartCount": 0,
                    "image": template.image,
                    "imageID": "",
                    "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
                }
            ]
        lane.api.create(path("Pod", lane.web), pod)
        lane.api.merge(path("Pod", lane.web, name, "status"), {"status": status})

    def mount(self) -> None:
        """Bring what the Secret holds now."""
        files = self.lane.secret(self.lane.web, "database-keeper")
        assert files is not None
        bring({**files, POD_FILE: listen(self.port)}, self.place)

    def answer(self) -> str:
        """What the keeper says to an app without a password. It has no pooler to lead it to."""
        with pytest.raises(psycopg.OperationalError) as caught:
            psycopg.connect(
                host="127.0.0.1",
                port=self.port,
                user="app",
                dbname="shop",
                sslmode="disable",
                connect_timeout=2,
            )
        return str(caught.value)

    def generation(self) -> str:
        pod = self.lane.get("Pod", self.name, self.lane.web)
        return str(pod["metadata"].get("annotations", {}).get(GENERATION, ""))

    @contextmanager
    def keeper(self) -> Iterator[None]:
        self.mount()
        os.chown(self.place, USER, USER)
        log = self.place / "pgbouncer.log"
        with running(keeper_command(self.place, self.auth), log, signal.SIGQUIT):
            eventually(lambda: "process up" in log.read_text(), 10)
            yield


@pytest.fixture
def settled(site: Site, lane: Lane) -> Lane:
    site.operator(lane.namespaces).start()
    lane.apply(keeper={"enabled": True})
    lane.expect("KeepersCurrent", "True", "NoKeepers", seconds=20)
    return lane


def test_keepers_follow_every_change_and_are_reported_when_they_cannot(settled: Lane, tmp_path: Path) -> None:
    lane, pod = settled, AppPod(settled, "app", tmp_path / "app")
    with pod.keeper():
        message = lane.expect("KeepersCurrent", "True", "Current")
        assert message == "1 keeper shows its configuration"
        first = pod.generation()
        lane.apply(keeper={"enabled": True, "poolSize": 7})
        eventually(lambda: pod.generation() != first, 10)
        pod.mount()
        lane.expect("KeepersCurrent", "True", "Current")
        assert "default_pool_size = 7" in (pod.place / INI).read_text()
    lane.apply(keeper={"enabled": True, "poolSize": 8})
    message = lane.expect("KeepersCurrent", "False", "NotShown")
    assert f"{lane.web}/app" in message
    assert "Connection refused" in message
    assert "NetworkPolicies" in message
    time.sleep(1)
    before = lane.writes()
    time.sleep(16)
    assert lane.writes() == before, "it is tried again and again, and told once"
    with pod.keeper():
        lane.expect("KeepersCurrent", "True", "Current", seconds=30)


def test_pods_without_their_keeper_and_of_another_image_are_reported(settled: Lane, tmp_path: Path) -> None:
    lane = settled
    AppPod(lane, "bare", tmp_path / "bare", keeper=False)
    assert f"{lane.web}/bare" in lane.expect("KeepersCurrent", "False", "KeeperMissing")
    remove(lane, "bare")
    pod = AppPod(lane, "app", tmp_path / "app")
    with pod.keeper():
        lane.expect("KeepersCurrent", "True", "Current")
        lane.apply(keeper={"enabled": True, "image": "another:1"})
        assert "another:1" in lane.expect("KeepersCurrent", "False", "ImageOutdated")
    remove(lane, "app")
    lane.expect("KeepersCurrent", "True", "NoKeepers")


def test_a_password_is_demanded_of_pods_that_are_made_after_it_was_asked_for(
    settled: Lane, tmp_path: Path
) -> None:
    """The keeper refuses a login before it looks for a pooler, of which there is none here."""
    lane, before = settled, AppPod(settled, "before", tmp_path / "before")
    with before.keeper():
        lane.expect("KeepersCurrent", "True", "Current")
        first = before.generation()
        lane.apply(keeper={"enabled": True, "auth": "Scram"})
        eventually(lambda: before.generation() != first, 10)
        before.mount()
        assert f"pod {lane.web}/before" in lane.expect("KeepersCurrent", "False", "AuthOutdated")
        after = AppPod(lane, "after", tmp_path / "after")
        with after.keeper():
            message = lane.expect("KeepersCurrent", "False", "AuthOutdated")
            assert message.startswith("1 keeper takes its app in without a password"), (
                "and both are as they should"
            )
            assert "no password supplied" in after.answer()
            assert "no password supplied" not in before.answer()
            second = after.generation()
            lane.apply(keeper={"enabled": True, "auth": "Trust", "poolSize": 7})
            eventually(lambda: after.generation() != second, 10)
            for pod in (before, after):
                pod.mount()
            assert f"pod {lane.web}/after" in lane.expect("KeepersCurrent", "False", "AuthOutdated")
            assert "no password supplied" in after.answer()
            secret = lane.secret(lane.web, "database-keeper")
            assert secret is not None
            assert secret["app-password"]
    remove(lane, "after")
    lane.expect("KeepersCurrent", "False", "NotShown")
    eventually(lambda: "app-password" not in (lane.secret(lane.web, "database-keeper") or {}), 10)


def test_a_pooler_that_terminates_is_drained_also_after_a_restart_of_the_operator(
    site: Site, lane: Lane
) -> None:
    operator = site.operator(lane.namespaces).start()
    lane.apply(consumers=[{"namespace": lane.web}])
    lane.synced(1, seconds=20)
    for name in ("one", "two"):
        lane.make_pod(name)
        bind(lane, name)
    lane.api.request("DELETE", path("Pod", lane.data, "one"), gracePeriodSeconds="30")
    eventually(lambda: "drains pooler pod one" in operator.said(), 20)
    operator.kill()
    operator.reap()
    operator.start()
    eventually(lambda: operator.said().count("drains pooler pod one") == 2, 20)
    assert "pooler pod two" not in operator.said()


def remove(lane: Lane, name: str) -> None:
    lane.api.request("DELETE", path("Pod", lane.web, name), gracePeriodSeconds="0")


def bind(lane: Lane, name: str) -> None:
    """To a node, which is what makes the API server wait with a deletion."""
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "node"},
    }
    lane.api.create(path("Pod", lane.data, name, "binding"), binding)
