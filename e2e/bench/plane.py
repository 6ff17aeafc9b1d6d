"""A fresh API server with the CRD, the fleet's namespaces and credentials; its contents, read or replayed."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from e2e.bench import fleet
from e2e.bench.audit import AuditLog
from e2e.bench.bare import IN_FLIGHT, BareClient
from e2e.bench.fleet import Object, Upstream
from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.paths import ROOT

CRD = ROOT / "crds" / "pooleddatabases.yaml"
POOLED_DATABASES = "/apis/poolkeeper.io/v1alpha1/pooleddatabases"
CHILDREN = (
    "/api/v1/secrets",
    "/api/v1/services",
    "/apis/apps/v1/deployments",
    "/apis/policy/v1/poddisruptionbudgets",
    "/apis/networking.k8s.io/v1/networkpolicies",
)
_OWNED = "app.kubernetes.io/managed-by=poolkeeper"


@dataclass(frozen=True)
class Plane:
    """One control plane: etcd and the API server, no scheduler and no controllers."""

    directory: Path
    client: BareClient
    operator_kubeconfig: Path
    audit: AuditLog

    async def children(self) -> list[Object]:
        """Everything that the operator made."""
        found: list[Object] = []
        for path in CHILDREN:
            kind = await self.client.read(path, limit="1")
            identity = {"apiVersion": kind["apiVersion"], "kind": kind["kind"].removesuffix("List")}
            found += [{**item, **identity} for item in await self.client.listed(path, labelSelector=_OWNED)]
        return found

    async def resources(self) -> list[Object]:
        """Every PooledDatabase, with its status."""
        kind = {"apiVersion": fleet.API_VERSION, "kind": "PooledDatabase"}
        return [{**item, **kind} for item in await self.client.listed(POOLED_DATABASES)]


@contextlib.asynccontextmanager
async def plane(count: int, upstream: Upstream) -> AsyncIterator[Plane]:
    """A control plane in which everything but `count` PooledDatabases exists."""
    with tempfile.TemporaryDirectory(prefix="poolkeeper-bench-") as scratch:
        directory = Path(scratch)
        audit = directory / "audit.log"
        with ControlPlane(directory, audit_log=audit) as control_plane:
            async with BareClient(control_plane.kubeconfig) as client:
                await _install_crd(client)
                await client.apply_all(fleet.namespaces())
                await client.apply_all(fleet.secrets(0, count, upstream))
                operator = control_plane.user_kubeconfig("operator", ["system:masters"])
                yield Plane(directory, client, operator, AuditLog(audit))


async def replay(client: BareClient, resources: list[Object], children: list[Object]) -> tuple[float, float]:
    """Write the very same objects with a bare client, every status and child after its PooledDatabase.

    Returns the seconds for the PooledDatabases, and those for their children and statuses.
    """
    bodies = [fleet.as_applied(resource) for resource in resources]
    began = time.monotonic()
    await client.apply_all(bodies)
    created = time.monotonic()
    waiting = iter(
        [(fleet.as_applied(child), "") for child in children]
        + [({**body, "status": live["status"]}, "status") for body, live in zip(bodies, resources, strict=True)]
    )

    async def work() -> None:
        for body, subresource in waiting:
            await client.apply(body, subresource)

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(work())
    return created - began, time.monotonic() - created


async def _install_crd(client: BareClient) -> None:
    await client.apply(yaml.safe_load(CRD.read_text()))
    deadline = time.monotonic() + 30
    while True:
        try:
            await client.read(POOLED_DATABASES)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return
