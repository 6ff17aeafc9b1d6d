"""`admission`: how long a pod with a keeper takes to be made, beside one without; part of `keeper`.

A real API server calls a real operator by the chart's own webhook configuration. The pods are stored, one after
the other, by one client; no kubelet runs them.
"""

from __future__ import annotations

import asyncio
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

from e2e.bench import fleet
from e2e.bench.figures import Figure, median, percentile
from e2e.bench.fleet import Upstream
from e2e.bench.operator_process import OperatorProcess
from e2e.bench.plane import Plane, plane
from e2e.cluster.ports import free_port
from e2e.cluster.shell import say
from poolkeeper.names import DATABASE_LABEL, keeper_name
from tests.fast.helm_chart import only, render
from tests.pgbouncer.processes import postgres

PODS = 500
WARM_UP = 20
START_SECONDS = 60.0
NAMESPACE = "apps-0"
_OPERATOR_NAMESPACE = "poolkeeper"


def run() -> list[Figure]:
    """About half a minute."""
    with tempfile.TemporaryDirectory(prefix="poolkeeper-bench-") as scratch, postgres(Path(scratch)) as server:
        server.create_role("shop_owner", "a password")
        server.create_database("shop")
        upstream = Upstream(server.host, server.port, "shop", "shop_owner", "a password")
        return asyncio.run(_run(upstream))


async def _run(upstream: Upstream) -> list[Figure]:
    port = free_port()
    async with plane(1, upstream) as control:
        name = await _configure(control, port)
        with OperatorProcess(
            control.operator_kubeconfig,
            control.directory / "operator.log",
            POOLKEEPER_WEBHOOK=name,
            POOLKEEPER_WEBHOOK_PORT=str(port),
        ) as operator:
            await control.client.apply_all(fleet.pooled_databases(0, 1, upstream))
            await _wait(control, operator)
            labelled = await _create(control, {DATABASE_LABEL: fleet.name(0)})
            plain = await _create(control, {})
    say(f"{PODS} pods each: with a keeper p50 {median(labelled):.4f} s, without p50 {median(plain):.4f} s")
    return [
        Figure("admission_p99_s", percentile(labelled, 99), "s", 0.1),
        Figure("admission_p50_s", median(labelled), "s"),
        Figure("admission_plain_p99_s", percentile(plain, 99), "s, pod without the label"),
    ]


async def _configure(control: Plane, port: int) -> str:
    """The chart's configuration, with a Service that leads to this machine. Returns the name of both."""
    configuration = copy.deepcopy(only(render(), "MutatingWebhookConfiguration"))
    name = str(configuration["metadata"]["name"])
    service = {"namespace": _OPERATOR_NAMESPACE, "name": name, "path": "/pods", "port": port}
    configuration["webhooks"][0]["clientConfig"]["service"] = service
    await control.client.send(
        "POST",
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
        configuration,
        "application/json",
    )
    await control.client.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"namespace": _OPERATOR_NAMESPACE, "name": name},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        }
    )
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    accounts = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
    await control.client.send("POST", accounts, account, "application/json")
    return name


async def _wait(control: Plane, operator: OperatorProcess) -> None:
    """Until the keeper's Secret is there and a pod is admitted."""
    deadline = time.monotonic() + START_SECONDS
    secret = f"/api/v1/namespaces/{NAMESPACE}/secrets/{keeper_name(fleet.name(0))}"
    while True:
        operator.memory_mb()  # raises if it has ended
        try:
            await control.client.read(secret)
            await _post(control, {DATABASE_LABEL: fleet.name(0)})
            return
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def _create(control: Plane, labels: dict[str, str]) -> list[float]:
    """Seconds that each pod took, after some that warm up connections."""
    return [await _post(control, labels) for _ in range(WARM_UP + PODS)][WARM_UP:]


async def _post(control: Plane, labels: dict[str, str]) -> float:
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "web-", "labels": labels},
        "spec": {"containers": [{"name": "web", "image": "registry.example.com/web:1"}]},
    }
    began = time.monotonic()
    await control.client.send("POST", f"/api/v1/namespaces/{NAMESPACE}/pods", body, "application/json")
    return time.monotonic() - began
