"""Upstreams under observation: what reaches the store and the queue, for whom, and what is asked of whom."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from poolkeeper.dns import Dns, Names
from poolkeeper.kube.client import Broken, Expired, Refused, Retry
from poolkeeper.observed.refs import Key
from poolkeeper.observed.upstream import Whereabouts
from poolkeeper.plan.addresses import place
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store.store import Store
from poolkeeper.upstream.resolver import Resolve
from poolkeeper.workers import lookup
from poolkeeper.workers.lookup import UpstreamWatch, ready

KEY, OTHER = Key("data", "shop"), Key("data", "books")
HOST = "pg.data.svc"
DNS = Dns()


def endpoint_slice(name: str, *addresses: str, ready: bool | None = True, **changes: Any) -> dict[str, Any]:
    conditions = {} if ready is None else {"ready": ready}
    return {
        "metadata": {"name": name, "resourceVersion": "7"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": conditions} for address in addresses],
        **changes,
    }


@dataclass
class FakeCluster:
    """One Service's slices, and what its watch tells."""

    listed: list[dict[str, Any]] = field(default_factory=list)
    events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    refusal: Exception | None = None
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    async def pages(self, kind: str, namespace: str, selector: str) -> AsyncIterator[tuple[list[Any], int]]:
        self.asked.append((kind, namespace, selector))
        if self.refusal is not None:
            raise self.refusal
        yield self.listed, 5

    async def watch(
        self, kind: str, namespace: str, selector: str, version: str
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        while (told := await self.events.get()) is not None:
            if isinstance(told, Exception):
                raise told
            yield told


@dataclass
class Scene:
    cluster: FakeCluster
    store: Store
    queue: Queue[Key]
    watch: UpstreamWatch
    names: dict[str, set[str]]
    looked_up: list[str]

    def where(self, key: Key = KEY) -> Whereabouts | None:
        return self.store.world(key, self.store.secrets.logins(key)).whereabouts

    def another(self, resolve: Resolve, watch_namespaces: tuple[str, ...] = ()) -> UpstreamWatch:
        """A watch with another resolver."""
        settings = Settings(namespace="poolkeeper", identity="test", watch_namespaces=watch_namespaces)
        cluster: Any = self.cluster
        return UpstreamWatch(cluster, self.store, self.queue, settings, resolve)

    async def until(self, check: Callable[[], object]) -> None:
        for _ in range(400):
            if check():
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"not so after two seconds: {self.where()}")

    async def comes_to(self, addresses: str, endpoints: str = "", key: Key = KEY, host: str = HOST) -> None:
        wanted = Whereabouts(host, frozenset(addresses.split()), frozenset(endpoints.split()))
        await self.until(lambda: self.where(key) == wanted)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    for pause in ("LOOKUP_SECONDS", "PAUSE_SECONDS", "RETRY_SECONDS", "TICK_SECONDS"):
        monkeypatch.setattr(lookup, pause, 0.01)

    async def work(key: Key) -> None:
        raise AssertionError("nobody works here")

    settings = Settings(namespace="poolkeeper", identity="test")
    store, queue, names = Store(settings), Queue(work, 1), {HOST: {"10.96.0.1"}}
    looked_up: list[str] = []

    def resolver(host: Names) -> tuple[str, ...]:
        written = next(iter(host.tried)).removesuffix(".data.svc.cluster.local.")
        looked_up.append(written)
        return tuple(names.get(written, ()))

    cluster = FakeCluster()
    watch = UpstreamWatch(cluster, store, queue, settings, resolver)  # type: ignore[arg-type]
    yield Scene(cluster, store, queue, watch, names, looked_up)
    for key in (KEY, OTHER):
        watch.observe(key, None)


async def test_both_sources_reach_the_store_and_changes_of_them(scene: Scene) -> None:
    scene.cluster.listed = [endpoint_slice("a", "10.1.0.1"), endpoint_slice("b", "10.1.0.9", ready=False)]
    scene.watch.observe(KEY, place(HOST, "data", DNS))
    await scene.comes_to("10.96.0.1", "10.1.0.1")
    assert not scene.queue.idle
    assert scene.cluster.asked == [("EndpointSlice", "data", "kubernetes.io/service-name=pg")]
    scene.cluster.events.put_nowait(("MODIFIED", endpoint_slice("a", "10.1.0.2")))
    await scene.comes_to("10.96.0.1", "10.1.0.2")
    scene.cluster.events.put_nowait(("ADDED", endpoint_slice("c", "10.1.0.3")))
    await scene.comes_to("10.96.0.1", "10.1.0.2 10.1.0.3")
    scene.cluster.events.put_nowait(("DELETED", endpoint_slice("a", "10.1.0.2")))
    await scene.comes_to("10.96.0.1", "10.1.0.3")
    scene.names[HOST] = {"10.96.0.2"}
    await scene.comes_to("10.96.0.2", "10.1.0.3")


async def test_no_endpoint_and_no_address_leave_what_is_known(scene: Scene) -> None:
    scene.cluster.listed = [endpoint_slice("a", "10.1.0.1")]
    scene.watch.observe(KEY, place(HOST, "data", DNS))
    await scene.comes_to("10.96.0.1", "10.1.0.1")
    scene.names.clear()
    scene.cluster.events.put_nowait(("MODIFIED", endpoint_slice("a", "10.1.0.1", ready=False)))
    asked = len(scene.looked_up)
    await scene.until(lambda: len(scene.looked_up) > asked + 3)
    assert scene.where() == Whereabouts(HOST, frozenset({"10.96.0.1"}), frozenset({"10.1.0.1"}))


async def test_one_look_up_and_one_watch_serve_everybody_and_end_with_the_last(scene: Scene) -> None:
    scene.watch.observe(KEY, place(HOST, "data", DNS))
    await scene.comes_to("10.96.0.1")
    scene.watch.observe(OTHER, place(HOST, "data", DNS))
    await scene.comes_to("10.96.0.1", key=OTHER)
    assert len(scene.cluster.asked) == 1
    scene.watch.observe(KEY, None)
    scene.names[HOST] = {"10.96.0.7"}
    await scene.comes_to("10.96.0.7", key=OTHER)
    assert scene.where() == Whereabouts(HOST, frozenset({"10.96.0.1"}))
    scene.watch.observe(OTHER, None)
    await asyncio.sleep(0.05)
    asked = len(scene.looked_up)
    await asyncio.sleep(0.1)
    assert len(scene.looked_up) == asked


async def test_a_resolver_that_is_silent_holds_up_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "ANSWER_SECONDS", 0.05)
    answered = threading.Event()

    def silent(_: Names) -> tuple[str, ...]:
        answered.wait(10)
        return ("10.96.0.4",)

    scene.cluster.listed = [endpoint_slice("a", "10.1.0.1")]
    watch = scene.another(silent)
    watch.observe(KEY, place(HOST, "data", DNS))
    await scene.comes_to("", "10.1.0.1")
    answered.set()
    await scene.comes_to("10.96.0.4", "10.1.0.1")
    watch.observe(KEY, None)


async def test_names_of_another_namespace_that_are_slow_hold_up_nothing(scene: Scene) -> None:
    answered = threading.Event()

    def slow(names: Names) -> tuple[str, ...]:
        if names.namespace == "evil":
            answered.wait(10)
        return ("10.96.0.4",)

    watch = scene.another(slow)
    evil = [Key("evil", f"shop-{number}") for number in range(20)]
    try:
        for key in evil:
            watch.observe(key, place(f"{key.name}.example.com", "evil", DNS))
        watch.observe(KEY, place(HOST, "data", DNS))
        await scene.comes_to("10.96.0.4")
    finally:
        answered.set()
    for key in (*evil, KEY):
        watch.observe(key, None)


async def test_another_host_takes_the_place_of_the_one_before(scene: Scene) -> None:
    scene.names["db.example.com"] = {"192.0.2.7"}
    scene.watch.observe(KEY, place(HOST, "data", DNS))
    await scene.comes_to("10.96.0.1")
    scene.watch.observe(KEY, place("db.example.com", "data", DNS))
    await scene.comes_to("192.0.2.7", host="db.example.com")


async def test_endpoints_that_may_not_be_read_are_asked_for_once_and_names_serve_alone(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.cluster.refusal = Refused("Forbidden", "endpointslices is forbidden")
    scene.watch.observe(KEY, place(HOST, "data", DNS))
    await scene.comes_to("10.96.0.1")
    await asyncio.sleep(0.1)
    assert len(scene.cluster.asked) == 1
    assert caplog.text.count("is forbidden") == 1


async def test_namespaces_that_are_not_watched_are_not_asked_about(scene: Scene) -> None:
    watch = scene.another(lambda _: ("10.96.0.3",), watch_namespaces=("data",))
    watch.observe(KEY, place("pg.backend.svc", "data", DNS))
    await scene.comes_to("10.96.0.3", host="pg.backend.svc")
    watch.observe(KEY, None)
    assert scene.cluster.asked == []


@pytest.mark.parametrize(
    "fault", [Expired("Expired", "too old"), Broken("Broken", "x"), Retry("gone"), KeyError("x")]
)
async def test_after_a_fault_everything_is_listed_anew(scene: Scene, fault: Exception) -> None:
    scene.cluster.listed = [endpoint_slice("a", "10.1.0.1")]
    scene.watch.observe(KEY, place(HOST, "data", DNS))
    await scene.comes_to("10.96.0.1", "10.1.0.1")
    scene.cluster.listed = [endpoint_slice("b", "10.1.0.2")]
    scene.cluster.events.put_nowait(fault)
    await scene.comes_to("10.96.0.1", "10.1.0.2")


async def test_a_watch_that_ends_goes_on_without_a_list(scene: Scene) -> None:
    scene.cluster.listed = [endpoint_slice("a", "10.1.0.1")]
    scene.watch.observe(KEY, place(HOST, "data", DNS))
    await scene.comes_to("10.96.0.1", "10.1.0.1")
    scene.cluster.events.put_nowait(None)
    scene.cluster.events.put_nowait(("MODIFIED", endpoint_slice("a", "10.1.0.2")))
    await scene.comes_to("10.96.0.1", "10.1.0.2")
    assert len(scene.cluster.asked) == 1


def test_ready_endpoints_are_those_that_get_new_connections() -> None:
    assert ready(endpoint_slice("a", "10.1.0.1", ready=None)) == {"10.1.0.1"}, "unknown counts as ready"
    assert ready(endpoint_slice("a", "10.1.0.1", ready=False)) == frozenset()
    assert ready(endpoint_slice("a", "db.example.com", addressType="FQDN")) == frozenset()
    assert ready({**endpoint_slice("a"), "endpoints": None}) == frozenset()
