"""kopf's own watches, as installed, against an API server that reports errors inside of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kopf
import pytest
from aiohttp import web

from e2e.cluster.ports import free_port
from poolkeeper import names
from poolkeeper.observed.refs import Key
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store.store import Store
from poolkeeper.watch import handlers, kopf_session

LIST = f"/apis/{names.GROUP}/{names.VERSION}/namespaces/data/{names.PLURAL}"
SETTINGS = Settings("poolkeeper", "test", watch_namespaces=("data",), reads_namespaces=False)


def pooled(name: str, version: int) -> dict[str, Any]:
    metadata = {"namespace": "data", "name": name, "uid": f"uid-of-{name}", "resourceVersion": str(version)}
    return {
        "apiVersion": f"{names.GROUP}/{names.VERSION}",
        "kind": names.KIND,
        "metadata": metadata,
        "spec": {},
    }


def line(kind: str, obj: object) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"


def error(code: int | None, message: str = "something broke") -> bytes:
    status = {"kind": "Status", "status": "Failure", "message": message, "reason": "Broke"}
    return line("ERROR", status if code is None else {**status, "code": code})


def served(plural: str, kind: str, namespaced: bool) -> dict[str, Any]:
    verbs = ["list", "watch", "patch"]
    resource = {"name": plural, "kind": kind, "singularName": "", "namespaced": namespaced, "verbs": verbs}
    return {"resources": [resource]}


def group(name: str, version: str) -> dict[str, Any]:
    return {"name": name, "versions": [{"version": version}], "preferredVersion": {"version": version}}


DISCOVERY = {
    "/api": {"versions": ["v1"]},
    "/api/v1": served("namespaces", "Namespace", False),
    "/apis": {"groups": [group("apiextensions.k8s.io", "v1"), group(names.GROUP, names.VERSION)]},
    "/apis/apiextensions.k8s.io/v1": served("customresourcedefinitions", "CustomResourceDefinition", False),
    f"/apis/{names.GROUP}/{names.VERSION}": served(names.PLURAL, names.KIND, True),
}
"""What kopf asks for at its start."""


@dataclass
class FakeApi:
    """Lists `items`; answers each watch with the next of `watches` (a status, or lines), then in silence."""

    watches: list[int | list[bytes]] = field(default_factory=list)
    lists: list[web.Response] = field(default_factory=list)
    """What the first lists are answered with."""
    items: list[dict[str, Any]] = field(default_factory=list)
    listed: int = 0
    watched: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path in DISCOVERY:
            return web.json_response(DISCOVERY[request.path])
        assert request.path == LIST
        if "watch" not in request.query:
            self.listed += 1
            if self.lists:
                return self.lists.pop(0)
            version = {"resourceVersion": str(100 * self.listed)}
            return web.json_response({"items": self.items, "metadata": version})
        self.watched.append(request.query["resourceVersion"])
        script = self.watches.pop(0) if self.watches else None
        if isinstance(script, int):
            return web.json_response({"kind": "Status", "code": script, "message": "no"}, status=script)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for part in script or ():
            await response.write(part)
            await asyncio.sleep(0.01)
        if script is None:
            await asyncio.Event().wait()
        return response


@dataclass
class Watching:
    """kopf over the fake API server."""

    store: Store
    queue: Queue[Key]
    task: asyncio.Task[None]

    def known(self) -> frozenset[Key]:
        return frozenset(self.store.keys())

    async def until_known(self, *expected: str) -> None:
        async with asyncio.timeout(10):
            while {key.name for key in self.known()} != set(expected):
                assert not self.task.done(), self.task
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def watching(api: FakeApi, tmp_path: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Watching]:
    app = web.Application()
    app.router.add_get("/{path:.*}", api.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    config = tmp_path / "kubeconfig"
    config.write_text(
        json.dumps(
            {
                "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "user", "user": {}}],
                "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "user"}}],
                "current-context": "fake",
            }
        )
    )
    patch.setenv("KUBECONFIG", str(config))
    patch.setattr(kopf_session, "PAUSE_SECONDS", 0.05)

    async def work(key: Key) -> None:
        raise AssertionError("nothing is reconciled here")

    store = Store(SETTINGS)
    queue = Queue(work, 1)
    stop = threading.Event()
    operator = kopf.operator(
        registry=handlers.registry(store, queue, SETTINGS),
        settings=handlers.watch_settings(SETTINGS),
        standalone=True,
        namespaces=["data"],
        stop_flag=stop,
    )
    # In a loop of its own: if kopf ends, it cancels every other task of its loop.
    task = asyncio.create_task(asyncio.to_thread(asyncio.run, operator))
    try:
        yield Watching(store, queue, task)
    finally:
        stop.set()
        await asyncio.wait({task}, timeout=60)
        await runner.cleanup()


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Those of the operator and of kopf, but for what kopf says of the thread."""
    loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
    ours = [record for record in loud if record.name.startswith(("poolkeeper", "kopf"))]
    return [record for record in ours if "OS signals are ignored" not in record.getMessage()]


ERRORS = {
    "500": [error(500)],
    "504": [error(504)],
    "403": [error(403)],
    "400": [error(400)],
    "429": [error(429)],
    "no code": [error(None)],
    "no status": [line("ERROR", "something broke")],
    "no event": [b"<html>busy</html>\n"],
    "half an event": [b'{"type":"ADDED","object":{"metadata":{\n'],
    "no object": [b'{"type":"ADDED"}\n'],
    "a list": [b"[]\n"],
}


@pytest.mark.parametrize("name", ERRORS)
async def test_an_error_inside_a_watch_is_logged_once_and_everything_is_listed_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api = FakeApi([[line("ADDED", pooled("a", 101)), *ERRORS[name]], [line("ADDED", pooled("b", 201))]])
    async with watching(api, tmp_path, monkeypatch) as kopfs:
        await kopfs.until_known("a", "b")
        assert api.watched[:2] == ["100", "200"]
        assert not kopfs.store.scope.refused()
    [said] = warnings(caplog)
    assert said.name == "poolkeeper.watch.kopf_session"
    assert "listing again" in said.getMessage()


@pytest.mark.parametrize("first", [403, [error(403)]], ids=["at once", "inside"])
async def test_a_watch_that_is_forbidden_is_noted_until_it_is_granted(
    first: int | list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lists are allowed: nothing else is refused."""
    monkeypatch.setattr(handlers, "RETRY_SECONDS", 0.05)
    api = FakeApi([first, *[403] * 5])
    async with watching(api, tmp_path, monkeypatch) as kopfs:
        scope = kopfs.store.scope
        async with asyncio.timeout(10):
            while len(api.watched) < 5:
                await asyncio.sleep(0.01)
        assert scope.lost_watches() == {"data": {names.KIND}}
        async with asyncio.timeout(10):
            while scope.lost_watches():
                await asyncio.sleep(0.01)
        assert not scope.refused()
        assert not kopfs.task.done()


async def test_a_watch_that_always_breaks_is_not_repeated_without_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FakeApi([[error(500)]] * 1000)
    async with watching(api, tmp_path, monkeypatch) as kopfs:
        await asyncio.sleep(1.0)
        assert not kopfs.task.done()
    assert 3 <= len(api.watched) <= 21


async def test_a_version_that_is_too_old_is_not_worth_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api = FakeApi([[error(410)], [line("ADDED", pooled("a", 201))]])
    async with watching(api, tmp_path, monkeypatch) as kopfs:
        await kopfs.until_known("a")
    assert not warnings(caplog)


@pytest.mark.parametrize("status", [400, 404, 405, 410, 422])
async def test_a_watch_that_is_refused_lists_again(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FakeApi([status, [line("ADDED", pooled("a", 201))]])
    async with watching(api, tmp_path, monkeypatch) as kopfs:
        await kopfs.until_known("a")
    assert api.watched[:2] == ["100", "200"]


@pytest.mark.parametrize("status", [200, 400, 404, 410, 422])
async def test_a_list_that_fails_is_tried_again(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FakeApi(lists=[web.Response(status=status, text="<html>busy</html>", content_type="text/html")])
    api.items = [pooled("a", 1)]
    async with watching(api, tmp_path, monkeypatch) as kopfs:
        await kopfs.until_known("a")
    assert api.listed == 2


async def test_events_arrive_whole_however_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last one that is cut off is sent again: its version was not the last that was seen."""
    whole = line("ADDED", pooled("a", 101)) + line("ADDED", pooled("b", 102)) + line("ADDED", pooled("c", 103))
    parts = [whole[:10], whole[10:200], whole[200:400], whole[400:-5]]
    api = FakeApi([parts, [line("ADDED", pooled("c", 103))]])
    async with watching(api, tmp_path, monkeypatch) as kopfs:
        await kopfs.until_known("a", "b", "c")
    assert api.watched[:2] == ["100", "102"]
