"""The watches over children: what is taken in, and what happens when the API server cuts them off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from poolkeeper import names
from poolkeeper.kube.client import Broken, Expired, Refused, Retry
from poolkeeper.observed.refs import Key
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store.store import Store
from poolkeeper.watch import watches

KEY = Key("data", "shop")
SETTINGS = Settings(namespace="poolkeeper", identity="test", watch_namespaces=("data",))


def secret(name: str, version: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "namespace": "data",
            "name": name,
            "uid": f"uid-of-{name}",
            "resourceVersion": str(version),
            "labels": {names.ROLE_LABEL: names.ROLE_CONSUMER, names.OWNER_UID_LABEL: "uid"},
            "annotations": {names.OWNER_ANNOTATION: "data/shop"},
        },
    }


FORBIDDEN = Refused("Forbidden", "secrets is forbidden")


class FakeCluster:
    """Tells what it is scripted to, for Secrets; every other kind is silent."""

    def __init__(self, *script: list[Any]) -> None:
        self.script = list(script)
        self.watched: list[str] = []
        self.listed: list[dict[str, Any]] = []
        self.lists = 0
        self.over = asyncio.Event()

    async def version(self, kind: str, namespace: str | None) -> str:
        return "10" if self.lists == 0 else "90"

    async def pages(
        self, kind: str, namespace: str | None, selector: str
    ) -> AsyncIterator[tuple[list[Any], int]]:
        assert (kind, namespace, selector) == ("Secret", "data", names.ROLE_LABEL)
        self.lists += 1
        yield self.listed, 100

    async def watch(
        self, kind: str, namespace: str | None, selector: str, version: str, granted: Callable[[], None]
    ) -> AsyncIterator[tuple[str, Any]]:
        if kind != "Secret":
            await asyncio.Event().wait()
        self.watched.append(version)
        if not self.script:
            self.over.set()
            await asyncio.Event().wait()
        script = self.script.pop(0)
        if script != [FORBIDDEN]:
            granted()
        for step in script:
            if isinstance(step, Exception):
                raise step
            yield step


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(watches, "RETRY_SECONDS", 0)
    monkeypatch.setattr(watches, "REFUSED_SECONDS", 0)


async def follow(cluster: FakeCluster) -> tuple[Store, Queue[Key]]:
    """Watch until the script is over."""

    async def work(key: Key) -> None:
        raise AssertionError("nobody works here")

    store: Store = Store(SETTINGS)
    queue = Queue(work, 1)
    task = asyncio.create_task(watches.watch(cluster, store, queue))  # type: ignore[arg-type]
    await asyncio.wait({task, asyncio.ensure_future(cluster.over.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert not task.done(), task
    task.cancel()
    return store, queue


def children(store: Store) -> set[str]:
    return {ref.name for ref in store.world(KEY, store.secrets.logins(KEY)).children}


async def test_events_reach_the_store_and_the_queue() -> None:
    cluster = FakeCluster(
        [("ADDED", secret("a", 11)), ("ADDED", secret("b", 12)), ("DELETED", secret("a", 13))]
    )
    store, queue = await follow(cluster)
    assert children(store) == {"b"}
    assert not queue.idle
    assert cluster.watched == ["10", "13"]


async def test_bookmarks_move_the_version_and_nothing_else() -> None:
    cluster = FakeCluster([("BOOKMARK", {"metadata": {"resourceVersion": "50"}})])
    _, queue = await follow(cluster)
    assert cluster.watched == ["10", "50"]
    assert queue.idle


async def test_a_lost_connection_goes_on_where_it_was() -> None:
    cluster = FakeCluster([("ADDED", secret("a", 11)), Retry("gone")], [("ADDED", secret("b", 12))])
    store, _ = await follow(cluster)
    assert cluster.watched == ["10", "11", "12"]
    assert children(store) == {"a", "b"}
    assert cluster.lists == 0


async def test_an_expired_version_lists_and_forgets_what_the_list_lacks() -> None:
    cluster = FakeCluster([("ADDED", secret("a", 11)), Expired("Expired", "too old")])
    cluster.listed = [secret("b", 60)]
    store, _ = await follow(cluster)
    assert children(store) == {"b"}
    assert cluster.watched == ["10", "10"]


async def test_an_error_inside_a_watch_is_logged_once_and_lists_again(caplog: pytest.LogCaptureFixture) -> None:
    """From the version where the watch broke, it might break again."""
    cluster = FakeCluster([("ADDED", secret("a", 11)), Broken("Broken", "etcd is slow")])
    cluster.listed = [secret("b", 60)]
    store, queue = await follow(cluster)
    assert children(store) == {"b"}
    assert not queue.idle
    assert cluster.watched == ["10", "10"]
    assert caplog.text.count("etcd is slow; listing again") == 1


async def test_a_watch_that_is_forbidden_is_noted_and_logged_once_and_lists_instead(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = FakeCluster([("ADDED", secret("a", 11))], [FORBIDDEN], [FORBIDDEN], [FORBIDDEN])
    cluster.listed = [secret("b", 60)]
    store, _ = await follow(cluster)
    assert children(store) == {"b"}
    assert cluster.lists == 3
    assert store.scope.lost_watches() == {"data": {"Secret"}}
    assert not store.scope.refused()
    assert caplog.text.count("secrets is forbidden") == 1


async def test_a_watch_that_is_granted_again_is_no_longer_lost() -> None:
    store, _ = await follow(FakeCluster([FORBIDDEN], [("ADDED", secret("a", 91))]))
    assert children(store) == {"a"}
    assert not store.scope.lost_watches()


async def test_a_list_that_is_forbidden_refuses_the_namespace() -> None:
    class Unlisted(FakeCluster):
        async def version(self, kind: str, namespace: str | None) -> str:
            if kind == "Secret":
                self.over.set()
                raise FORBIDDEN
            return "10"

    store, _ = await follow(Unlisted())
    assert store.scope.refused() == {"data"}
    assert not store.scope.lost_watches()


async def test_pods_are_watched_by_either_label_and_listed_by_both() -> None:
    """A list replaces what is known of a kind: with poolers alone, every app pod would be forgotten."""
    asked: list[str] = []

    class Listing:
        async def pages(
            self, kind: str, namespace: str | None, selector: str
        ) -> AsyncIterator[tuple[list[Any], int]]:
            asked.append(selector)
            yield [selector], 1

    async def listed(kind: str) -> list[Any]:
        return [page async for page, _ in watches.pages(Listing(), kind, None)]  # type: ignore[arg-type]

    assert await listed("Pod") == [[names.ROLE_LABEL], [names.DATABASE_LABEL]]
    assert await listed(names.KIND) == [[""]]
