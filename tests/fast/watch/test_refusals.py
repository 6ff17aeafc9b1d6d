"""Namespaces that the API server refuses to show: retried alone, reported, and never taken for empty ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from poolkeeper import names
from poolkeeper.kube.client import Refused
from poolkeeper.observed.refs import Key, Ref
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store import scope
from poolkeeper.store.store import Store
from poolkeeper.watch import refusals, resync

SETTINGS = Settings(
    namespace="poolkeeper", identity="test", watch_namespaces=("data", "web"), reads_namespaces=False
)


def secret(namespace: str, version: int = 5) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "namespace": namespace,
            "name": "shop",
            "uid": f"uid-in-{namespace}",
            "resourceVersion": str(version),
            "labels": {names.ROLE_LABEL: names.ROLE_CONSUMER, names.OWNER_UID_LABEL: "uid"},
            "annotations": {names.OWNER_ANNOTATION: "data/shop"},
        },
    }


class FakeCluster:
    """Lists nothing, and refuses some places."""

    def __init__(self, *refused: str | None) -> None:
        self.refused = set(refused)
        self.forbidden: set[str] = set()
        """The kinds that can't be listed in the whole cluster."""
        self.items: dict[tuple[str, str | None], list[Any]] = {}
        self.listed: list[str | None] = []
        self.posted: list[dict[str, Any]] = []

    async def pages(
        self, kind: str, namespace: str | None, selector: str
    ) -> AsyncIterator[tuple[list[Any], int]]:
        self.listed.append(namespace)
        if namespace in self.refused or (namespace is None and kind in self.forbidden):
            raise Refused("Forbidden", f"{kind} is forbidden in {namespace}")
        yield self.items.get((kind, namespace), []), 100

    async def get(self, ref: Ref) -> dict[str, Any]:
        assert ref == Ref("Lease", "poolkeeper", "poolkeeper")
        return {"apiVersion": "coordination.k8s.io/v1", "metadata": {"uid": "uid-of-the-lease"}}

    async def post(self, event: dict[str, Any]) -> None:
        self.posted.append(event)


class Leader:
    """The leader's work over a fake cluster."""

    def __init__(self, cluster: FakeCluster, settings: Settings = SETTINGS) -> None:
        self.worked: list[Key] = []
        self.store = Store(settings)
        self.cluster = cluster
        self._queue: Queue[Key] = Queue(self._work, 1)
        self._task = asyncio.create_task(
            resync.work(cluster, self.store, self._queue, settings)  # type: ignore[arg-type]
        )

    async def _work(self, key: Key) -> None:
        self.worked.append(key)

    async def until(self, check: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not check():
                assert not self._task.done(), self._task
                await asyncio.sleep(0)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "RETRY_SECONDS", 0)
    monkeypatch.setattr(resync, "RETRY_SECONDS", 0)
    monkeypatch.setattr(scope, "LASTING_SECONDS", 0)
    monkeypatch.setattr(scope, "WATCH_LASTING_SECONDS", 0)


async def test_a_refused_namespace_is_reported_once_and_stops_nothing_else() -> None:
    leader = Leader(FakeCluster("web"))
    leader.store.observe(secret("data", version=200))
    await leader.until(lambda: leader.worked and leader.cluster.posted)
    tries = leader.cluster.listed.count("web")
    await leader.until(lambda: leader.cluster.listed.count("web") > tries + 5)
    assert leader.worked == [Key("data", "shop")]
    [event] = leader.cluster.posted
    assert (event["type"], event["reason"]) == ("Warning", "NotServed")
    assert f"{names.KIND} is forbidden in web" in event["message"]
    assert "watchNamespaces" in event["message"]
    assert event["involvedObject"]["uid"] == "uid-of-the-lease"
    await leader.stop()


async def test_what_was_known_of_a_refused_namespace_stays_and_its_keys_wait() -> None:
    leader = Leader(FakeCluster("web"))
    leader.store.observe(secret("web"))
    leader.store.observe(secret("data"))  # older than the list, which lacks it
    await leader.until(lambda: leader.cluster.posted)
    children = leader.store.world(
        Key("data", "shop"), leader.store.secrets.logins(Key("data", "shop"))
    ).children
    assert [ref.namespace for ref in children] == ["web"]
    assert leader.store.scope.serves("data")
    assert not leader.store.scope.serves("web")
    await leader.stop()


async def test_a_namespace_that_is_shown_again_is_reported_and_every_key_is_queued() -> None:
    leader = Leader(FakeCluster("web"))
    leader.store.observe(secret("data", version=200))
    await leader.until(lambda: leader.worked and leader.cluster.posted)
    leader.worked.clear()
    leader.cluster.refused.clear()
    await leader.until(lambda: leader.worked)
    assert [event["reason"] for event in leader.cluster.posted] == ["NotServed", "ServedAgain"]
    assert leader.store.scope.serves("web")
    await leader.stop()


async def test_a_refusal_of_the_whole_cluster_is_reported_while_nothing_can_be_served() -> None:
    leader = Leader(
        FakeCluster(None), Settings(namespace="poolkeeper", identity="test", reads_namespaces=False)
    )
    leader.store.observe(secret("data", version=200))
    await leader.until(lambda: leader.cluster.posted)
    assert "ClusterRoleBinding" in leader.cluster.posted[0]["message"]
    assert not leader.worked
    leader.cluster.refused.clear()
    await leader.until(lambda: leader.worked)
    await leader.stop()


async def test_refused_namespaces_are_retried_as_what_they_are() -> None:
    """With the rights of Roles alone, no other kind can be listed in the whole cluster."""
    leader = Leader(FakeCluster(None), Settings("poolkeeper", "test", watch_namespaces=("data",)))
    leader.store.observe(secret("data", version=200))
    await leader.until(lambda: leader.cluster.posted)
    assert "Namespace is forbidden" in leader.cluster.posted[0]["message"]
    assert not leader.worked
    leader.cluster.refused.clear()
    leader.cluster.forbidden = set(refusals.KINDS)
    await leader.until(lambda: len(leader.cluster.posted) > 1 and leader.worked)
    assert leader.cluster.posted[1]["reason"] == "ServedAgain"
    await leader.stop()


async def test_what_a_retry_shows_is_worked_on_although_the_refusal_did_not_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The watches show it as well, but later: they find it known."""
    monkeypatch.setattr(scope, "LASTING_SECONDS", 60)
    leader = Leader(FakeCluster())
    leader.store.observe(secret("data", version=50))
    await leader.until(lambda: leader.cluster.listed.count("data") > len(refusals.KINDS))
    leader.worked.clear()
    leader.cluster.items["Secret", "data"] = [secret("data", version=99)]
    leader.store.scope.refuse("data", "the watch broke")
    await leader.until(lambda: leader.worked == [Key("data", "shop")])
    assert not leader.cluster.posted
    await leader.stop()


async def test_a_refusal_that_does_not_last_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """An API server that starts refuses everything for a moment."""
    monkeypatch.setattr(scope, "LASTING_SECONDS", 60)
    leader = Leader(FakeCluster("web"))
    leader.store.observe(secret("web", version=200))
    await leader.until(lambda: leader.worked and leader.cluster.listed.count("web") > 5)
    assert leader.store.scope.serves("web")
    assert not leader.cluster.posted
    await leader.stop()


def reasons(leader: Leader) -> list[str]:
    return [event["reason"] for event in leader.cluster.posted]


async def test_a_watch_that_is_lost_is_reported_once_and_its_kind_is_listed_instead() -> None:
    leader = Leader(FakeCluster())
    leader.store.observe(secret("data", version=50))
    await leader.until(lambda: leader.cluster.listed.count("web") > len(refusals.KINDS))
    leader.store.scope.lose_watch("data", "Secret", "secrets is forbidden: cannot watch")
    await leader.until(lambda: leader.cluster.posted)
    leader.worked.clear()
    leader.cluster.listed.clear()
    leader.cluster.items["Secret", "data"] = [secret("data", version=99)]
    await leader.until(lambda: leader.worked)
    await leader.until(lambda: len(leader.cluster.listed) > 10)
    assert set(leader.cluster.listed) == {"data"}
    [event] = leader.cluster.posted
    assert (event["type"], event["reason"]) == ("Warning", "WatchLost")
    assert "changes of Secret in namespace data are seen late" in event["message"]
    assert "cannot watch; upgrade the release, which gives the Role in it the verb watch" in event["message"]
    assert event["involvedObject"]["uid"] == "uid-of-the-lease"
    assert leader.store.scope.serves("data")
    leader.store.scope.regain_watch("data", "Secret")
    await leader.until(lambda: len(leader.cluster.posted) > 1)
    assert leader.cluster.posted[1]["message"] == "every kind in namespace data is watched again"
    leader.cluster.listed.clear()
    await leader.until(lambda: leader.store.scope.lost_watches() == {})
    await asyncio.sleep(0.01)
    assert not leader.cluster.listed
    assert reasons(leader) == ["WatchLost", "WatchRegained"]
    await leader.stop()


async def test_another_kind_that_is_lost_later_is_reported_with_the_first() -> None:
    leader = Leader(FakeCluster(), Settings("poolkeeper", "test", reads_namespaces=False))
    leader.store.scope.lose_watch(None, "Pod", "pods is forbidden")
    await leader.until(lambda: leader.cluster.posted)
    leader.store.scope.lose_watch(None, "Secret", "secrets is forbidden")
    await leader.until(lambda: len(leader.cluster.posted) > 1)
    assert "changes of Pod, Secret in the cluster are seen late" in leader.cluster.posted[1]["message"]
    assert "the ClusterRole the verb watch" in leader.cluster.posted[1]["message"]
    await leader.stop()


async def test_a_namespace_whose_lists_are_refused_too_is_reported_as_that_alone() -> None:
    """And so is its return, although the watches come back a moment later."""
    leader = Leader(FakeCluster("data"))
    leader.store.scope.lose_watch("data", "Secret", "secrets is forbidden")
    await leader.until(lambda: leader.cluster.posted)
    assert reasons(leader) == ["NotServed"]
    leader.cluster.refused.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scope, "WATCH_LASTING_SECONDS", 60)
        await leader.until(lambda: len(leader.cluster.posted) > 1)
        leader.store.scope.regain_watch("data", "Secret")
    await asyncio.sleep(0.05)
    assert reasons(leader) == ["NotServed", "ServedAgain"]
    await leader.stop()


def test_a_lost_watch_lasts_from_the_return_of_its_namespace_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(scope, "WATCH_LASTING_SECONDS", 15.0)
    seen = scope.Scope(SETTINGS)
    assert seen.lose_watch("data", "Pod", "no")
    assert not seen.lose_watch("data", "Pod", "still no")
    seen.refuse("data", "no list")
    now[0] += 100
    assert not seen.unwatched()
    seen.restore("data")
    now[0] += 14
    seen.restore("data")
    assert not seen.unwatched()
    now[0] += 1
    assert seen.unwatched() == {"data": scope.LostWatches(("Pod",), "no")}
