"""A cluster as plan() sees it, in memory: plans are applied to it the way the API server would."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from poolkeeper import names
from poolkeeper.budget import allotments
from poolkeeper.budget.allotments import Stored
from poolkeeper.budget.protocol import Allotment, Record
from poolkeeper.budget.request import BudgetRequest
from poolkeeper.budget.seen import BudgetSeen
from poolkeeper.consumers.consent import consumers
from poolkeeper.consumers.entries import login_name
from poolkeeper.credentials import mint
from poolkeeper.credentials.logins import Login, Logins, from_secret
from poolkeeper.observed.apps import AppPod, Workload
from poolkeeper.observed.consoles import PauseSeen, Shown
from poolkeeper.observed.namespaces import Namespace
from poolkeeper.observed.poolers import Moved, Pod, Renewed, Rollout
from poolkeeper.observed.refs import ApiRefusal, Key, Owner, Ref
from poolkeeper.observed.upstream import Probe, Whereabouts
from poolkeeper.plan import ownership, peers
from poolkeeper.plan.plan import Plan, plan
from poolkeeper.plan.reloads import Reload
from poolkeeper.plan.world import Child, Resource, World
from poolkeeper.settings import Settings
from poolkeeper.spec.parse import SpecError, parse
from poolkeeper.store import reading

SETTINGS = Settings(namespace="poolkeeper", identity="test", keeper_allowed_images=("keeper:*", "own:*"))
KEY = Key("data", "shop")
UID = "11111111-2222-3333-4444-555555555555"
AUTHORITIES = mint.authorities()
CONFIG = Ref("Secret", KEY.namespace, names.config_name(KEY.name))
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OWNER_SECRET = {"username": b"shop_owner", "password": b"upstream-password"}


def body(**spec: Any) -> dict[str, Any]:
    """A PooledDatabase with a host upstream and one consumer in namespace web; `spec` overrides."""
    return {
        "apiVersion": "poolkeeper.io/v1alpha1",
        "kind": "PooledDatabase",
        "metadata": {"namespace": KEY.namespace, "name": KEY.name, "uid": UID, "generation": 1},
        "spec": {
            "upstream": {
                "host": "pg.data.svc",
                "database": "shop",
                "credentialsSecretRef": {"name": "shop-owner"},
                "tls": {"mode": "disable"},
            },
            "consumers": [{"namespace": "web", "secretName": "database"}],
            **spec,
        },
    }


def namespaces() -> dict[str, Namespace]:
    """data and web, which agreed; closed, which did not."""
    return {
        "data": Namespace({"tier": "data"}, "", terminating=False),
        "web": Namespace({"tier": "apps"}, "data", terminating=False),
        "closed": Namespace({"tier": "apps"}, "", terminating=False),
    }


def login(name: str) -> Login:
    """A login that is always the same; the verifier is one of the right form."""
    verifier = f"SCRAM-SHA-256$4096:{'A' * 22}==${'B' * 43}=:{'C' * 43}="
    return Login(name, f"password-of-{name}", verifier)


@dataclass
class Simulation:
    """`step` executes one plan; everything that was written is kept in `objects`."""

    resource: dict[str, Any] = field(default_factory=body)
    settings: Settings = SETTINGS
    namespaces: dict[str, Namespace] = field(default_factory=namespaces)
    secrets: dict[str, Mapping[str, bytes]] = field(default_factory=lambda: {"shop-owner": OWNER_SECRET})
    objects: dict[Ref, dict[str, Any]] = field(default_factory=dict)
    stale: set[Ref] = field(default_factory=set)
    """Objects whose labels name another UID than the resource's."""
    status: dict[str, Any] = field(default_factory=dict)
    finalized: bool = False
    deleting: bool = False
    marked: set[str] = field(default_factory=set)
    pods: tuple[Pod, ...] = ()
    app_pods: tuple[AppPod, ...] = ()
    workloads: Mapping[Owner, Workload | ApiRefusal | None] = field(default_factory=dict)
    workloads_due: frozenset[Owner] = frozenset()
    shown: dict[str, Shown] = field(default_factory=dict)
    version: str = "PgBouncer 1.24.1+poolkeeper.4"
    """What consoles answer to SHOW VERSION."""
    versions: dict[str, str] = field(default_factory=dict)
    """Likewise of single processes."""
    server_version: int | None = 170002
    paused: dict[str, PauseSeen] = field(default_factory=dict)
    now: datetime = NOW
    probe: Probe | None = None
    whereabouts: Whereabouts | None = None
    moved: dict[str, Moved] = field(default_factory=dict)
    schema: str = ""
    renewed: dict[str, Renewed] = field(default_factory=dict)
    budget: BudgetSeen | None = field(default_factory=lambda: BudgetSeen(server="0a1b2c3d", share=90))
    allotting: bool = True
    """The budget gives every pod that asks for it a table with all entries."""
    tables: dict[str, str] = field(default_factory=dict)
    """What the poolers' Secret holds of the budget."""
    accepts: Mapping[str, str] = field(default_factory=dict)
    """Password -> reason of refusal; what is not listed logs in."""
    log: list[str] = field(default_factory=list)

    def world(self) -> World:
        spec: Any
        try:
            spec = parse(self.resource)
        except SpecError as error:
            spec = error
        logins = self._logins()
        if not isinstance(spec, SpecError):
            granted = consumers(spec, self.namespaces, self.settings).granted
            made = {login_name(item): login(login_name(item)) for item in granted}
            logins = replace(
                logins,
                console=logins.console or login("poolkeeper"),
                authorities=logins.authorities or AUTHORITIES,
                consumers={**made, **logins.consumers},
            )
        return World(
            resource=Resource(
                UID,
                self.resource["metadata"]["generation"],
                self.deleting,
                self.finalized,
                spec,
                self.status,
                reading.reconnect(self.resource),
            ),
            children={
                ref: Child(
                    uid=f"uid-of-{ref.name}",
                    owner_uid="another" if ref in self.stale else UID,
                    role=obj["metadata"]["labels"][names.ROLE_LABEL],
                    digest=ownership.desired_digest(obj),
                )
                for ref, obj in self.objects.items()
            },
            pods=self.pods,
            app_pods=self.app_pods,
            workloads=self.workloads,
            workloads_due=self.workloads_due,
            rollout=self._rollout(),
            namespaces=self.namespaces,
            sources=self.secrets,
            marked=frozenset(self.marked),
            logins=logins,
            shown=self.shown,
            paused=self.paused,
            probe=self.probe,
            whereabouts=self.whereabouts,
            moved=self.moved,
            schema=self.schema,
            renewed=self.renewed,
            budget=self._budget_seen(),
            stored=self._stored(),
            files=self._files(),
            refusals={},
        )

    def plan(self) -> Plan:
        return plan(KEY, self.world(), self.settings, self.now)

    def step(self) -> Plan:
        steps = self.plan()
        for obj in steps.create + steps.apply:
            ref = Ref(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])
            self.objects[ref] = obj
            self.log.append(f"apply {ref}")
        for ref, _ in steps.delete:
            del self.objects[ref]
            if ref == CONFIG:
                self.tables = {}
            self.log.append(f"delete {ref}")
        if steps.finalizer is not None:
            self.finalized = steps.finalizer
            self.log.append(f"finalizer {steps.finalizer}")
        self.marked |= set(steps.mark)
        self.marked -= set(steps.unmark)
        for pod, lines in steps.pod_lines:
            peer, includes = peers.parse(lines)
            self._change(pod.uid, peer=peer, lines=lines, includes=includes)
            self.log.append(f"lines {pod.name} {peer}{' table' if includes else ''}")
        for pod in steps.admit:
            self._change(pod.uid, admitted=True, ready=True)
            self.log.append(f"admit {pod.name}")
        if steps.tables is not None:
            self.tables = _decoded(steps.tables["data"])
            self.log.append("tables")
        for reload in steps.reload:
            self.shown[reload.process] = self._shown(reload, reload.shown_as)
            self.log.append(f"reload {reload.pod} {reload.configuration.generation}")
        for reload in steps.keepers:
            self.shown[reload.process] = self._shown(reload, reload.configuration.generation)
            self.log.append(f"keeper {reload.pod} {reload.configuration.generation}")
        for item in steps.reconnect:
            self.moved[item.uid] = Moved(item.whereabouts, 0.5, 0)
            self.log.append(f"reconnect {item.name}")
        for renewal in steps.renew:
            self.renewed[renewal.uid] = Renewed(renewal.cause, 0.4, 0)
            entries = "" if renewal.entries is None else f" {','.join(sorted(renewal.entries))}"
            self.log.append(f"renew {renewal.name}{entries}")
        if steps.probe is not None:
            reason = self.accepts.get(steps.probe.password, "")
            said = (reason or "Reachable", reason or "logged in")
            self.probe = Probe(steps.probe, not reason, *said, None if reason else self.server_version)
            self.log.append("probe")
        if steps.status is not None:
            self.status = dict(steps.status)
            self.log.append("status")
        if self.allotting and steps.budget is not None and CONFIG in self.objects:
            self._allot(steps.budget)
        return steps

    def settle(self) -> Plan:
        """Step until nothing is left to do; fails if that takes more steps than a plan has groups."""
        for _ in range(14):
            tables = self.tables
            steps = self.step()
            moves = steps.reconnect or steps.renew
            if steps.settled and steps.status is None and not moves and tables == self.tables:
                return steps
        raise AssertionError(f"never settles: {self.log[-20:]}")

    def edit(self, **spec: Any) -> None:
        self.resource = {
            **self.resource,
            "metadata": {
                **self.resource["metadata"],
                "generation": self.resource["metadata"]["generation"] + 1,
            },
            "spec": {**self.resource["spec"], **spec},
        }

    def condition(self, kind: str) -> dict[str, Any]:
        return next(item for item in self.status["conditions"] if item["type"] == kind)

    def values(self, namespace: str, name: str) -> dict[str, str]:
        ref = Ref("Secret", namespace, name)
        return _decoded(self.objects[ref]["data"]) | (self.tables if ref == CONFIG else {})

    def allot(self, order: BudgetRequest, caps: Mapping[str, Mapping[str, int]]) -> None:
        """Store these caps by pod UID, as the budget does."""
        record, _ = allotments.parse(self.tables)
        known = record.allotments
        given = {
            uid: Allotment(
                sum(table.values()),
                (known[uid].revision + (known[uid].caps != table)) if uid in known else 1,
                table,
            )
            for uid, table in caps.items()
        }
        stored = allotments.files(Record(1, given), "system", order.lines, {})
        if stored != self.tables:
            self.tables = stored
            self.log.append("allot")

    def _allot(self, order: BudgetRequest) -> None:
        asking = [pod.uid for pod in self.pods if pod.running and not pod.terminating]
        kept = {uid: item.caps for uid, item in allotments.parse(self.tables)[0].allotments.items()}
        leaving = {pod.uid: kept[pod.uid] for pod in self.pods if pod.terminating and pod.uid in kept}
        self.allot(order, {**{uid: dict.fromkeys(order.lines, 5) for uid in asking}, **leaving})

    def _rollout(self) -> Rollout | None:
        deployment = self.objects.get(Ref("Deployment", KEY.namespace, names.pooler_name(KEY.name)))
        progress = Rollout(True, len(self.pods), len(self.pods), "")
        if deployment is None:
            return progress
        seen = reading.rollout(deployment)
        return replace(progress, most_pods=seen.most_pods, borrowed=seen.borrowed)

    def _stored(self) -> Stored | None:
        if CONFIG not in self.objects:
            return None
        record, server = allotments.parse(self.tables)
        return Stored(record, server, f"uid-of-{CONFIG.name}", "7")

    def _budget_seen(self) -> BudgetSeen | None:
        if self.budget is None or not self.allotting:
            return self.budget
        return replace(self.budget, admissible=frozenset(allotments.parse(self.tables)[0].allotments))

    def _shown(self, reload: Reload, generation: str) -> Shown:
        version = self.versions.get(reload.process, self.version)
        return Shown(generation, reload.restarts, "", version)

    def _change(self, uid: str, **changes: Any) -> None:
        self.pods = tuple(replace(pod, **changes) if pod.uid == uid else pod for pod in self.pods)

    def _logins(self) -> Logins:
        secret = self.objects.get(Ref("Secret", KEY.namespace, names.logins_name(KEY.name)))
        if secret is None:
            return Logins()
        return from_secret({key: base64.b64decode(value) for key, value in secret["data"].items()})

    def _files(self) -> dict[Ref, dict[str, str]]:
        roles = (names.ROLE_CONFIG, names.ROLE_KEEPER)
        return {
            ref: self.values(ref.namespace, ref.name)
            for ref, obj in self.objects.items()
            if ref.kind == "Secret" and obj["metadata"]["labels"][names.ROLE_LABEL] in roles
        }


def ready_pod(number: int = 1) -> Pod:
    """A pod that clients come to."""
    return replace(new_pod(number), ready=True, admitted=True)


def new_pod(number: int = 1) -> Pod:
    """A pod that runs and waits for its share."""
    return Pod(
        f"shop-pooler-{number}",
        f"pod-{number}",
        f"10.0.0.{number}",
        False,
        False,
        0,
        "",
        "",
        running=True,
        image=SETTINGS.pooler_image,
    )


def _decoded(data: Mapping[str, str]) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in data.items()}
