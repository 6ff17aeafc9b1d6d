"""What the tests say most: a PooledDatabase in a place of its own, its conditions, its pods, waiting."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from e2e import kube
from e2e.install import NAMESPACE, RELEASE
from e2e.kube import Object, kubectl
from tests.e2e.client import Agent, Session

OWNER = "owner"  # name of the Secret with the upstream's credentials
POOLER_PODS = "poolkeeper.io/owner=shop,poolkeeper.io/role=pooler"
CONVERGES_WITHIN = 10.0


def wait_until(check: Callable[[], Any], within: float, what: str) -> Any:
    """Poll until ``check`` returns something true, and return that. ``what`` completes "waited for ..."."""
    deadline = time.monotonic() + within
    while not (found := check()):
        assert time.monotonic() < deadline, f"waited {within:.0f} s for {what}"
        time.sleep(0.1)
    return found


@contextmanager
def timed(what: str, at_most: float) -> Iterator[None]:
    """Print how many seconds the block took, and fail if it took too long."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    print(f"{what}: {took:.2f} s")
    assert took <= at_most, f"{what} took {took:.2f} s instead of at most {at_most:.0f} s"


def dsn(host: str, user: str, password: str, database: str, port: int = 5432, query: str = "") -> str:
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    return f"postgresql://{login}@{host}:{port}/{quote(database, safe='')}{query}"


@dataclass(frozen=True)
class Server:
    """A PostgreSQL in the cluster, with its superuser's password."""

    agent: Agent
    host: str
    password: str = field(repr=False)

    def run(self, *statements: str, database: str = "postgres") -> list[dict[str, str]]:
        """Run statements as the superuser; returns the rows of the last one."""
        rows: list[dict[str, str]] = []
        for statement in statements:
            rows = self.agent.query(dsn(self.host, "postgres", self.password, database), statement)
        return rows

    def create(self, role: str, password: str, database: str) -> None:
        """A role that may log in, and a database that it owns."""
        self.run(f"CREATE ROLE {identifier(role)} LOGIN")
        self.set_password(role, password)
        self.run(f"CREATE DATABASE {identifier(database)} OWNER {identifier(role)}")

    def set_password(self, role: str, password: str) -> None:
        quoted = password.replace("'", "''")
        self.run(f"SET standard_conforming_strings = on; ALTER ROLE {identifier(role)} PASSWORD '{quoted}'")


def identifier(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


@dataclass(frozen=True)
class Place:
    """A database of its own and two namespaces: one for its PooledDatabase ``shop``, one for its consumer."""

    agent: Agent
    server: Server
    data: str
    web: str
    role: str
    password: str = field(repr=False)
    database: str

    def spec(self, **pooler: Any) -> Object:
        """A spec with one consumer; poolers go quickly unless the test asks for patience."""
        return {
            "upstream": {
                "host": self.server.host,
                "database": self.database,
                "credentialsSecretRef": {"name": OWNER},
                "tls": {"mode": "disable"},
            },
            "pooler": {"drainSeconds": 1, **pooler},
            "consumers": [{"namespace": self.web}],
        }

    def body(self, spec: Object | None = None) -> Object:
        return {
            "apiVersion": "poolkeeper.io/v1alpha1",
            "kind": "PooledDatabase",
            "metadata": {"namespace": self.data, "name": "shop"},
            "spec": spec or self.spec(),
        }

    def apply(self, spec: Object | None = None) -> None:
        kube.apply(json.dumps(self.body(spec)))

    def serve(self, spec: Object | None = None) -> str:
        """Apply the PooledDatabase, wait until it is Ready and all its pods serve. Returns DATABASE_URL."""
        self.apply(spec)
        self.wait_ready()
        self.wait_settled()
        url = self.url()
        # kube-proxy learns of the ready pods a moment later than anybody who watches them.
        self.agent.query_soon(url, "SELECT 1", within=10)
        return url

    def wait_ready(self, within: float = 60.0) -> None:
        words = ("wait", "--for=condition=Ready", "pooldb/shop", f"--timeout={within:.0f}s")
        kubectl("-n", self.data, *words, timeout=within + 10)

    def wait_settled(self, within: float = 60.0) -> None:
        """All pods of the current spec are ready, show the configuration, and no other is left."""

        def settled() -> bool:
            body = self.resource()
            status, wanted = body.get("status", {}), body["spec"]["pooler"]["replicas"]
            return (
                status.get("observedGeneration") == body["metadata"]["generation"]
                and status.get("readyReplicas", 0) == status.get("replicas", 0) == wanted == len(self.pods())
                and all(item["status"] == "True" for item in status["conditions"])
            )

        try:
            wait_until(settled, within, "the PooledDatabase to settle")
        except AssertionError as error:
            raise AssertionError(f"{error}; its status: {json.dumps(self.resource().get('status'))}") from None

    def patch(self, change: Object) -> None:
        """A merge patch of the PooledDatabase's spec."""
        text = json.dumps({"spec": change})
        kubectl("-n", self.data, "patch", "pooldb", "shop", "--type=merge", "-p", text)

    def resource(self) -> Object:
        found = kube.get("pooldb", self.data, "shop")
        assert found is not None, "the PooledDatabase is gone"
        return found

    def condition(self, kind: str) -> Object:
        conditions = self.resource().get("status", {}).get("conditions", [])
        return next((item for item in conditions if item["type"] == kind), {})

    def wait_condition(self, kind: str, status: str, reason: str, within: float = 15.0) -> str:
        """Wait for a condition to say this of the current generation; returns its message."""
        deadline = time.monotonic() + within
        while True:
            body = self.resource()
            conditions = body.get("status", {}).get("conditions", [])
            for item in conditions:
                current = item["observedGeneration"] == body["metadata"]["generation"]
                if current and (item["type"], item["status"], item["reason"]) == (kind, status, reason):
                    print(f"{kind}={status} {reason}: {item['message']}")
                    return str(item["message"])
            assert time.monotonic() < deadline, f"no {kind}={status} {reason} in {json.dumps(conditions)}"
            time.sleep(0.1)

    def secret(self, name: str = "database", namespace: str = "") -> dict[str, str]:
        """A consumer's Secret in plain text, empty if there is none."""
        found = kube.get("secret", namespace or self.web, name)
        return kube.secret_values(found) if found else {}

    def url(self, key: str = "DATABASE_URL") -> str:
        return self.secret()[key]

    def write_owner(self, password: str, user: str | None = None) -> None:
        """The Secret with the upstream's credentials."""
        values = {"username": user or self.role, "password": password}
        kube.apply(json.dumps(kube.secret(self.data, OWNER, values)))

    def pods(self) -> list[Object]:
        """The pooler pods, those that are ending included."""
        return kube.items("pods", self.data, POOLER_PODS)

    def identities(self) -> dict[str, tuple[str, int]]:
        """UID and restarts by pod: what a change without a restart leaves alone."""
        return {
            pod["metadata"]["name"]: (
                pod["metadata"]["uid"],
                sum(status["restartCount"] for status in pod["status"].get("containerStatuses", [])),
            )
            for pod in self.pods()
        }

    @contextmanager
    def consoles(self, pods: Collection[str] = ()) -> Iterator[list[Session]]:
        """A console connection to every pooler pod that has an address and is not ending, or to those named."""
        password = self.console_password()
        with ExitStack() as stack:
            yield [
                stack.enter_context(
                    Session(self.agent, self.console_dsn(pod["status"]["podIP"], password), console=True)
                )
                for pod in self.pods()
                if "deletionTimestamp" not in pod["metadata"]
                and (pod["metadata"]["name"] in pods if pods else "podIP" in pod["status"])
            ]

    def console_password(self) -> str:
        """Of the poolers' consoles."""
        logins = self.secret("shop-pooler-logins", self.data)
        return str(json.loads(logins["console"])["password"])

    @staticmethod
    def console_dsn(address: str, password: str) -> str:
        return dsn(address, "poolkeeper", password, "pgbouncer", port=6432)

    def reconnect(self) -> None:
        """Have every pooler open new connections to the upstream, with whatever login it has."""
        with self.consoles() as consoles:
            for console in consoles:
                console.execute("RECONNECT")


def setting(console: Session, name: str) -> str:
    """One setting as a pooler's console shows it."""
    return next(row["value"] for row in console.execute("SHOW CONFIG") if row["key"] == name)


def images_in_use() -> dict[str, str]:
    """References of the images that the release was installed with."""
    values = json.loads(kube.helm("-n", NAMESPACE, "get", "values", RELEASE, "-o", "json"))
    image = values["image"]
    return {"operator": f"{image['repository']}:{image['tag']}", "pgbouncer": values["pooler"]["image"]}


def namespaces(*bodies: tuple[str, dict[str, str]]) -> None:
    """Create namespaces, given with their annotations, in which only Pod Security `restricted` may run."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "poolkeeper-e2e": "true"}
    kube.apply(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "List",
                "items": [
                    {
                        "apiVersion": "v1",
                        "kind": "Namespace",
                        "metadata": {"name": name, "annotations": annotations, "labels": labels},
                    }
                    for name, annotations in bodies
                ],
            }
        )
    )


def restricted_pod(image: str, command: list[str], **container: Any) -> Object:
    """The spec of a pod with one container that Pod Security `restricted` admits."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "main",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                **({"command": command} if command else {}),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                **container,
            }
        ],
    }
