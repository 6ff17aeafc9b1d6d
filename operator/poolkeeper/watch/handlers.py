"""Every kopf handler: each maps an event to keys for the queue, and does nothing more.

kopf neither retries event handlers nor reports when its first listing is complete. So no work happens here: the
resync lists everything before the first run and periodically after it; events only make it faster.
"""

from __future__ import annotations

import itertools
from typing import Any

import kopf

from poolkeeper import names
from poolkeeper.kube.client import RESOURCES, in_cluster
from poolkeeper.observed.refs import Key
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store.store import Store
from poolkeeper.watch import kopf_session

STUCK_SECONDS = 120.0
"""Maximum duration of a run: longer than all its timeouts together means that the process hangs."""
RETRY_SECONDS = 1.0


def registry(store: Store, queue: Queue[Key], settings: Settings) -> kopf.OperatorRegistry:
    """The handlers, bound to one store and one queue."""
    handlers = kopf.OperatorRegistry()

    async def observe(event: kopf.RawEvent, resource: kopf.Resource, **_: Any) -> None:
        kind = kopf_session.KINDS[resource.plural]
        api_version = RESOURCES[kind].api_version
        body = {"apiVersion": api_version, **event["object"], "kind": kind}
        queue.add(store.observe(body, deleted=event["type"] == "DELETED"))

    kinds = [names.KIND, *(["Namespace"] if settings.reads_namespaces else [])]
    for kind in kinds:
        kopf.on.event(*_selector(kind), registry=handlers)(observe)

    @kopf.on.login(registry=handlers)
    async def log_in(**context: Any) -> kopf.AiohttpSession | None:
        found = (kopf.login_with_service_account if in_cluster() else kopf.login_with_kubeconfig)(**context)
        return None if found is None else kopf_session.open_session(found, store.scope)

    @kopf.on.probe(registry=handlers, id="queue")
    def queue_moves(**_: Any) -> str:
        if queue.slowest_seconds() > STUCK_SECONDS:
            raise kopf.PermanentError("a reconcile has been running for too long")
        return "moving"

    return handlers


def watch_settings(settings: Settings) -> kopf.OperatorSettings:
    """kopf's own settings: it writes nothing."""
    tuned = kopf.OperatorSettings()
    tuned.posting.enabled = False
    tuned.scanning.disabled = True
    tuned.watching.server_timeout = 300
    tuned.watching.client_timeout = 310
    tuned.watching.connect_timeout = 10
    tuned.watching.chunk_size = 500
    tuned.networking.request_timeout = 30
    tuned.networking.enforce_retry_after = True
    tuned.networking.error_backoffs = itertools.repeat(RETRY_SECONDS)  # a watch that gives up ends the process
    tuned.queueing.idle_timeout = 0.05  # seconds that a finished task keeps its object in memory
    tuned.persistence.diffbase_storage = _NoDiffBase()
    tuned.persistence.progress_storage = _NoProgress()
    return tuned


def _selector(kind: str) -> tuple[str, str, str] | tuple[str, str]:
    """Group (none for the core), version and plural, as kopf takes them."""
    resource = RESOURCES[kind]
    group, slash, version = resource.api_version.partition("/")
    return (group, version, resource.plural) if slash else (group, resource.plural)


class _NoDiffBase(kopf.DiffBaseStorage):
    """Stores nothing: kopf would copy every object of every event to compare it with the previous one."""

    def build(self, **_: Any) -> Any:
        return None

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        raise NotImplementedError("kopf writes nothing")


class _NoProgress(kopf.StatusProgressStorage):
    def clear(self, *, essence: Any) -> Any:
        return essence
