"""The last state that the watches, the API server's answers, the consoles and the upstreams reported.

The store holds digests and the few fields that planning needs instead of whole objects, since thousands of
PooledDatabases must fit. Each observation returns the keys that it concerns. If it changes nothing, it concerns
no key, so the echo of the operator's own write starts no work.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from poolkeeper import names
from poolkeeper.budget import allotments
from poolkeeper.budget.allotments import Stored
from poolkeeper.credentials.logins import Logins, from_secret
from poolkeeper.grouped import Grouped
from poolkeeper.observed.apps import AppPod, Workload
from poolkeeper.observed.namespaces import Namespace
from poolkeeper.observed.origin import made_here, put_back
from poolkeeper.observed.poolers import Pod, Rollout
from poolkeeper.observed.refs import ApiRefusal, Key, Owner, Ref
from poolkeeper.pgbouncer.configuration import rules_of
from poolkeeper.plan.ownership import desired_digest, live_digest
from poolkeeper.plan.world import Child, Resource, World
from poolkeeper.settings import Settings
from poolkeeper.spec.parse import PooledDatabase, SpecError, parse
from poolkeeper.store import reading
from poolkeeper.store.app_pods import AppPods, asked
from poolkeeper.store.budgets_seen import BudgetsSeen
from poolkeeper.store.copies import Copies
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
_NOBODY: Keys = frozenset()
_UNREADABLE = b"unreadable"
"""The digest of an object whose contents can't be read: it differs from every desired one."""


class Store:
    """The mutable memory of the shell; `world` returns the immutable part of one key."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.scope = Scope(settings)
        self.processes = Processes()
        self.budgets = BudgetsSeen()
        self._versions: dict[Ref, int] = {}
        self._resources: dict[Key, Resource] = {}
        self.upstreams = Upstreams(self._resources)
        self._namespaces: dict[str, Namespace] = {}
        self._children: dict[Key, dict[Ref, Child]] = defaultdict(dict)
        self._owners: dict[Ref, Key] = {}
        self._copies = Copies()
        self._pods: dict[Key, dict[Ref, Pod]] = defaultdict(dict)
        self._app_pods = AppPods()
        self._workloads = KnownWorkloads()
        self._rollouts: dict[Key, Rollout] = {}
        self._logins: dict[Key, Logins] = {}
        self._files: dict[Key, dict[Ref, dict[str, str]]] = defaultdict(dict)
        self._sources = Sources()
        self._refusals: dict[Key, dict[Ref, ApiRefusal]] = defaultdict(dict)
        self._stored: Grouped[Key, Stored] = Grouped(lambda stored: stored.server)
        self._stopped: deque[str] = deque(maxlen=REMEMBERED_PODS)
        """UIDs of pooler pods that are gone and had ended before."""

    # Observations of the cluster

    def observe(self, obj: Object, *, deleted: bool = False) -> Keys:
        """Take in one object as a watch, a list or an answer shows it. Returns the keys it concerns.

        Raises nothing: an object that can't be read is logged, and is as good as gone. Everything that tenants
        write comes in here, and none of it may end the watch, or the process, for all others.
        """
        metadata = obj["metadata"]
        ref = Ref(obj["kind"], metadata.get("namespace", ""), metadata["name"])
        version = int(metadata["resourceVersion"])
        if version < self._versions.get(ref, 0) or (version == self._versions.get(ref) and not deleted):
            return _NOBODY
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
        if ref.kind == "Pod" and ref in self._owners and reading.stopped(obj):
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
            return self._forget(ref, but_source=True) | self._observe_source(ref, obj)
        return self._observe_child(ref, obj)

    def read(self, secret: Object) -> None:
        """Take in a marked Secret that was read since its data were not kept: nothing named it before."""
        metadata = secret["metadata"]
        ref = Ref(secret["kind"], metadata["namespace"], metadata["name"])
        if self._versions.get(ref) == int(metadata["resourceVersion"]):
            del self._versions[ref]
        self.observe(secret)

    def applied(self, body: Object, answer: Object) -> None:
        """Take in the answer to one of the operator's writes. What the API server made of it counts as applied,
        even if it differs from what was written: writing it again would never change anything."""
        self.observe(answer)
        metadata = answer["metadata"]
        ref = Ref(answer["kind"], metadata["namespace"], metadata["name"])
        child = self._children.get(self._owners[ref], {}).get(ref) if ref in self._owners else None
        wanted = desired_digest(body)
        if child is not None and child.digest != wanted and child.digest == live_digest(answer, names.MANAGER):
            self._children[self._owners[ref]][ref] = replace(child, applied=wanted)

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
                metadata = obj["metadata"]
                seen.add(Ref(kind, metadata.get("namespace", ""), metadata["name"]))
                concerned |= self.observe(obj)
        for ref in [ref for ref in self._versions if ref.kind == kind and ref not in seen]:
            if namespace not in (None, ref.namespace) or ref.namespace in refused:
                continue
            if self._versions[ref] <= min(versions, default=0):
                concerned |= self.forget(ref)
        return frozenset(concerned)

    def forget(self, ref: Ref, uid: str | None = None) -> Keys:
        """Forget an object that was found to be gone; with `uid`, not one that took its place meanwhile."""
        owner = self._owners.get(ref)
        known: Child | Pod | AppPod | None = self._app_pods.get(ref)
        if owner is not None:
            known = self._children.get(owner, {}).get(ref) or self._pods.get(owner, {}).get(ref) or known
        if uid is not None and known is not None and known.uid != uid:
            return _NOBODY
        self._versions.pop(ref, None)
        return self._forget(ref)

    def _observe_resource(self, ref: Ref, obj: Object) -> Keys:
        key = Key(ref.namespace, ref.name)
        metadata = obj["metadata"]
        spec: PooledDatabase | SpecError
        try:
            spec = parse(obj)
        except SpecError as error:
            spec = error
        except Exception as error:
            log.exception("%s can't be read", ref)
            spec = SpecError(
                "spec", f"can't be read ({type(error).__name__})", "compare its fields with docs/reference.md"
            )
        before = self._resources.get(key)
        self._resources[key] = Resource(
            uid=metadata["uid"],
            generation=int(metadata.get("generation", 0)),
            deleting="deletionTimestamp" in metadata,
            finalized=names.FINALIZER in metadata.get("finalizers", ()),
            spec=spec,
            status=obj.get("status") or {},
            reconnect=reading.reconnect(obj),
        )
        reads = frozenset() if isinstance(spec, SpecError) else spec.upstream.secret_names()
        self._sources.reads(key, frozenset() if self._resources[key].deleting else reads)
        return _NOBODY if before == self._resources[key] else frozenset({key})

    def _observe_namespace(self, ref: Ref, obj: Object) -> Keys:
        namespace = reading.namespace(obj)
        before = self._namespaces.get(ref.name)
        self._namespaces[ref.name] = namespace
        return _NOBODY if before == namespace else self._concerned_by(ref.name, before, namespace)

    def _concerned_by(self, name: str, *states: Namespace | None) -> Keys:
        labels = [state.labels for state in states if state is not None]
        return frozenset(
            key
            for key, resource in self._resources.items()
            if key.namespace == name
            or (
                isinstance(resource.spec, PooledDatabase)
                and any(
                    rule.namespace == name
                    or (rule.selector is not None and any(rule.selector.matches(item) for item in labels))
                    for rule in resource.spec.consumers
                )
            )
        )

    def _observe_pod(self, ref: Ref, obj: Object) -> Keys:
        key = reading.owner(obj)
        if key is None or not reading.is_pooler(obj):
            return self._observe_app_pod(ref, obj)
        moved = self._forget_app_pod(ref)
        pod = reading.pod(obj)
        before = self._pods[key].get(ref)
        self._pods[key][ref] = pod
        self._owners[ref] = key
        return moved if before == pod else moved | {key}

    def _observe_app_pod(self, ref: Ref, obj: Object) -> Keys:
        pod, before = reading.app_pod(obj, self._settings.dns.nameservers), self._app_pods.get(ref)
        if pod == before:
            return _NOBODY
        concerned = self._forget_app_pod(ref, but_shown=pod is not None)
        if pod is None:
            return concerned
        self._app_pods.put(ref, pod)
        return concerned | self._askers_owners(pod)

    def _askers_owners(self, pod: AppPod) -> Keys:
        return frozenset(self._owners[secret] for secret in asked(pod) if secret in self._owners)

    def _forget_app_pod(self, ref: Ref, *, but_shown: bool = False) -> Keys:
        pod = self._app_pods.drop(ref)
        if pod is None:
            return _NOBODY
        for keeper in () if but_shown else pod.keepers:
            self.processes.drop(pod.process(keeper))
        return self._askers_owners(pod)

    def _app_pods_of(self, key: Key) -> tuple[AppPod, ...]:
        """The app pods that ask for the Secret of one of its consumers."""
        children = self._children.get(key, {})
        return self._app_pods.asking(
            ref for ref, child in children.items() if child.role == names.ROLE_CONSUMER
        )

    def _observe_source(self, ref: Ref, obj: Object) -> Keys:
        changed = self._sources.put(ref, lambda: reading.data(obj))
        return self._sources.readers(ref) if changed else _NOBODY

    def _observe_child(self, ref: Ref, obj: Object) -> Keys:
        metadata = obj["metadata"]
        key = reading.owner(obj)
        moved = self._sources.readers(ref) if self._sources.drop(ref) else _NOBODY
        copied = key is not None and not made_here(obj)
        if not copied:
            moved |= self._copies.drop(ref)
        if ref in self._owners and (copied or self._owners[ref] != key):
            moved |= self._forget(ref)
        if key is None:
            return moved
        labels = metadata.get("labels") or {}
        role = labels.get(names.ROLE_LABEL, "")
        if copied:
            if role == names.ROLE_LOGINS and put_back(obj):
                # From a backup: consumers keep their passwords. The next run makes the record ours again.
                self._read_secret(key, ref, role, obj)
            return moved | self._copies.put(key, ref, metadata["uid"])
        child = Child(
            uid=metadata["uid"],
            owner_uid=labels.get(names.OWNER_UID_LABEL, ""),
            role=role,
            digest=live_digest(obj, names.MANAGER),
        )
        before = self._children[key].get(ref)
        if before is not None and before.digest == child.digest:
            child = replace(child, applied=before.applied)
        changed = before != child
        self._children[key][ref] = child
        self._owners[ref] = key
        if ref.kind == "Deployment":
            rollout = reading.rollout(obj)
            changed |= self._rollouts.get(key) != rollout
            self._rollouts[key] = rollout
        if ref.kind == "Secret":
            try:
                changed |= self._read_secret(key, ref, role, obj)
            except Exception:
                # Another client of the API server wrote it; the next run writes it again.
                log.exception("%s can't be read", ref)
                self._children[key][ref] = replace(child, digest=_UNREADABLE)
                changed = True
        return moved | (frozenset({key}) if changed else _NOBODY)

    def _read_secret(self, key: Key, ref: Ref, role: str, obj: Object) -> bool:
        """Take in what the operator keeps in a Secret of its own; True if that is news for a run."""
        own_logins = Ref("Secret", key.namespace, names.logins_name(key.name))
        if role == names.ROLE_LOGINS and ref == own_logins:
            # Running poolers know the console's login, and keepers trust the authorities: if they were spoilt
            # by hand, the remembered ones go back into the Secret.
            found, known = from_secret(reading.data(obj)), self.logins(key)
            self._logins[key] = replace(
                found,
                console=found.console or known.console,
                authorities=found.authorities or known.authorities,
            )
        if role in (names.ROLE_CONFIG, names.ROLE_KEEPER):
            self._files[key][ref] = reading.texts(obj)
        if ref == _config(key) and role == names.ROLE_CONFIG:
            record, server = allotments.parse(self._files[key][ref])
            metadata, rules = obj["metadata"], rules_of(self._files[key][ref])
            before = self._stored.get(key)
            self._stored[key] = Stored(record, server, metadata["uid"], metadata["resourceVersion"], rules)
            return before is None or before.record != record
        return False

    def _forget(self, ref: Ref, *, but_source: bool = False) -> Keys:
        if ref.kind == names.KIND:
            key = Key(ref.namespace, ref.name)
            self._refusals.pop(key, None)
            self.upstreams.drop(key)
            self.budgets.drop(key)
            self._workloads.drop(key)
            # Logins outlive their Secret, which is created again with them, but not the resource.
            self._logins.pop(key, None)
            self._sources.reads(key, frozenset())
            return frozenset({key}) if self._resources.pop(key, None) is not None else _NOBODY
        if ref.kind == "Namespace":
            before = self._namespaces.pop(ref.name, None)
            return self._concerned_by(ref.name, before)
        concerned: set[Key] = {*self._forget_app_pod(ref), *self._copies.drop(ref)}
        if not but_source and self._sources.drop(ref):
            concerned |= self._sources.readers(ref)
        key_of = self._owners.pop(ref, None)
        if key_of is None:
            return frozenset(concerned)
        if ref.kind == "Pod":
            pod = self._pods[key_of].pop(ref, None)
            if pod is not None:
                self.processes.drop(pod.uid)
            if not self._pods[key_of]:
                del self._pods[key_of]
        else:
            self._children[key_of].pop(ref, None)
            if not self._children[key_of]:
                del self._children[key_of]
            if ref.kind == "Deployment":
                self._rollouts.pop(key_of, None)
            self._files[key_of].pop(ref, None)
            if ref == _config(key_of):
                self._stored.pop(key_of, None)
            if not self._files[key_of]:
                del self._files[key_of]
        return frozenset(concerned | {key_of})

    # Runs

    def refuse(self, key: Key, ref: Ref, refusal: ApiRefusal) -> None:
        """Note that the API server refused a write."""
        self._refusals[key][ref] = refusal

    def begin(self, key: Key) -> dict[Ref, ApiRefusal]:
        """Start a run: what failed in the run before is retried. Returns the refusals so far."""
        refused = self._refusals.pop(key, {})
        for pod in self.pods(key):
            self.processes.unshow_problem(pod.uid, 0.0)
        app_pods = self._app_pods_of(key)
        for app_pod in app_pods:
            for keeper in app_pod.keepers:
                # A keeper is polled in the background, and that starts a run: without a pause it never ends.
                self.processes.unshow_problem(app_pod.process(keeper), KEEPER_RETRY_SECONDS)
        self._workloads.begin(key, {pod.owner for pod in app_pods})
        return refused

    def work(self, key: Key, owner: Owner, workload: Workload | ApiRefusal | None) -> None:
        """Take in the current state of the workload behind an app pod's controller."""
        self._workloads.put(key, owner, workload)

    # Reading

    def keys(self) -> Keys:
        """Every PooledDatabase, and every owner of objects that may be left behind."""
        return frozenset(self._resources) | frozenset(self._children)

    def pods(self, key: Key) -> tuple[Pod, ...]:
        """The pooler pods of a PooledDatabase."""
        return tuple(self._pods.get(key, {}).values())

    def ended(self, uid: str) -> bool:
        """Whether a pooler pod is gone, and had ended before."""
        return uid in self._stopped

    def stored(self, key: Key) -> Stored | None:
        """The budget as stored, None as long as the poolers' Secret doesn't exist."""
        return self._stored.get(key)

    def stored_on(self, system: str) -> Keys:
        """The PooledDatabases whose poolers' Secret says that they are on this database cluster."""
        return self._stored.within(system)

    def allotted_files(self, key: Key) -> Mapping[str, str]:
        """The files in the Secret that the poolers mount."""
        return self._files.get(key, {}).get(_config(key), {})

    def source(self, namespace: str, name: str) -> Mapping[str, bytes] | None:
        """Data of a marked Secret; None if they have to be read: it has no mark, or nothing named it before."""
        return self._sources.get(Ref("Secret", namespace, name))

    def resource(self, key: Key) -> Resource | None:
        """The PooledDatabase as last seen."""
        return self._resources.get(key)

    def logins(self, key: Key) -> Logins:
        """The stored logins of a PooledDatabase."""
        return self._logins.get(key, Logins())

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
        app_pods = self._app_pods_of(key)
        processes = [pod.uid for pod in pods]
        processes += [pod.process(keeper) for pod in app_pods for keeper in pod.keepers]
        return World(
            resource=self.resource(key),
            children=dict(self._children.get(key, {})),
            copies=self._copies.of(key),
            pods=pods,
            app_pods=app_pods,
            workloads=self._workloads.of(key),
            workloads_due=self._workloads.due(key),
            rollout=self._rollouts.get(key),
            namespaces=dict(self.namespaces()),  # a thread may read it
            marked=self._sources.marked(key),
            logins=logins,
            budget=self.budgets.get(key),
            stored=self.stored(key),
            files=dict(self._files.get(key, {})),
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


def _config(key: Key) -> Ref:
    """The Secret that the poolers mount."""
    return Ref("Secret", key.namespace, names.config_name(key.name))


def _of(pods: Iterable[Pod], memory: Mapping[str, ValueT]) -> dict[str, ValueT]:
    return {pod.uid: memory[pod.uid] for pod in pods if pod.uid in memory}
