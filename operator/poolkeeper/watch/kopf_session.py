"""The HTTP session of kopf's watches, which keeps from kopf what would end it, and the operator with it.

Inside a watch, kopf takes every error for fatal but 410, after which it lists again; and as an answer to a
request, every status from 400 on but 401, 403, 429 and 5xx, which it retries. So it gets a 410 in their place,
after a pause.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import aiohttp
import kopf

from poolkeeper.kube.client import RESOURCES, ClusterError, Expired, Refused, watch_event
from poolkeeper.store.scope import Place, Scope

log = logging.getLogger(__name__)

KINDS = {resource.plural: kind for kind, resource in RESOURCES.items()}
PAUSE_SECONDS = 1.0
"""How long to pause before kopf lists again."""

_RETRIED = (401, 403, 429)
_GONE = (
    json.dumps(
        {"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "code": 410, "reason": "Expired"}}
    ).encode()
    + b"\n"
)


def open_session(found: kopf.ConnectionInfo, scope: Scope) -> kopf.AiohttpSession:
    """The session that kopf itself makes of these credentials, with a middleware."""
    connector = aiohttp.TCPConnector(limit=0, ssl=found.as_ssl_context())
    session = aiohttp.ClientSession(
        connector=connector,
        headers=found.as_http_headers(),
        proxy=found.proxy_url,
        middlewares=(partial(_adapt, scope),),
    )
    return kopf.AiohttpSession(
        server=found.server, default_namespace=found.default_namespace, aiohttp_session=session
    )


async def _adapt(
    scope: Scope, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Answer lists and watches so that kopf goes on, and report what it retries by itself without a word."""
    response = await send(request)
    if request.url.name not in KINDS:
        return response
    path, watches, place = request.url.path, "watch" in request.url.query, _place(request)
    kind = KINDS[request.url.name]
    if response.status == 403 and watches:
        scope.lose_watch(place, kind, f"the watch of {path} is forbidden")
    elif response.status == 403:
        scope.refuse(place, f"{path} is forbidden")
    elif response.status < 400 and watches:
        scope.regain_watch(place, kind)
        _replace(response, _Events(response.content, path, partial(scope.lose_watch, place, kind)))
    elif response.status >= 500 or response.status in _RETRIED or _is_list(response):
        pass
    else:
        said = f"{response.status} with {response.content_type}"
        if response.status != 404:  # the CRD may be deleted, and installed again
            log.warning("%s answered %s; listing again in %g s", path, said, PAUSE_SECONDS)
        await asyncio.sleep(PAUSE_SECONDS)
        if not watches:
            response.close()
            raise aiohttp.ClientPayloadError(f"{path} answered {said}")
        response.status = 200
        _replace(response, _Gone(response.content))
    return response


def _place(request: aiohttp.ClientRequest) -> Place:
    *_, place, namespace, _plural = request.url.parts
    return namespace if place == "namespaces" else None


def _is_list(response: aiohttp.ClientResponse) -> bool:
    return response.status < 400 and response.content_type == "application/json"


def _replace(response: aiohttp.ClientResponse, content: Any) -> None:
    response.content = content


class _Gone:
    """The content of an answer to a watch, in place of the real one: that its version is too old."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    def __getattr__(self, name: str) -> Any:
        """Everything else, such as its end, concerns the real content."""
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        yield _GONE


class _Events(_Gone):
    """The content of an answer to a watch, whole events only: an error that kopf does not know is logged, and
    becomes one that it does."""

    def __init__(self, content: aiohttp.StreamReader, path: str, refused: Callable[[str], object]) -> None:
        """`refused` is called with the API server's words if the error is that the watch is forbidden."""
        super().__init__(content)
        self._path = path
        self._refused = refused

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        rest = b""
        async for data in self._content.iter_chunked(size):
            *lines, rest = (rest + data).split(b"\n")
            for line in filter(None, lines):
                try:
                    watch_event(line, self._path)
                except Expired:
                    pass
                except ClusterError as error:
                    log.warning(
                        "watch of %s: %s; listing again in %g s", self._path, error.message, PAUSE_SECONDS
                    )
                    if isinstance(error, Refused):
                        self._refused(error.message)
                    await asyncio.sleep(PAUSE_SECONDS)
                    yield _GONE
                    return
                yield line + b"\n"
