"""One run for one PooledDatabase: gather, plan, execute, and repeat until the plan is settled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from poolkeeper import names
from poolkeeper.consumers.consent import consumers
from poolkeeper.consumers.entries import login_name
from poolkeeper.credentials import mint
from poolkeeper.credentials.logins import Authorities, Login, Logins
from poolkeeper.kube import events
from poolkeeper.kube.client import Cluster, Conflict, Refused, Retry
from poolkeeper.kube.events import Event
from poolkeeper.observed.consoles import Shown
from poolkeeper.observed.origin import conflict, made_here, put_back
from poolkeeper.observed.poolers import Pod
from poolkeeper.observed.refs import ApiRefusal, Key, Ref
from poolkeeper.observed.upstream import Probe
from poolkeeper.pgbouncer import console
from poolkeeper.plan.plan import Plan
from poolkeeper.plan.reloads import Reload
from poolkeeper.plan.status import status
from poolkeeper.plan.world import World
from poolkeeper.queue import Queue, RetryLater
from poolkeeper.settings import Settings
from poolkeeper.spec.parse import PooledDatabase
from poolkeeper.store import reading
from poolkeeper.store.store import Store
from poolkeeper.upstream import faults
from poolkeeper.upstream.target import Target
from poolkeeper.workers import restarts, upstream
from poolkeeper.workers.background import Background
from poolkeeper.workers.lookup import UpstreamWatch
from poolkeeper.workers.offload import Offload
from poolkeeper.workers.pause import Pauser
from poolkeeper.workers.servers.loop import Budgets
from poolkeeper.workers.servers.poll import ServerWatch
from poolkeeper.workers.servers.records import Leads, Records

log = logging.getLogger(__name__)

Object = Mapping[str, Any]

ROUNDS = 12
"""More groups of steps than a plan has; a run that needs more continues in the next one."""
PROBE_PATIENCE_SECONDS = 0.3
"""How long a run waits for the upstream's answer before it continues without; the answer starts another run."""
RETIRE_AGAIN_SECONDS = 5.0
"""How long until a refused eviction is retried."""
CONSOLE_SECONDS = 4.0
UPSTREAM_SECONDS = 5.0


@dataclass
class _Run:
    """The state that one run keeps from round to round."""

    refused_before: Mapping[Ref, ApiRefusal]
    """The refusals of the previous run."""
    minted: dict[str, Login] = field(default_factory=dict)
    """Logins made in this run, by name; the plan stores them before it uses them."""
    minted_authorities: Authorities | None = None
    source_uids: dict[str, str] = field(default_factory=dict)
    """UIDs of the source Secrets that were read because no watch shows them yet, by name."""

    def console(self) -> Login:
        """The login at the poolers' consoles made in this run: the same one in every round."""
        return self.minted.get(names.CONSOLE_LOGIN) or self.minted.setdefault(
            names.CONSOLE_LOGIN, mint.mint(names.CONSOLE_LOGIN)
        )

    def authorities(self) -> Authorities:
        """Authorities made in this run: the same ones in every round."""
        self.minted_authorities = self.minted_authorities or mint.authorities()
        return self.minted_authorities


class Reconciler:
    """Executes plans. Its only state is the work under way; what it learns goes to the store."""

    def __init__(self, cluster: Cluster, store: Store, settings: Settings, leads: Leads) -> None:
        self._cluster = cluster
        self._store = store
        self._settings = settings
        self._probes: dict[Key, tuple[Target, asyncio.Task[None]]] = {}
        self._offload = Offload()
        self.queue: Queue[Key] = Queue(self.reconcile, 32, lambda key: key.namespace)
        self._background = Background(store, self.queue, self._annotate)
        records = Records(cluster, store, self.queue, leads)
        watch = partial(ServerWatch, store, self.queue, records, self._annotate)
        self._budgets = Budgets(store, self.queue, watch)
        self._pauser = Pauser(store, self.queue, self._budgets.measure)
        self._upstreams = UpstreamWatch(cluster, store, self.queue, settings)

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one PooledDatabase with its spec. Returns in how many seconds to requeue it."""
        if not self._store.scope.serves(key.namespace):
            # No write would succeed. It keeps the connections that it has until its namespace is served again,
            # which queues every key.
            self._budgets.order(key, None)
            return None
        run = _Run(self._store.begin(key))
        try:
            for _ in range(ROUNDS):
                world = await self._gather(key, run)
                steps = await self._offload.plan(key, world, self._settings, datetime.now(UTC))
                self._background.drain(key, steps.leaving, steps.moving)
                self._pauser.order(key, steps.pausing)
                self._background.reconnect(key, steps.reconnect)
                self._background.renew(key, steps.renew)
                self._budgets.order(key, steps.budget)
                self._upstreams.observe(key, steps.observe)
                if steps.settled:
                    if steps.keepers and await self._background.update(key, steps.keepers):
                        continue
                    if steps.look:
                        await restarts.look(self._cluster, self._store, key, steps.look)
                        continue
                    if steps.restart is not None:
                        await restarts.restart(self._cluster, self._store, key, steps.restart)
                        continue
                    await self._report(key, steps)
                    if steps.retire is not None:
                        await self._retire(key, steps.retire)
                    return steps.requeue
                await self._execute(key, steps, run)
        except Retry as error:
            raise RetryLater(error.message, error.after) from error
        except Refused as error:
            # A read, since refusals of writes are kept for the status. Whether the whole namespace is refused,
            # its lists show (watch/refusals.py).
            self._store.scope.refuse(key.namespace, error.message)
            raise RetryLater(error.message) from error
        except Conflict as error:
            # The store was outdated; the watch, or a fresh read of the resource, shows its current state.
            await self._look_again(key)
            raise RetryLater(error.message) from error
        raise RetryLater(f"not settled after {ROUNDS} rounds")

    # Gathering

    async def _gather(self, key: Key, run: _Run) -> World:
        self.queue.caught_up(key)  # with the echoes of the previous round
        resource = self._store.resource(key)
        if resource is None or not isinstance(resource.spec, PooledDatabase):
            return self._store.world(key, self._store.secrets.logins(key))
        sources: dict[str, Mapping[str, bytes]] = {}
        managed: set[str] = set()
        for name in resource.spec.upstream.secret_names():
            data = self._store.sources.get(Ref("Secret", key.namespace, name))
            if data is None:
                # Not marked yet, so no watch shows it: it is read now, and the plan marks it. Or it was marked
                # before a PooledDatabase named it, and its data were not kept.
                secret = await self._cluster.get(Ref("Secret", key.namespace, name))
                if secret is None:
                    continue
                role = secret["metadata"].get("labels", {}).get(names.ROLE_LABEL)
                if role not in (None, names.ROLE_SOURCE):
                    managed.add(name)
                    continue
                if role is not None:
                    self._store.read(secret)
                data = reading.data(secret)
                run.source_uids[name] = secret["metadata"]["uid"]
            sources[name] = data
        granted = consumers(resource.spec, self._store.namespaces(), self._settings).granted
        needed = {login_name(consumer) for consumer in granted}
        await self._offload.mint(needed - self._store.secrets.logins(key).consumers.keys(), run.minted)
        logins = _complete(needed, self._store.secrets.logins(key), run)
        probing = self._probes[key][0] if key in self._probes else None
        return replace(
            self._store.world(key, logins), sources=sources, managed=frozenset(managed), probing=probing
        )

    async def _look_again(self, key: Key) -> None:
        ref = Ref(names.KIND, key.namespace, key.name)
        resource = await self._cluster.get(ref)
        if resource is None:
            self._store.forget(ref)
        else:
            self._store.observe(resource)

    # Executing

    async def _execute(self, key: Key, steps: Plan, run: _Run) -> None:
        resource = self._store.resource(key)
        if steps.delete and resource is None:
            await self._look_again(key)  # what follows is destructive and relies on the resource's absence
            if self._store.resource(key) is not None:
                return
        if resource is not None:
            await self._post(key, resource.uid, steps.events)
        work: list[Coroutine[Any, Any, None]] = []
        work += [self._create(key, body, run.refused_before) for body in steps.create]
        work += [self._apply(key, body) for body in steps.apply]
        work += [self._delete(key, ref, uid) for ref, uid in steps.delete]
        work += [self._mark(key, name, run.source_uids.get(name), marked=True) for name in steps.mark]
        work += [self._mark(key, name, None, marked=False) for name in steps.unmark]
        work += [self._give_lines(key, pod, lines) for pod, lines in steps.pod_lines]
        work += [self._admit(key, pod) for pod in steps.admit]
        if steps.tables is not None:
            work.append(self._apply(key, steps.tables, names.BUDGET_MANAGER))
        if steps.finalizer is not None and resource is not None:
            work.append(self._finalize(key, resource.uid, steps.finalizer))
        work += [self._reload(reload) for reload in steps.reload]
        if steps.probe is not None:
            work.append(self._probe(key, steps.probe, steps))
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _create(self, key: Key, body: Object, refused_before: Mapping[Ref, ApiRefusal]) -> None:
        ref = reading.ref(body)
        refused = refused_before.get(ref)
        try:
            # A write would just be refused again: check first whether the other object is gone.
            found = await self._cluster.get(ref) if refused and refused.reason == "Conflict" else None
            if found is not None:
                await self._met(key, body, found)
                return
            answer = await self._cluster.create(body)
        except Conflict:
            found = await self._cluster.get(ref)
            if found is None:
                raise Retry(f"{ref} was there and is gone") from None
            await self._met(key, body, found)
        except Refused as error:
            self._store.refuse(key, ref, ApiRefusal(error.reason, error.message))
        else:
            self._store.applied(body, answer)

    async def _met(self, key: Key, body: Object, found: Object) -> None:
        """Handle an object that has the name already: ours, if an answer was lost, or a foreign one."""
        ref, resource = reading.ref(body), self._store.resource(key)
        metadata = found["metadata"]
        labels = metadata.get("labels") or {}
        if names.ROLE_LABEL in labels or names.OWNER_UID_LABEL in labels:
            self._store.observe(found)
        # Without the label, its owner has taken it from us on purpose.
        labelled = names.OWNER_UID_LABEL in labels
        owner = names.owner_key(metadata.get("annotations") or {}) if labelled else None
        known = resource is not None and labels.get(names.OWNER_UID_LABEL) == resource.uid and made_here(found)
        if resource is None or not (known or (owner == key and put_back(found))):
            self._store.refuse(key, ref, ApiRefusal("Conflict", conflict(ref, found, key.name)))
        elif not known or owner != key:
            # Put back from a backup, or its owner annotation was edited: no watch event leads to this key.
            await self._apply(key, {**body, "metadata": {**body["metadata"], "uid": metadata["uid"]}})

    async def _apply(self, key: Key, body: Object, manager: str = names.MANAGER) -> None:
        ref = reading.ref(body)
        try:
            answer = await self._cluster.apply(body, manager)
        except Refused as error:
            if "immutable" in error.message or (ref.kind == "Service" and "Duplicate value" in error.message):
                # Ours by its labels, but it can't be changed in place (a port edited by hand stays in the list,
                # which is keyed by port, and takes our port's name): it is recreated.
                await self._delete(key, ref, body["metadata"]["uid"])
                return
            self._store.refuse(key, ref, ApiRefusal(error.reason, error.message))
        except Conflict:
            found = await self._cluster.get(ref)
            self._store.forget(ref) if found is None else self._store.observe(found)
        else:
            if manager == names.MANAGER:
                self._store.applied(body, answer)
            else:
                self._store.observe(answer)

    async def _delete(self, key: Key, ref: Ref, uid: str) -> None:
        try:
            await self._cluster.delete(ref, uid)
        except Conflict:
            found = await self._cluster.get(ref)
            if found is not None and found["metadata"]["uid"] == uid:
                raise  # it is the intended object, and still there
        except Refused as error:
            self._store.refuse(key, ref, ApiRefusal(error.reason, error.message))
            return
        # Another key may want an object of this name, and has to be queued now that it is gone.
        self.queue.add(self._store.forget(ref, uid) - {key})

    async def _mark(self, key: Key, name: str, uid: str | None, *, marked: bool) -> None:
        """Mark a source Secret or remove the mark; `uid` if the Secret was read in this run."""
        ref = Ref("Secret", key.namespace, name)
        if uid is None:
            secret = await self._cluster.get(ref)
            if secret is None:
                self._store.forget(ref)
                return
            uid = secret["metadata"]["uid"]
        try:
            answer = await self._cluster.mark_source(key.namespace, name, uid, marked)
        except Refused as error:
            self._store.refuse(key, ref, ApiRefusal(error.reason, error.message))
        else:
            self._store.observe(answer) if marked else self._store.forget(ref)

    async def _finalize(self, key: Key, uid: str, present: bool) -> None:
        answer = await self._cluster.set_finalizer(key, uid, present)
        if not present and not answer["metadata"].get("finalizers"):
            self._store.forget(Ref(names.KIND, key.namespace, key.name))
        else:
            self._store.observe(answer)

    # Poolers and upstream

    async def _give_lines(self, key: Key, pod: Pod, lines: str) -> None:
        await self._annotate(key.namespace, pod.name, pod.uid, {names.PEER_ANNOTATION: lines})

    async def _admit(self, key: Key, pod: Pod) -> None:
        write = self._cluster.admit_pod(key.namespace, pod.name, pod.uid)
        await self._written(Ref("Pod", key.namespace, pod.name), pod.uid, write)

    async def _annotate(self, namespace: str, pod: str, uid: str, annotations: Mapping[str, str]) -> bool:
        """Annotate a pod; False if it is gone."""
        write = self._cluster.annotate_pod(namespace, pod, uid, annotations)
        return await self._written(Ref("Pod", namespace, pod), uid, write)

    async def _written(self, pod: Ref, uid: str, write: Awaitable[Object]) -> bool:
        """Store the pod that a write returns; False if it is gone."""
        try:
            answer = await write
        except Conflict:
            self.queue.add(self._store.forget(pod, uid))
            return False
        self.queue.add(self._store.observe(answer))
        return True

    async def _reload(self, reload: Reload) -> None:
        if reload.annotations:
            await self._annotate(reload.namespace, reload.pod, reload.uid, reload.annotations)
        answer = await console.apply(reload.access, reload.configuration, CONSOLE_SECONDS)
        shown = Shown(reload.shown_as, reload.restarts, answer.problem or "", answer.version)
        self._store.processes.show(reload.process, shown)

    async def _probe(self, key: Key, target: Target, steps: Plan) -> None:
        """Log in to the upstream. The run does not wait for a slow answer, which starts another run."""
        if key not in self._probes:
            task = asyncio.create_task(self._probe_upstream(key, target, steps))
            self._probes[key] = (target, task)
            task.add_done_callback(lambda _: self._probes.pop(key, None))
        _, task = self._probes[key]
        _, late = await asyncio.wait({task}, timeout=PROBE_PATIENCE_SECONDS)
        if late:
            task.add_done_callback(lambda _: self.queue.add((key,)))

    async def _probe_upstream(self, key: Key, target: Target, steps: Plan) -> None:
        """Probe from here and, if only the poolers' network reaches the upstream, through a pooler."""
        seen = await upstream.probe(
            target, UPSTREAM_SECONDS, self._settings.dns.names(target.host, key.namespace)
        )
        probe = Probe(target, seen.reachable, seen.reason, seen.message, seen.server_version)
        if not seen.reachable and not probe.rejected and steps.trial is not None:
            trial = steps.trial
            through = await upstream.trial_login(trial.access, trial.login, trial.entry, UPSTREAM_SECONDS)
            if through.reachable:
                probe = Probe(target, True, "ReachableThroughPooler", through.message, through.server_version)
            elif through.reason in faults.ANSWERED:
                probe = Probe(target, False, through.reason, through.message)
        self._store.upstreams.probed(key, probe)

    # Reporting

    async def _report(self, key: Key, steps: Plan) -> None:
        resource = self._store.resource(key)
        if resource is None or steps.status is None:
            return
        await self._post(key, resource.uid, steps.events)
        try:
            self._store.observe(await self._cluster.apply_status(key, resource.uid, steps.status))
        except Refused as error:
            log.error("%s/%s: status refused: %s", key.namespace, key.name, error.message)

    async def _retire(self, key: Key, pod: Pod) -> None:
        """Evict a pooler pod: it is drained like every pod that ends, and its Deployment creates another."""
        try:
            await self._cluster.evict_pod(key.namespace, pod.name, pod.uid)
        except (Conflict, Refused, Retry) as error:
            log.warning("%s/%s: pod %s is not evicted: %s", key.namespace, key.name, pod.name, error.message)
            self.queue.add_later(key, RETIRE_AGAIN_SECONDS)
            return
        log.warning("%s/%s: evicted pod %s, which answered no probe", key.namespace, key.name, pod.name)
        resource = self._store.resource(key)
        if resource is not None:
            await self._post(key, resource.uid, (status.pod_retired(pod),))

    async def _post(self, key: Key, uid: str, happened: Iterable[Event]) -> None:
        """Post Events. If one exists, it was posted before a crash: its name follows from what happened."""
        for event in happened:
            try:
                await self._cluster.post(_event_body(key, uid, event))
            except Conflict:
                continue
            except Refused as error:
                log.warning("%s/%s: Event refused: %s", key.namespace, key.name, error.message)


def _complete(needed: Set[str], logins: Logins, run: _Run) -> Logins:
    """The stored logins, with those made in this run for names `needed` that have none. If these are not all,
    the next round makes more, once the plan has stored them."""
    new = {name: login for name, login in run.minted.items() if name in needed}
    return replace(
        logins,
        console=logins.console or run.console(),
        authorities=logins.authorities or run.authorities(),
        consumers={**new, **logins.consumers},
    )


def _event_body(key: Key, uid: str, event: Event) -> Object:
    about = {
        "apiVersion": f"{names.GROUP}/{names.VERSION}",
        "kind": names.KIND,
        "namespace": key.namespace,
        "name": key.name,
        "uid": uid,
    }
    return events.body(event, about, datetime.now(UTC))
