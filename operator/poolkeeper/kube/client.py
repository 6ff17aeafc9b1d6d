"""The only Kubernetes I/O: get, list, apply (server-side), delete, and the few writes of other shapes.

Takes and returns dicts, over the official asyncio client's connection and credentials. Errors are of three
kinds: Conflict (a foreign object, or an outdated view), Refused (the answer will not change by itself), and
Retry (it may); Expired and Broken for watches.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from poolkeeper.names import (
    FINALIZER,
    FINALIZER_MANAGER,
    GATE,
    GROUP,
    KIND,
    MANAGER,
    PLURAL,
    ROLE_LABEL,
    ROLE_SOURCE,
    SOURCE_MANAGER,
    VERSION,
)
from poolkeeper.observed.refs import Key, Ref
from poolkeeper.printable import printable

Object = dict[str, Any]

REQUEST_SECONDS = 10
"""Maximum duration of a request; the Lease has a shorter one of its own (leader.py)."""
WATCH_SECONDS = 300
"""How long until the API server ends a watch; one that does not end then is dead."""
_IN_FLIGHT = 16
_PAGE = 500
_NAME_SHOWN = 100
"""Maximum length of a name in a refusal, in characters."""
_LINE_SHOWN = 100
"""Maximum length of what is quoted of a line that is no event, in bytes."""
_SECRETS_PAGE = 25
"""Each Secret may have 1 MiB, and anyone who may create one can have the operator list it."""


@dataclass(frozen=True)
class Resource:
    """Where the API server serves a kind."""

    api_version: str
    plural: str
    namespaced: bool = True


RESOURCES: Mapping[str, Resource] = {
    KIND: Resource(f"{GROUP}/{VERSION}", PLURAL),
    "Namespace": Resource("v1", "namespaces", namespaced=False),
    "Secret": Resource("v1", "secrets"),
    "Pod": Resource("v1", "pods"),
    "Service": Resource("v1", "services"),
    "Event": Resource("v1", "events"),
    "EndpointSlice": Resource("discovery.k8s.io/v1", "endpointslices"),
    "Lease": Resource("coordination.k8s.io/v1", "leases"),
    "Deployment": Resource("apps/v1", "deployments"),
    "ReplicaSet": Resource("apps/v1", "replicasets"),
    "StatefulSet": Resource("apps/v1", "statefulsets"),
    "DaemonSet": Resource("apps/v1", "daemonsets"),
    "PodDisruptionBudget": Resource("policy/v1", "poddisruptionbudgets"),
    "HorizontalPodAutoscaler": Resource("autoscaling/v2", "horizontalpodautoscalers"),
    "NetworkPolicy": Resource("networking.k8s.io/v1", "networkpolicies"),
    "MutatingWebhookConfiguration": Resource(
        "admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations", namespaced=False
    ),
}
CHILD_KINDS = (
    "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget", "Secret", "Service",
)  # fmt: skip

Annotate = Callable[[str, str, str, Mapping[str, str]], Awaitable[bool]]
"""Annotates a pod by namespace, name and UID; returns whether it is still there."""

_CONNECTION_FAULTS = (aiohttp.ClientError, TimeoutError, ssl.SSLError, OSError)


class ClusterError(Exception):
    """A request failed; `reason` is a condition's reason, the text is the API server's own."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Conflict(ClusterError):
    """The object is not what the caller took it for."""


class Refused(ClusterError):
    """Forbidden, invalid or over quota: retrying at once is pointless."""


class Expired(ClusterError):
    """The resource version to watch from is too old: list again."""


class Broken(ClusterError):
    """The API server reported an error inside a watch, or sent no event: list again, after a pause."""


class Retry(ClusterError):
    """Busy, unavailable or out of reach; `after` is the delay in seconds that the server asks for, or None."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__("Retry", message)
        self.after = after


def in_cluster() -> bool:
    """Whether to use the pod's service account. If $KUBECONFIG is set, it wins."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ


async def connect() -> Cluster:
    """Connect with in-cluster credentials if the pod has them, else with the kubeconfig ($KUBECONFIG)."""
    configuration = Configuration()
    if in_cluster():
        config.load_incluster_config(client_configuration=configuration)
    else:
        await config.load_kube_config(client_configuration=configuration)
    configuration.connection_pool_maxsize = 0  # unlimited: every watch holds one, _IN_FLIGHT bounds the rest
    # Otherwise every request searches for ~/.netrc first, in a thread. (A proxy can be named in a kubeconfig.)
    configuration.client_session_kwargs = {"trust_env": False}
    return Cluster(ApiClient(configuration))


class Cluster:
    """One API server. All requests raise ClusterError's kinds."""

    def __init__(self, client: ApiClient) -> None:
        self.client = client
        self._slots = asyncio.Semaphore(_IN_FLIGHT)

    async def close(self) -> None:
        await self.client.close()

    async def get(self, ref: Ref) -> Object | None:
        """The object, None if there is none."""
        return await self._request("GET", _path(ref), may_be_absent=True)

    async def pages(
        self, kind: str, namespace: str | None = None, selector: str = ""
    ) -> AsyncIterator[tuple[list[Object], int]]:
        """Every object, one page at a time, each page with the resource version of the whole list."""
        token = ""
        limit = str(_SECRETS_PAGE if kind == "Secret" else _PAGE)
        identity = {"apiVersion": RESOURCES[kind].api_version, "kind": kind}
        while True:
            query = {"limit": limit, **({"labelSelector": selector} if selector else {})}
            query |= {"continue": token} if token else {}
            page = await self._request("GET", _collection(kind, namespace), query)
            assert page is not None
            # The items of a list lack what the list states once for all of them.
            items = [{**item, **identity} for item in page["items"]]
            yield items, int(page["metadata"]["resourceVersion"])
            token = page["metadata"].get("continue", "")
            if not token:
                return

    async def version(self, kind: str, namespace: str | None = None) -> str:
        """The current resource version of a kind, to watch from."""
        page = await self._request("GET", _collection(kind, namespace), {"limit": "1"})
        assert page is not None
        return str(page["metadata"]["resourceVersion"])

    async def watch(
        self,
        kind: str,
        namespace: str | None,
        selector: str,
        version: str,
        granted: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[tuple[str, Object]]:
        """Events after `version`: (ADDED, MODIFIED, DELETED or BOOKMARK, object), for some minutes.

        A BOOKMARK's object has a resource version and nothing else. Raises as watch_event() does: Expired if
        `version` is too old. `granted` is called once the API server has accepted the watch, which may be long
        before the first event.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "labelSelector": selector,
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        path = _collection(kind, namespace)
        response = await self._send("GET", path, query, timeout=WATCH_SECONDS + REQUEST_SECONDS)
        try:
            if response.status >= 400:
                raise _failure(response.status, None, await response.read(), f"watch of {path}")
            granted()
            part = b""
            async for chunk in response.response.content.iter_any():
                *lines, part = (part + chunk).split(b"\n")
                for line in filter(None, lines):
                    yield watch_event(line, path)
        except _CONNECTION_FAULTS as error:
            raise Retry(f"watch of {path}: {type(error).__name__}: {error}") from error
        finally:
            response.response.close()

    async def apply(self, body: Mapping[str, Any], manager: str = MANAGER, subresource: str = "") -> Object:
        """Server-side apply, forced: the manager owns the fields sent. `metadata.uid` is a precondition."""
        metadata = body["metadata"]
        ref = Ref(body["kind"], metadata.get("namespace", ""), metadata["name"])
        query = {"fieldManager": manager, "force": "true"}
        answer = await self._request(
            "PATCH", _path(ref, subresource), query, body, content="application/apply-patch+yaml"
        )
        assert answer is not None
        return answer

    async def create(self, body: Mapping[str, Any]) -> Object:
        """Apply an object that must not exist yet. Raises Conflict if it does, and leaves it untouched.

        An apply with a resource version that fits no object creates one if there is none, and is refused with
        409 if there is one. (A POST would record the fields as updated, not applied, and a later apply could
        then not remove any.)
        """
        return await self.apply({**body, "metadata": {**body["metadata"], "resourceVersion": "1"}})

    async def delete(self, ref: Ref, uid: str) -> None:
        """Delete the object; gone is fine. Raises Conflict if it has another UID."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        await self._request("DELETE", _path(ref), body=body, may_be_absent=True)

    async def apply_status(self, key: Key, uid: str, status: Mapping[str, Any]) -> Object:
        """Replace the status of a PooledDatabase."""
        return await self.apply({**_identity(key, uid), "status": status}, subresource="status")

    async def set_finalizer(self, key: Key, uid: str, present: bool) -> Object:
        """Add or remove our finalizer; other finalizers stay. Raises Conflict if the resource is gone."""
        body = _identity(key, uid)
        if present:
            body["metadata"]["finalizers"] = [FINALIZER]
        answer = await self.apply(body, manager=FINALIZER_MANAGER)
        left = answer["metadata"].get("finalizers") or []
        if present or FINALIZER not in left:
            return answer
        # Another manager owns it, too, as after a restored backup: an apply of ours doesn't remove it then.
        metadata = {
            "uid": uid,
            "resourceVersion": answer["metadata"]["resourceVersion"],
            "finalizers": [item for item in left if item != FINALIZER],
        }
        return await self._patch(_path(Ref(KIND, key.namespace, key.name)), {"metadata": metadata})

    async def mark_source(self, namespace: str, name: str, uid: str, marked: bool) -> Object:
        """Label a source Secret, and change nothing else of it, so that the watch shows it."""
        metadata: Object = {"namespace": namespace, "name": name, "uid": uid}
        if marked:
            metadata["labels"] = {ROLE_LABEL: ROLE_SOURCE}
        return await self.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}, manager=SOURCE_MANAGER
        )

    async def annotate_pod(self, namespace: str, name: str, uid: str, annotations: Mapping[str, str]) -> Object:
        """Annotate through pods/status, which can't touch what the pod runs. Raises Conflict if it is gone."""
        body = {"metadata": {"uid": uid, "annotations": dict(annotations)}}
        return await self._patch(_path(Ref("Pod", namespace, name), "status"), body)

    async def admit_pod(self, namespace: str, name: str, uid: str) -> Object:
        """Open a pod's readiness gate. Raises Conflict if the pod is gone."""
        body = {
            "metadata": {"uid": uid},
            "status": {"conditions": [{"type": GATE, "status": "True", "reason": "WithinBudget"}]},
        }
        return await self._patch(_path(Ref("Pod", namespace, name), "status"), body, "strategic-merge-patch")

    async def evict_pod(self, namespace: str, name: str, uid: str) -> None:
        """Evict a pod if its PodDisruptionBudget allows it. Raises Conflict if the pod is gone, and Retry if
        the eviction would be one too many."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"namespace": namespace, "name": name},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        await self._request("POST", _path(Ref("Pod", namespace, name), "eviction"), body=body)

    async def annotate_template(
        self, ref: Ref, uid: str, version: str, annotations: Mapping[str, str]
    ) -> Object:
        """Annotate the pod template of a workload, which restarts its pods. Raises Conflict if the workload is
        gone or has changed since `version`."""
        body = {
            "metadata": {"uid": uid, "resourceVersion": version},
            "spec": {"template": {"metadata": {"annotations": dict(annotations)}}},
        }
        return await self._patch(_path(ref), body)

    async def _patch(self, path: str, body: Mapping[str, Any], kind: str = "merge-patch") -> Object:
        answer = await self._request(
            "PATCH", path, {"fieldManager": MANAGER}, body, content=f"application/{kind}+json"
        )
        assert answer is not None
        return answer

    async def post(self, body: Mapping[str, Any]) -> Object:
        """Create an object. Raises Conflict if an object of its name exists."""
        answer = await self._request(
            "POST", _collection(body["kind"], body["metadata"]["namespace"]), body=body
        )
        assert answer is not None
        return answer

    async def put(self, body: Mapping[str, Any]) -> Object:
        """Replace a whole object. Raises Conflict if its resource version is not the current one."""
        metadata = body["metadata"]
        ref = Ref(body["kind"], metadata["namespace"], metadata["name"])
        answer = await self._request("PUT", _path(ref), body=body)
        assert answer is not None
        return answer

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        *,
        content: str = "application/json",
        may_be_absent: bool = False,
    ) -> Object | None:
        """Send a request and decode its answer. A 404 is None if the object may be absent, else a Conflict."""
        try:
            async with self._slots:
                response = await self._send(method, path, query, body, content=content)
                text = await response.read()
        except _CONNECTION_FAULTS as error:
            raise Retry(f"{method} {path}: {type(error).__name__}: {error}") from error
        if response.status == 404 and may_be_absent:
            return None
        if response.status >= 400:
            raise _failure(response.status, response.getheader("Retry-After"), text, f"{method} {path}")
        answer: Object = json.loads(text)
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None = None,
        *,
        content: str = "application/json",
        timeout: float = REQUEST_SECONDS,
    ) -> Any:
        """Send a request and return the head of its answer. Raises Retry if there is none."""
        url = f"{self.client.configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json", "Content-Type": content}
        await self.client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        try:
            return await self.client.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=timeout
            )
        except _CONNECTION_FAULTS as error:
            raise Retry(f"{method} {path}: {type(error).__name__}: {error}") from error


def watch_event(line: bytes, path: str) -> tuple[str, Object]:
    """Type and object of one line of a watch over `path`. Raises Expired, Refused and Broken for an ERROR, and
    Broken for a line that is no event."""
    try:
        event = json.loads(line)
        kind, obj = event["type"], event["object"]
        if kind != "ERROR":
            str(obj["metadata"]["resourceVersion"])
            return str(kind), obj
        code, status = int(obj.get("code") or 500), json.dumps(obj).encode()
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Broken("Broken", f"the API server sent {line[:_LINE_SHOWN]!r}, which is no event") from None
    failure = _failure(code, None, status, f"watch of {path}")
    raise failure if isinstance(failure, Expired | Refused) else Broken("Broken", failure.message)


def _failure(status: int, retry_after: str | None, text: bytes, what: str) -> ClusterError:
    try:
        answer = json.loads(text)
        message = str(answer["message"])
        reason = str(answer.get("reason") or "Refused")
    except (ValueError, KeyError, TypeError):
        message, reason = f"{what} answered {status}", "Refused"
    if status == 410:
        return Expired("Expired", message)
    if status in (404, 409):
        return Conflict("Conflict", message)
    if status in (401, 429) or status >= 500:
        after = float(retry_after) if retry_after and retry_after.isdecimal() else None
        return Retry(message, after)
    if "exceeded quota" in message:
        reason = "QuotaExceeded"
    return Refused(reason, message)


def _identity(key: Key, uid: str) -> Object:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {"namespace": key.namespace, "name": key.name, "uid": uid},
    }


def _path(ref: Ref, subresource: str = "") -> str:
    """The path of one object. Raises Refused if the name, or a namespaced object's namespace, can't be one.

    An empty name would be the path of all objects of the kind.
    """
    return _joined(ref.kind, ref.namespace, [ref.name, *([subresource] if subresource else [])])


def _collection(kind: str, namespace: str | None) -> str:
    """The path of all objects of a kind, in one namespace or (None) in all. Raises Refused."""
    return _joined(kind, namespace, [])


def _joined(kind: str, namespace: str | None, rest: list[str]) -> str:
    """Every path is made here, of segments that stay segments: whatever a name holds, the request goes to an
    object of this kind and namespace."""
    resource = RESOURCES[kind]
    place = ["namespaces", namespace] if resource.namespaced and namespace is not None else []
    root = "api" if resource.api_version == "v1" else "apis"
    return "/".join(["", root, resource.api_version, *map(_segment, [*place, resource.plural, *rest])])


def _segment(name: str) -> str:
    """A name as a segment of a path, by the rule of Kubernetes (IsValidPathSegmentName), and quoted."""
    if name in ("", ".", "..") or not name.isprintable() or "/" in name or "%" in name:
        raise Refused(
            "InvalidName", f"{printable(name, _NAME_SHOWN)!r} can't name an object of the API server; rename it"
        )
    return quote(name, safe="")
