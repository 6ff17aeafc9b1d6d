"""A bare API client over aiohttp: what the operator is compared with; the benchmark itself uses it, too.

It keeps 8 requests in flight, encodes a body, sends it, reads the answer to its end and does not look at it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import yaml

Object = dict[str, Any]

IN_FLIGHT = 8
PLURALS = {
    "Namespace": "namespaces",
    "Secret": "secrets",
    "Service": "services",
    "Deployment": "deployments",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "NetworkPolicy": "networkpolicies",
    "PooledDatabase": "pooleddatabases",
    "CustomResourceDefinition": "customresourcedefinitions",
}
_TIMEOUT = aiohttp.ClientTimeout(total=60)


class BareClient:
    """One user's connection to one API server; use it as an asynchronous context manager."""

    def __init__(self, kubeconfig: Path) -> None:
        self._server, self._tls = _credentials(kubeconfig)

    async def __aenter__(self) -> BareClient:
        connector = aiohttp.TCPConnector(limit=2 * IN_FLIGHT, ssl=self._tls)
        self._session = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def apply(self, body: Object, subresource: str = "") -> None:
        """Server-side apply, forced."""
        path = f"{collection(body)}/{body['metadata']['name']}" + (f"/{subresource}" if subresource else "")
        query = {"fieldManager": "bare", "force": "true"}
        await self.send("PATCH", path, body, "application/apply-patch+yaml", query)

    async def merge(self, path: str, patch: Object) -> None:
        """JSON merge patch."""
        await self.send("PATCH", path, patch, "application/merge-patch+json")

    async def send(
        self, method: str, path: str, body: Object, content: str, query: dict[str, str] | None = None
    ) -> None:
        """One request. Raises RuntimeError with the server's words if it is refused."""
        async with self._session.request(
            method,
            self._server + path,
            data=json.dumps(body),
            params=query,
            headers={"Content-Type": content},
        ) as answer:
            text = await answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {text[:500].decode(errors='replace')}")

    async def listed(self, path: str, **query: str) -> list[Object]:
        """Every object of a collection, in pages."""
        items: list[Object] = []
        token = ""
        while True:
            page = await self.read(path, limit="500", **query, **({"continue": token} if token else {}))
            items += page["items"]
            token = page["metadata"].get("continue", "")
            if not token:
                return items

    async def read(self, path: str, **query: str) -> Any:
        """GET, decoded. Raises RuntimeError if it is refused."""
        async with self._session.get(self._server + path, params=query) as answer:
            text = await answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"GET {path}: {text[:500].decode(errors='replace')}")
        return json.loads(text)

    async def apply_all(self, bodies: Iterable[Object], subresource: str = "") -> None:
        """Apply all of them, 8 in flight."""
        waiting = iter(bodies)

        async def work() -> None:
            for body in waiting:
                await self.apply(body, subresource)

        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(work())


def collection(body: Object) -> str:
    """The path of the collection that an object belongs to."""
    version, metadata = body["apiVersion"], body["metadata"]
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    namespace = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    return f"{root}{namespace}/{PLURALS[body['kind']]}"


def _credentials(kubeconfig: Path) -> tuple[str, ssl.SSLContext]:
    """Address and TLS context of a kubeconfig that holds its certificates."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    with tempfile.NamedTemporaryFile() as pair:  # mode 0600; the ssl module reads keys from files only
        for part in ("client-certificate-data", "client-key-data"):
            pair.write(base64.b64decode(user[part]) + b"\n")
        pair.flush()
        context.load_cert_chain(pair.name)
    return cluster["server"], context
