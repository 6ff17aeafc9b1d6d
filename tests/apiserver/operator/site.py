"""What the operator's tests share: a control plane with an audit log, the chart's rights, lanes."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import yaml

from e2e.cluster.control_plane import ControlPlane
from poolkeeper import names
from tests.apiserver import chart_paths
from tests.apiserver.client import Api, Refused
from tests.apiserver.operator.api_proxy import Gate, Proxy
from tests.apiserver.operator.fake_postgres import FakePostgres
from tests.apiserver.operator.nursery import Nursery
from tests.apiserver.operator.operator_process import OPERATOR_NAMESPACE, ROOT, Operator
from tests.fast.helm_chart import installed, render

Object = dict[str, Any]
T = TypeVar("T")

CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
USER = f"system:serviceaccount:{OPERATOR_NAMESPACE}:poolkeeper"
PASSWORD = "upstream-password-of-the-tests"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_GROUPS = {
    "PooledDatabase": "/apis/poolkeeper.io/v1alpha1/namespaces/{}/pooleddatabases",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "Service": "/api/v1/namespaces/{}/services",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Event": "/api/v1/namespaces/{}/events",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices",
    "ResourceQuota": "/api/v1/namespaces/{}/resourcequotas",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "HorizontalPodAutoscaler": "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
}
CHILD_KINDS = (
    "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget", "Secret", "Service",
)  # fmt: skip
PATIENCE_SECONDS = 30.0
"""For what takes a second, on a machine whose processors are busy with something else."""
ATTEMPTS = 3
"""Of a cell of a kill matrix."""
_numbers = itertools.count(1)


def eventually(check: Callable[[], T], seconds: float, every: float = 0.05) -> T:
    """Repeat `check` until it neither raises AssertionError or Refused nor answers False; then its answer."""
    deadline = time.monotonic() + seconds
    while True:
        late = time.monotonic() > deadline
        try:
            answer = check()
        except (AssertionError, Refused):
            if late:
                raise
        else:
            if answer is not False:
                return answer
            assert not late, f"not so within {seconds:g} s"
        time.sleep(every)


class Cell(Protocol):
    """A cell of a kill matrix; `trouble`: what went wrong in it, or empty."""

    trouble: str


def try_cell(site: Site, label: str, cell: Cell, attempt: Callable[[Lane, Operator], None]) -> None:
    """One cell; again in another lane where a machine too busy to answer ended the operator."""
    for _ in range(ATTEMPTS):
        cell.trouble = ""
        lane = Lane(site, label)
        operator = site.operator(lane.namespaces)
        attempt(lane, operator)
        if not cell.trouble or not operator.ever_lost_lease:
            return


def path(kind: str, namespace: str, name: str = "", subresource: str = "") -> str:
    return "/".join(part for part in (_GROUPS[kind].format(namespace), name, subresource) if part)


def decoded(secret: Object) -> dict[str, str]:
    """A Secret's values as text."""
    return {key: base64.b64decode(value).decode() for key, value in (secret.get("data") or {}).items()}


class Site:
    """One control plane with everything that operators need to run against it."""

    def __init__(self, plane: ControlPlane, directory: Path, audit_log: Path) -> None:
        self.directory = directory
        self.plane = plane
        self.audit_log = audit_log
        self.api = Api(plane.kubeconfig)
        self.proxy = Proxy(plane.user_kubeconfig(USER))
        self.postgres = FakePostgres(PASSWORD)
        self.nursery = Nursery(ROOT / "operator")
        self._operators: list[Operator] = []
        self.install_crd()
        self.create_namespace(OPERATOR_NAMESPACE)
        self._grant()

    @classmethod
    @contextmanager
    def opened(cls, directory: Path) -> Iterator[Self]:
        """One on a control plane with an audit log and the controller that ends namespaces."""
        audit_log = directory / "audit.log"
        with ControlPlane(directory / "plane", ["namespace-controller"], audit_log) as plane:
            made = cls(plane, directory, audit_log)
            try:
                yield made
            finally:
                made.close()

    def install_crd(self) -> None:
        crd = yaml.safe_load((ROOT / "crds" / "pooleddatabases.yaml").read_text())
        self.api.apply(f"{CRD_PATH}/{crd['metadata']['name']}", crd)
        eventually(lambda: self.api.get("/apis/poolkeeper.io/v1alpha1/pooleddatabases") is not None, 30)

    def _grant(self) -> None:
        """The chart's own rights, and Leases of any name, since every operator here has its own."""
        for obj in installed(render()):
            if obj["kind"] in ("ClusterRole", "ClusterRoleBinding"):
                self.api.apply(chart_paths.path(obj), obj)
        rights: Object = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "leases"}}
        verbs = ["get", "create", "update"]
        rules = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": verbs}]
        self.api.apply(f"{_RBAC}/clusterroles/leases", {**rights, "kind": "ClusterRole", "rules": rules})
        binding = {
            **rights,
            "kind": "ClusterRoleBinding",
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "leases"},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": USER}],
        }
        self.api.apply(f"{_RBAC}/clusterrolebindings/leases", binding)

    def create_namespace(
        self, name: str, *, accept_from: str = "", labels: dict[str, str] | None = None
    ) -> None:
        metadata: Object = {"name": name, "labels": labels or {}}
        if accept_from:
            metadata["annotations"] = {names.ACCEPT_FROM_ANNOTATION: accept_from}
        self.api.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def operator(
        self, namespaces: Iterable[str] = (), gate: Gate | None = None, *, fresh: bool = False, **options: Any
    ) -> Operator:
        """A process that is not started yet; `fresh`: with an interpreter of its own, as in a pod."""
        nursery = None if fresh else self.nursery
        made = Operator(self.directory, nursery, gate or self.proxy.open(), namespaces, **options)
        self._operators.append(made)
        return made

    def writes(self) -> list[Object]:
        """The audit log's entries of writes by operators, Leases aside."""
        entries = (json.loads(line) for line in self.audit_log.read_text().splitlines() if line.endswith("}"))
        return [
            entry
            for entry in entries
            if entry["user"]["username"] == USER and entry["objectRef"]["resource"] != "leases"
        ]

    def restart_where_lease_lost(self, namespace: str) -> None:
        """What kubelet does, for the operators that watch the namespace."""
        for one in self._operators:
            if one.watches(namespace):
                one.restart_if_lease_lost()

    def stop_operators(self) -> None:
        for one in self._operators:
            one.close()

    def close(self) -> None:
        self.stop_operators()
        self.nursery.close()
        self.proxy.close()
        self.postgres.shutdown()


class Lane:
    """Namespaces of one test: `data` with the source Secret, `web` and `api` that accept from it."""

    def __init__(self, site: Site, label: str = "lane") -> None:
        self.site = site
        self.api = site.api
        self.name = f"{label}-{next(_numbers):04}"
        self.data, self.web, self.backend = (f"{self.name}-{part}" for part in ("data", "web", "api"))
        site.create_namespace(self.data)
        for consumer in (self.web, self.backend):
            site.create_namespace(consumer, accept_from=self.data)
        self.put_source(username="o", password=PASSWORD)

    @property
    def namespaces(self) -> tuple[str, str, str]:
        return self.data, self.web, self.backend

    # Resources

    def put_source(self, name: str = "shop-owner", **values: str) -> None:
        """Replace the source Secret's values, and nothing else of it."""
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}
        self.api.apply(path("Secret", self.data, name), body)

    def spec(self, **changes: Any) -> Object:
        return {
            "upstream": {
                "host": "127.0.0.1",
                "port": self.site.postgres.port,
                "database": "shop",
                "credentialsSecretRef": {"name": "shop-owner"},
                "tls": {"mode": "disable"},
            },
            "consumers": [{"namespace": self.web}, {"namespace": self.backend, "secretName": "shop-db"}],
            **changes,
        }

    def apply(self, name: str = "shop", **changes: Any) -> Object:
        """What `kubectl apply --server-side` of a PooledDatabase does."""
        return self.api.apply(path("PooledDatabase", self.data, name), self.body(name, **changes))

    def body(self, name: str = "shop", **changes: Any) -> Object:
        return {
            "apiVersion": "poolkeeper.io/v1alpha1",
            "kind": "PooledDatabase",
            "metadata": {"namespace": self.data, "name": name},
            "spec": self.spec(**changes),
        }

    def delete(self, name: str = "shop") -> None:
        self.api.delete(path("PooledDatabase", self.data, name))

    def resource(self, name: str = "shop") -> Object:
        self.site.restart_where_lease_lost(self.data)
        return self.api.get(path("PooledDatabase", self.data, name))

    def condition(self, kind: str, name: str = "shop") -> Object:
        conditions = self.resource(name).get("status", {}).get("conditions", [])
        return next(
            (item for item in conditions if item["type"] == kind), {"status": "", "reason": "", "message": ""}
        )

    def expect(
        self, kind: str, status: str, reason: str, *, name: str = "shop", seconds: float = PATIENCE_SECONDS
    ) -> str:
        """Wait until a condition of the current generation says so; its message."""

        def check() -> str:
            now = self.condition(kind, name)
            assert (now["status"], now["reason"]) == (status, reason), now
            assert now["observedGeneration"] == self.resource(name)["metadata"]["generation"]
            message: str = now["message"]
            return message

        return eventually(check, seconds)

    def synced(self, count: int = 2, *, name: str = "shop", seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until every consumer has its Secrets and the status of this generation says so."""

        def check() -> None:
            self.expect("ConsumersSynced", "True", "Synced", name=name, seconds=0)
            assert self.resource(name)["status"]["consumers"]["synced"] == count

        eventually(check, seconds)

    # Reading

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        self.site.restart_where_lease_lost(self.data)
        return self.api.get(path(kind, namespace or self.data, name))

    def secret(self, namespace: str, name: str) -> dict[str, str] | None:
        """A Secret's values, None if it does not exist."""
        self.site.restart_where_lease_lost(self.data)
        try:
            return decoded(self.api.get(path("Secret", namespace, name)))
        except Refused as refusal:
            if refusal.code == 404:
                return None
            raise

    def objects(self) -> list[Object]:
        """Every object in the namespaces that the operator has to do with."""
        found = []
        for namespace in self.namespaces:
            for kind in ("PooledDatabase", *CHILD_KINDS, "Pod"):
                answer = self.api.get(path(kind, namespace))
                found += [{**item, "kind": kind} for item in answer["items"]]
        return found

    def children(self) -> list[Object]:
        """Those that carry our labels, source Secrets aside."""
        return [
            item
            for item in self.objects()
            if item["metadata"].get("labels", {}).get(names.ROLE_LABEL, names.ROLE_SOURCE) != names.ROLE_SOURCE
            and item["kind"] != "Pod"
        ]

    def events(self) -> list[Object]:
        """Those that the operator posted; the API server repairs Services, and tells of it in Events."""
        items = self.api.get(path("Event", self.data))["items"]
        return [item for item in items if item["source"].get("component") == "poolkeeper"]

    def writes(self) -> list[str]:
        """What operators wrote here, from the API server's audit log."""
        return [
            f"{entry['verb']} {entry['objectRef']['resource']}/{entry['objectRef'].get('subresource', '')} "
            f"{entry['objectRef'].get('name')} {entry['responseStatus']['code']}"
            for entry in self.site.writes()
            if entry["objectRef"].get("namespace") in self.namespaces
        ]

    # Pods, which no controller makes here

    def make_pod(self, name: str, address: str = "127.66.66.66", *, gate: bool = False) -> None:
        """A pooler pod whose container runs. With its `gate` it waits for the operator; without one it is
        ready, as a pod is that was let in already. (At the default address no console answers.)"""
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        self.api.apply(f"/api/v1/namespaces/{self.data}/serviceaccounts/default", account)
        template = self.get("Deployment", "shop-pooler")["spec"]["template"]
        metadata = {**template["metadata"], "name": name}
        spec = {key: value for key, value in template["spec"].items() if gate or key != "readinessGates"}
        self.api.create(
            path("Pod", self.data), {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        )
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [
                {"type": "ContainersReady", "status": "True"},
                {"type": "Ready", "status": "False" if gate else "True"},
            ],
            "containerStatuses": [
                {
                    "name": "pgbouncer",
                    "image": "pgbouncer",
                    "imageID": "",
                    "ready": True,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
                }
            ],
        }
        self.api.merge(path("Pod", self.data, name, "status"), {"status": status})

    def let_in(self, name: str) -> bool:
        """What kubelet does once a pod's gate is open; whether it is."""
        conditions = self.get("Pod", name)["status"]["conditions"]
        known = {item["type"]: item["status"] for item in conditions}
        if known.get(names.GATE) == "True" and known["Ready"] != "True":
            self.api.request(
                "PATCH",
                path("Pod", self.data, name, "status"),
                {"status": {"conditions": [{"type": "Ready", "status": "True"}]}},
                content_type="application/strategic-merge-patch+json",
            )
        return known.get(names.GATE) == "True"

    def remove_pod(self, name: str) -> None:
        self.api.request("DELETE", path("Pod", self.data, name), gracePeriodSeconds="0")


def history(api: Api, collection: str, since: str) -> list[Object]:
    """Every state that the objects of a collection have had since a resource version, deletions left out."""
    query = f"watch=true&resourceVersion={since}&timeoutSeconds=1"
    client = api._client
    answer = client.call_api(
        "GET", f"{client.configuration.host}{collection}?{query}", {"Accept": "application/json"}, None
    )
    told = [json.loads(line) for line in answer.read().decode().splitlines()]
    assert not [item for item in told if item["type"] == "ERROR"], told
    return [item["object"] for item in told if item["type"] in ("ADDED", "MODIFIED")]
