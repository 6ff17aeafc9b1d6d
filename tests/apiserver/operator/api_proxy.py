"""A proxy between operators and the API server: counts writes, loses answers, makes faults, kills at a write.

Each operator gets a gate, a port of its own with faults of its own. The operator speaks plain HTTP to it; the
gate forwards with a client certificate. Watches stream through.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import yaml
from aiohttp import web

BEFORE, AFTER = "before", "after"
_HOP_BY_HOP = {"host", "connection", "transfer-encoding", "content-length", "keep-alive", "accept-encoding"}
_PASSED_ON = ("Content-Type", "Retry-After")
T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One request of an operator."""

    method: str
    path: str
    query: str

    @property
    def is_write(self) -> bool:
        """Anything that may change the cluster; the Lease aside, which is renewed all the time."""
        return self.method not in ("GET", "HEAD") and "/leases" not in self.path

    @property
    def is_watch(self) -> bool:
        return "watch=true" in self.query

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Answer:
    """What the gate answers in place of the API server."""

    code: int
    reason: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def status(self) -> dict[str, Any]:
        body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": self.code}
        return body | {"reason": self.reason, "message": self.message}

    def response(self) -> web.Response:
        return web.json_response(self.status, status=self.code, headers=dict(self.headers))


class Gate:
    """The way of one operator to the API server. `fault` and `loses` decide call by call."""

    def __init__(self, proxy: Proxy, port: int) -> None:
        self.port = port
        self.writes: list[Call] = []
        """Every write that was let through, in order."""
        self.calls: list[tuple[float, Call]] = []
        """Every request but watches, with the monotonic time of its arrival."""
        self.fault: Callable[[Call], Answer | None] = lambda call: None
        self.loses: Callable[[Call], bool] = lambda call: False
        """Whether the answer is lost although the API server did what was asked."""
        self.killed = threading.Event()
        self._proxy = proxy
        self._kill: tuple[int, str, Callable[[], None]] | None = None
        self._one_write = asyncio.Lock()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._cut_off = asyncio.Event()
        self._last_event = b""

    def kill_at(self, number: int, phase: str, kill: Callable[[], None]) -> None:
        """From now on count writes, one at a time, and kill the operator around the `number`th."""
        self.killed.clear()
        self._kill = (len(self.writes) + number, phase, kill)

    def reopen(self) -> None:
        """Let the next operator process through."""
        self._kill = None
        self.killed.clear()

    def freeze_watches(self) -> None:
        """Keep the watches open, and tell nothing through them."""
        self._proxy.call_soon(self._flowing.clear)

    def thaw_watches(self) -> None:
        self._proxy.call_soon(self._flowing.set)

    def expire_watches(self) -> None:
        """End every watch with 410 Gone, what it has not told yet untold."""
        self.end_watches(Answer(410, "Expired", "too old resource version"))

    def end_watches(self, answer: Answer) -> None:
        """End every watch with an event of the type ERROR, what it has not told yet untold."""

        def end() -> None:
            self._last_event = json.dumps({"type": "ERROR", "object": answer.status}).encode() + b"\n"
            self._cut_off.set()
            self._cut_off = asyncio.Event()

        self._proxy.call_soon(end)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        call = Call(request.method, request.path, request.query_string)
        body = await request.read()
        if call.is_watch:
            return await self._watch(request)
        self.calls.append((asyncio.get_running_loop().time(), call))
        answer = self.fault(call)
        if answer is not None:
            return answer.response()
        if not call.is_write:
            return await self._forward(request, body)
        if self._kill is None:
            self.writes.append(call)
            return await self._lossy(request, call, body)
        async with self._one_write:
            return await self._killing(request, call, body)

    async def _killing(self, request: web.Request, call: Call, body: bytes) -> web.StreamResponse:
        if self.killed.is_set():
            return self._cut(request)
        if self._kill is None:
            self.writes.append(call)
            return await self._forward(request, body)
        number, phase, kill = self._kill
        due = len(self.writes) + 1 == number
        if due and phase == BEFORE:
            return self._fell(request, kill)
        self.writes.append(call)
        response = await self._forward(request, body)
        return self._fell(request, kill) if due else response

    def _fell(self, request: web.Request, kill: Callable[[], None]) -> web.Response:
        kill()
        self.killed.set()
        return self._cut(request)

    async def _lossy(self, request: web.Request, call: Call, body: bytes) -> web.StreamResponse:
        response = await self._forward(request, body)
        return self._cut(request) if self.loses(call) else response

    def _cut(self, request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        try:
            async with self._proxy.upstream(request, body) as answer:
                headers = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
                return web.Response(status=answer.status, body=await answer.read(), headers=headers)
        except aiohttp.ClientError:
            return self._cut(request)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        ended = asyncio.ensure_future(self._cut_off.wait())
        chunk: asyncio.Future[bytes] | None = None
        try:
            async with self._proxy.upstream(request, b"") as answer:
                response = web.StreamResponse(
                    status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]}
                )
                await response.prepare(request)
                while True:
                    chunk = asyncio.ensure_future(self._next(answer))
                    await asyncio.wait({chunk, ended}, return_when=asyncio.FIRST_COMPLETED)
                    if ended.done():
                        await response.write(self._last_event)
                        return response
                    if not chunk.result():
                        return response
                    await response.write(chunk.result())
        except (aiohttp.ClientError, ConnectionError):
            return self._cut(request)  # the API server or the operator is gone
        finally:
            ended.cancel()
            if chunk is not None:
                chunk.cancel()
                await asyncio.wait({chunk})

    async def _next(self, answer: aiohttp.ClientResponse) -> bytes:
        """The next whole line, but not while the watches are frozen."""
        line = await answer.content.readline()
        await self._flowing.wait()
        return line


class Proxy:
    """All gates of one test session, on one event loop in a thread of their own."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server = cluster["server"]
        self._tls = _tls_context(kubeconfig.parent, cluster, user)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runners: list[web.AppRunner] = []
        self._thread.start()
        self._client = self._do(self._connect())

    async def _connect(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls)
        timeout = aiohttp.ClientTimeout(total=None)
        return aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=2**22)

    def upstream(self, request: web.Request, body: bytes) -> Any:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        url = f"{self._server}{request.path_qs}"
        return self._client.request(request.method, url, data=body or None, headers=headers)

    def open(self) -> Gate:
        """A new gate on a free port of loopback."""
        return self._do(self._open())

    async def _open(self) -> Gate:
        gate = Gate(self, 0)
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", gate.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        gate.port = runner.addresses[0][1]
        self._runners.append(runner)
        return gate

    def call_soon(self, action: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(action)

    def close(self) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _close(self) -> None:
        await self._client.close()
        for runner in self._runners:
            await runner.cleanup()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


def _tls_context(directory: Path, cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
    """From a kubeconfig with its certificates inside or in files."""
    paths = {}
    for source, name in (
        (cluster, "certificate-authority"),
        (user, "client-certificate"),
        (user, "client-key"),
    ):
        if f"{name}-data" in source:
            paths[name] = directory / f"proxy-{name}.pem"
            paths[name].write_bytes(base64.b64decode(source[f"{name}-data"]))
        else:
            paths[name] = Path(source[name])
    context = ssl.create_default_context(cafile=str(paths["certificate-authority"]))
    context.load_cert_chain(paths["client-certificate"], paths["client-key"])
    return context
