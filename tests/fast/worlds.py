"""A cluster as plan() sees it, in memory: plans are applied to it the way the API server would."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from poolkeeper import mint, names, ownership
from poolkeeper.api import SpecError, parse
from poolkeeper.consent import consumers
from poolkeeper.desired.entries import login_name
from poolkeeper.logins import Login, Logins, from_secret
from poolkeeper.plan import Plan, plan
from poolkeeper.settings import Settings
from poolkeeper.world import (
    ApiRefusal,
    AppPod,
    Child,
    Key,
    Moved,
    Namespace,
    Owner,
    PauseSeen,
    Pod,
    Probe,
    Ref,
    Resource,
    Rollout,
    Shown,
    Whereabouts,
    Workload,
    World,
)

SETTINGS = Settings(namespace="poolkeeper", identity="test")
KEY = Key("data", "shop")
UID = "11111111-2222-3333-4444-555555555555"
AUTHORITIES = mint.authorities()
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
    paused: dict[str, PauseSeen] = field(default_factory=dict)
    now: datetime = NOW
    probe: Probe | None = None
    whereabouts: Whereabouts | None = None
    moved: dict[str, Moved] = field(default_factory=dict)
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
            granted = consumers(spec, self.namespaces, SETTINGS).granted
            made = {login_name(item): login(login_name(item)) for item in granted}
            logins = replace(
                logins,
                console=logins.console or login("poolkeeper"),
                authorities=logins.authorities or AUTHORITIES,
                consumers={**made, **logins.consumers},
            )
        return World(
            resource=Resource(
                UID, self.resource["metadata"]["generation"], self.deleting, self.finalized, spec, self.status
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
            rollout=Rollout(True, len(self.pods), len(self.pods), ""),
            namespaces=self.namespaces,
            sources=self.secrets,
            marked=frozenset(self.marked),
            logins=logins,
            shown=self.shown,
            paused=self.paused,
            probe=self.probe,
            whereabouts=self.whereabouts,
            moved=self.moved,
            files=self._files(),
            refusals={},
        )

    def plan(self) -> Plan:
        return plan(KEY, self.world(), SETTINGS, self.now)

    def step(self) -> Plan:
        steps = self.plan()
        for obj in steps.create + steps.apply:
            ref = Ref(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])
            self.objects[ref] = obj
            self.log.append(f"apply {ref}")
        for ref, _ in steps.delete:
            del self.objects[ref]
            self.log.append(f"delete {ref}")
        if steps.finalizer is not None:
            self.finalized = steps.finalizer
            self.log.append(f"finalizer {steps.finalizer}")
        self.marked |= set(steps.mark)
        self.marked -= set(steps.unmark)
        numbered = {pod.uid: peer for pod, peer in steps.peers}
        self.pods = tuple(replace(pod, peer=numbered.get(pod.uid, pod.peer)) for pod in self.pods)
        for pod, peer in steps.peers:
            self.log.append(f"peer {pod.name} {peer}")
        for reload in steps.reload:
            self.shown[reload.process] = Shown(reload.configuration.generation, reload.restarts, "")
            self.log.append(f"reload {reload.pod} {reload.configuration.generation}")
        for reload in steps.keepers:
            self.shown[reload.process] = Shown(reload.configuration.generation, reload.restarts, "")
            self.log.append(f"keeper {reload.pod} {reload.configuration.generation}")
        for item in steps.reconnect:
            self.moved[item.uid] = Moved(item.whereabouts, 0.5, 0)
            self.log.append(f"reconnect {item.name}")
        if steps.probe is not None:
            reason = self.accepts.get(steps.probe.password, "")
            self.probe = Probe(steps.probe, not reason, reason or "Reachable", reason or "logged in")
            self.log.append("probe")
        if steps.status is not None:
            self.status = dict(steps.status)
            self.log.append("status")
        return steps

    def settle(self) -> Plan:
        """Step until nothing is left to do; fails if that takes more steps than a plan has groups."""
        for _ in range(10):
            steps = self.step()
            if steps.settled and steps.status is None and not steps.reconnect:
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
        data = self.objects[Ref("Secret", namespace, name)]["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

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
    return Pod(f"shop-pooler-{number}", f"pod-{number}", f"10.0.0.{number}", True, False, 0, "", "")
