"""The last state that the watches, the API server's answers, the consoles and the upstreams reported.

The store holds digests and the few fields that planning needs instead of whole objects, since thousands of
PooledDatabases must fit. Each observation returns the keys that it concerns. If it changes nothing, it concerns
no key, so the echo of the operator's own write starts no work.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from typing import Any, TypeVar

from poolkeeper import names
from poolkeeper.consumers.consent import names_or_selects
from poolkeeper.credentials.logins import Logins
from poolkeeper.observed.namespaces import Namespace
from poolkeeper.observed.poolers import Pod
from poolkeeper.observed.refs import ApiRefusal, Key, Ref
from poolkeeper.plan.world import Resource, World
from poolkeeper.settings import Settings
from poolkeeper.spec.parse import PooledDatabase
from poolkeeper.store import reading
from poolkeeper.store.app_pods import AppPods
from poolkeeper.store.budgets_seen import BudgetsSeen
from poolkeeper.store.children import Children
from poolkeeper.store.own_secrets import OwnSecrets
from poolkeeper.store.owned import Owned
from poolkeeper.store.processes import Processes
from poolkeeper.store.scope import Scope
from poolkeeper.store.sources import Sources
from poolkeeper.store.upstreams import Upstreams
from poolkeeper.store.workloads import KnownWorkloads

log = logging.getLogger(__name__)

Object = Mapping[str, Any]
Keys = frozenset[Key]
ValueT = TypeVar("ValueT")

KEEPER_RETRY_SECONDS = 10.0
"""How long until a keeper that could not be reached, or differs, is tried again."""
REMEMBERED_PODS = 4096
_NO_KEYS: Keys = frozenset()


class Store:
    """The mutable memory of the shell; `world` returns the immutable part of one key.

    Objects of the cluster come in here. Each public part remembers one subject; callers use it directly."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._versions: dict[Ref, int] = {}
        self._resources: dict[Key, Resource] = {}
        self._namespaces: dict[str, Namespace] = {}
        self._refusals: dict[Key, dict[Ref, ApiRefusal]] = defaultdict(dict)
        self._pods: Owned[Pod] = Owned()
        self._stopped: deque[str] = deque(maxlen=REMEMBERED_PODS)
        """UIDs of pooler pods that are gone and had ended before."""
        self.scope = Scope(settings)
        self.sources = Sources()
        self.secrets = OwnSecrets()
        self._children = Children(self.secrets)
        self.processes = Processes()
        self._app_pods = AppPods(self._children, self.processes, settings.dns.nameservers)
        self.workloads = KnownWorkloads()
        self.upstreams = Upstreams(self._resources)
        self.budgets = BudgetsSeen()

    # Observations of the cluster

    def observe(self, obj: Object, *, deleted: bool = False) -> Keys:
        """Take in one object as a watch, a list or an answer shows it. Returns the keys it concerns.

        Raises nothing: an object that can't be read is logged, and is as good as gone. Everything that tenants
        write comes in here, and none of it may end the watch, or the process, for all others.
        """
        ref, version = reading.ref(obj), int(obj["metadata"]["resourceVersion"])
        if version < self._versions.get(ref, 0) or (version == self._versions.get(ref) and not deleted):
            return _NO_KEYS
        if deleted:
            self._versions.pop(ref, None)
        else:
            self._versions[ref] = version
        try:
            return self._take_out(ref, obj) if deleted else self._take_in(ref, obj)
        except Exception:
            log.exception("%s can't be read", ref)
            return self._forget(ref)

    def _take_out(self, ref: Ref, obj: Object) -> Keys:
        if self._pods.get(ref) is not None and reading.stopped(obj):
            self._stopped.append(obj["metadata"]["uid"])
        return self._forget(ref)

    def _take_in(self, ref: Ref, obj: Object) -> Keys:
        if ref.kind == names.KIND:
            return self._observe_resource(ref, obj)
        if ref.kind == "Namespace":
            return self._observe_namespace(ref, obj)
        if ref.kind == "Pod":
            return self._observe_pod(ref, obj)
        if (obj["metadata"].get("labels") or {}).get(names.ROLE_LABEL) == names.ROLE_SOURCE:
            return self._children.drop(ref) | self.sources.put(ref, lambda: reading.data(obj))
        return self.sources.drop(ref) | self._children.observe(ref, obj)

    def read(self, secret: Object) -> None:
        """Take in a marked Secret that was read since its data were not kept: nothing named it before."""
        ref = reading.ref(secret)
        if self._versions.get(ref) == int(secret["metadata"]["resourceVersion"]):
            del self._versions[ref]
        self.observe(secret)

    def applied(self, body: Object, answer: Object) -> None:
        """Take in the answer to a write of `body`. What the API server made of it counts as applied."""
        self.observe(answer)
        self._children.applied(body, answer)

    async def replace(
        self,
        kind: str,
        pages: AsyncIterator[tuple[list[Any], int]],
        namespace: str | None = None,
        refused: Collection[str] = (),
    ) -> Keys:
        """Take in a complete list of a kind: what it lacks is gone, unless it was seen later than the list.

        `namespace`, if the list covers only that one. `refused` are the namespaces that the list lacks because
        the API server doesn't show them; the pages may add to it.
        """
        seen: set[Ref] = set()
        concerned: set[Key] = set()
        versions: list[int] = []
        async for objects, version in pages:
            versions.append(version)
            for obj in objects:
                seen.add(reading.ref(obj))
                concerned |= self.observe(obj)
        for ref in [ref for ref in self._versions if ref.kind == kind and ref not in seen]:
            if namespace not in (None, ref.namespace) or ref.namespace in refused:
                continue
            if self._versions[ref] <= min(versions, default=0):
                concerned |= self.forget(ref)
        return frozenset(concerned)

    def forget(self, ref: Ref, uid: str | None = None) -> Keys:
        """Forget an object that was found to be gone; with `uid`, not one that took its place meanwhile."""
        known = self._children.get(ref) or self._pods.get(ref) or self._app_pods.get(ref)
        if uid is not None and known is not None and known.uid != uid:
            return _NO_KEYS
        self._versions.pop(ref, None)
        return self._forget(ref)

    def _observe_resource(self, ref: Ref, obj: Object) -> Keys:
        key = Key(ref.namespace, ref.name)
        before = self._resources.get(key)
        resource = self._resources[key] = reading.resource(obj)
        spec = None if resource.deleting else resource.spec
        reads = spec.upstream.secret_names() if isinstance(spec, PooledDatabase) else frozenset()
        self.sources.reads(key, reads)
        return _NO_KEYS if before == resource else frozenset({key})

    def _observe_namespace(self, ref: Ref, obj: Object) -> Keys:
        namespace = reading.namespace(obj)
        before = self._namespaces.get(ref.name)
        self._namespaces[ref.name] = namespace
        return _NO_KEYS if before == namespace else self._concerned_by(ref.name, before, namespace)

    def _concerned_by(self, name: str, *states: Namespace | None) -> Keys:
        """The PooledDatabases in a namespace, and those that name it or select it in one of these states."""
        seen = [{} if state is None else {name: state} for state in states]
        return frozenset(
            key
            for key, resource in self._resources.items()
            if key.namespace == name
            or (isinstance(resource.spec, PooledDatabase) and names_or_selects(resource.spec, name, seen))
        )

    def _observe_pod(self, ref: Ref, obj: Object) -> Keys:
        key = reading.owner(obj)
        if key is None or not reading.is_pooler(obj):
            return self._app_pods.observe(ref, obj)
        return self._app_pods.drop(ref) | self._pods.put(key, ref, reading.pod(obj))

    def _forget(self, ref: Ref) -> Keys:
        if ref.kind == names.KIND:
            key = Key(ref.namespace, ref.name)
            self._refusals.pop(key, None)
            self.secrets.drop_logins(key)
            self.sources.reads(key, frozenset())
            self.workloads.drop(key)
            self.upstreams.drop(key)
            self.budgets.drop(key)
            return frozenset({key}) if self._resources.pop(key, None) is not None else _NO_KEYS
        if ref.kind == "Namespace":
            before = self._namespaces.pop(ref.name, None)
            return self._concerned_by(ref.name, before)
        pod = self._pods.get(ref)
        if pod is not None:
            self.processes.drop(pod.uid)
        concerned = self._app_pods.drop(ref) | self._pods.drop(ref)
        return concerned | self._children.drop(ref) | self.sources.drop(ref)

    # Runs

    def refuse(self, key: Key, ref: Ref, refusal: ApiRefusal) -> None:
        """Note that the API server refused a write."""
        self._refusals[key][ref] = refusal

    def begin(self, key: Key) -> dict[Ref, ApiRefusal]:
        """Start a run: what failed in the run before is retried. Returns the refusals so far."""
        refused = self._refusals.pop(key, {})
        for pod in self.pods(key):
            self.processes.unshow_problem(pod.uid, 0.0)
        app_pods = self._app_pods.of(key)
        for app_pod in app_pods:
            for keeper in app_pod.keepers:
                # A keeper is polled in the background, and that starts a run: without a pause it never ends.
                self.processes.unshow_problem(app_pod.process(keeper), KEEPER_RETRY_SECONDS)
        self.workloads.begin(key, {pod.owner for pod in app_pods})
        return refused

    # Reading

    def keys(self) -> Keys:
        """Every PooledDatabase, and every owner of objects that may be left behind."""
        return frozenset(self._resources) | self._children.owners()

    def pods(self, key: Key) -> tuple[Pod, ...]:
        """The pooler pods of a PooledDatabase."""
        return tuple(self._pods.of(key).values())

    def ended(self, uid: str) -> bool:
        """Whether a pooler pod is gone, and had ended before."""
        return uid in self._stopped

    def resource(self, key: Key) -> Resource | None:
        """The PooledDatabase as last seen."""
        return self._resources.get(key)

    def namespaces(self) -> Mapping[str, Namespace]:
        """Every namespace that may be read; without that right, the watched ones as if without consent."""
        if self._settings.reads_namespaces:
            return self._namespaces
        return {
            name: Namespace(labels={}, accept_from="", terminating=False)
            for name in self._settings.watch_namespaces
        }

    def world(self, key: Key, logins: Logins) -> World:
        """Everything known about one key; the caller adds what it reads on demand."""
        next_probe = self.upstreams.seconds_to_probe(key)
        pods = self.pods(key)
        app_pods = self._app_pods.of(key)
        processes = [pod.uid for pod in pods]
        processes += [pod.process(keeper) for pod in app_pods for keeper in pod.keepers]
        return World(
            resource=self.resource(key),
            children=self._children.of(key),
            copies=self._children.copies(key),
            pods=pods,
            app_pods=app_pods,
            workloads=self.workloads.of(key),
            workloads_due=self.workloads.due(key),
            rollout=self._children.rollout(key),
            namespaces=dict(self.namespaces()),  # a thread may read it
            marked=self.sources.marked(key),
            logins=logins,
            budget=self.budgets.get(key),
            stored=self.secrets.stored(key),
            files=self.secrets.files(key),
            shown=self.processes.shown(processes),
            paused=_of(pods, self.processes.paused),
            probe=self.upstreams.probe(key),
            probe_due=next_probe is not None and next_probe <= 0,
            next_probe_seconds=None if next_probe is None else max(next_probe, 0.1),
            whereabouts=self.upstreams.whereabouts(key),
            moved=_of(pods, self.processes.moved),
            schema=self.upstreams.schema(key),
            renewed=_of(pods, self.processes.renewed),
            refusals=dict(self._refusals.get(key, {})),
        )


def _of(pods: Iterable[Pod], memory: Mapping[str, ValueT]) -> dict[str, ValueT]:
    return {pod.uid: memory[pod.uid] for pod in pods if pod.uid in memory}
