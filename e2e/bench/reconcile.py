"""`reconcile`: the control path alone, on etcd and an API server without scheduler, controllers and nodes.

1. 1,000 PooledDatabases created at once, against a bare client that writes the same objects; in turns.
2. Single edits among 1,000 settled ones.
3. Idle, and a restart over 1,000 settled ones.
4. Memory at 1,000 and at 5,000.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from e2e.bench import fleet
from e2e.bench.audit import Write
from e2e.bench.bare import IN_FLIGHT
from e2e.bench.figures import Figure, median, percentile
from e2e.bench.fleet import Object, Upstream
from e2e.bench.operator_process import OperatorProcess
from e2e.bench.plane import POOLED_DATABASES, Plane, plane, replay
from e2e.cluster.shell import say
from tests.pgbouncer.processes import postgres

COUNT = 1000
LARGE_COUNT = 5000
ROUNDS = 3
EDITS = 400
EDITS_PER_SECOND = 20.0
IDLE_SECONDS = 60.0
QUIET_SECONDS = 3.0
"""No write for so long, and everything complete: settled."""
LIMIT_SECONDS = 600.0
SETTLED = "reconciled once"
"""What the operator's log says when every PooledDatabase has been worked on after the start."""


def run() -> list[Figure]:
    """Everything; takes about ten minutes on two cores."""
    with tempfile.TemporaryDirectory(prefix="poolkeeper-bench-") as scratch, postgres(Path(scratch)) as server:
        server.create_role("shop_owner", "a password")
        server.create_database("shop")
        # What is measured is the control path: SCRAM would cost both sides milliseconds of processor time.
        (Path(scratch) / "data/pg_hba.conf").write_text("host all all 127.0.0.1/32 trust\n")
        server.execute("SELECT pg_reload_conf()")
        upstream = Upstream(server.host, server.port, "shop", "shop_owner", "a password")
        return asyncio.run(_run(upstream))


async def _run(upstream: Upstream) -> list[Figure]:
    figures: list[Figure] = []
    took: list[float] = []
    bare: list[tuple[float, float]] = []
    for number in range(1, ROUNDS + 1):
        async with plane(COUNT, upstream) as control, _started(control, "operator") as operator:
            took.append(await _create(control, operator, COUNT, upstream))
            cpu = operator.cpu_seconds()
            resources, children = await control.resources(), await control.children()
            if number == ROUNDS:
                figures += await _settled_figures(control, operator)
        async with plane(COUNT, upstream) as control:
            bare.append(await replay(control.client, resources, children))
        say(
            f"round {number}: operator {took[-1]:.1f} s ({cpu:.1f} s of CPU), "
            f"bare client {sum(bare[-1]):.1f} s ({bare[-1][0]:.1f} s of it for the PooledDatabases)"
        )
    ratios = [mine / sum(theirs) for mine, theirs in zip(took, bare, strict=True)]
    without = [mine / theirs[1] for mine, theirs in zip(took, bare, strict=True)]
    large = await _memory(upstream)
    return [
        Figure("create_s", median(took), "s"),
        Figure("create_bare_s", median([sum(item) for item in bare]), "s"),
        Figure("create_ratio", median(ratios), "operator / bare client", 1.5),
        Figure("create_ratio_strict", median(without), "same, PooledDatabases not counted for the client"),
        *figures,
        large,
    ]


@contextlib.asynccontextmanager
async def _started(control: Plane, name: str) -> AsyncIterator[OperatorProcess]:
    """An operator that watches and leads; its log is called `name`."""
    with OperatorProcess(control.operator_kubeconfig, control.directory / f"{name}.log") as operator:
        await _logged(operator, SETTLED)
        yield operator


async def _create(control: Plane, operator: OperatorProcess, count: int, upstream: Upstream) -> float:
    """Create PooledDatabases, wait until all is written. Seconds from first creation to last write."""
    control.audit.new()
    await control.client.apply_all(fleet.pooled_databases(0, count, upstream))
    writes = await _settle(control, operator, count)
    began = min(write.received for write in writes if write.user != "operator")
    ended = max(write.answered for write in writes if write.user == "operator")
    return ended - began


async def _settle(control: Plane, operator: OperatorProcess, count: int) -> list[Write]:
    """Wait until nothing is written any more and everything is there. Returns the writes of the time."""
    writes = control.audit.new()
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        await asyncio.sleep(QUIET_SECONDS)
        operator.memory_mb()  # raises if it has ended
        more = control.audit.new()
        writes += more
        if not more:
            missing = incomplete(await control.resources(), len(await control.children()), count)
            if missing is None:
                return writes
            if time.monotonic() > deadline:
                raise RuntimeError(f"not settled after {LIMIT_SECONDS:.0f} s: {missing}")


def incomplete(resources: Sequence[Object], children: int, count: int) -> str | None:
    """What is not written yet for `count` PooledDatabases, or None."""
    if children != count * fleet.CHILDREN:
        return f"{children} of {count * fleet.CHILDREN} children"
    current = sum(_is_current(resource) for resource in resources)
    return None if current == count else f"{current} of {count} statuses"


def _is_current(resource: Object) -> bool:
    status = resource.get("status", {})
    conditions = {item["type"]: item["status"] for item in status.get("conditions", ())}
    return (
        status.get("observedGeneration") == resource["metadata"]["generation"]
        and "Ready" in conditions
        and conditions.get("UpstreamReachable") == "True"
        and conditions.get("ConsumersSynced") == "True"
    )


async def _settled_figures(control: Plane, operator: OperatorProcess) -> list[Figure]:
    """Edits, idleness, memory and a restart, in a control plane where 1,000 are settled."""
    edited = await _edit(control, operator)
    cpu = operator.cpu_seconds()
    await asyncio.sleep(IDLE_SECONDS)
    idle_cpu = (operator.cpu_seconds() - cpu) / IDLE_SECONDS
    idle = _by_operator(control.audit.new())
    memory = operator.memory_mb(), operator.peak_memory_mb()
    operator.__exit__(None, None, None)
    control.audit.new()
    began = time.monotonic()
    with OperatorProcess(control.operator_kubeconfig, control.directory / "restart.log") as restarted:
        await _logged(restarted, SETTLED)
        restart = time.monotonic() - began
        await asyncio.sleep(QUIET_SECONDS)
        writes = _by_operator(control.audit.new())
        again = restarted.memory_mb()
    for write in (idle + writes)[:5]:
        say(f"a write: {write}")
    return [
        Figure("edit_p50_s", percentile(edited, 50), "s", 0.15),
        Figure("edit_p99_s", percentile(edited, 99), "s", 1.0),
        Figure("restart_writes", len(writes), "writes", 0),
        Figure("restart_s", restart, "s", 20.0),
        Figure("idle_writes", len(idle), "writes in 60 s", 0),
        Figure("idle_cpu", idle_cpu, "cores"),
        Figure("rss_1000_mb", max(memory[0], again), "MB", 200.0),
        Figure("rss_1000_peak_mb", memory[1], "MB"),
    ]


async def _edit(control: Plane, operator: OperatorProcess) -> list[float]:
    """Change a parameter of one after the other. Seconds until each config Secret is written."""
    control.audit.new()
    rate = 1 / EDITS_PER_SECOND
    chosen = random.Random(1).sample(range(COUNT), EDITS)  # noqa: S311
    began = time.monotonic()
    slots = asyncio.Semaphore(IN_FLIGHT)
    async with asyncio.TaskGroup() as group:
        for index, number in enumerate(chosen):
            await asyncio.sleep(max(0.0, began + index * rate - time.monotonic()))
            group.create_task(_change(control, number, slots))
    return latencies(await _settle(control, operator, COUNT))


async def _change(control: Plane, number: int, slots: asyncio.Semaphore) -> None:
    namespace, name = fleet.location(number)
    path = POOLED_DATABASES.replace("/pooled", f"/namespaces/{namespace}/pooled")
    change = {"spec": {"pooler": {"parameters": {"stats_period": 37}}}}
    async with slots:
        await control.client.merge(f"{path}/{name}", change)


def latencies(writes: Sequence[Write]) -> list[float]:
    """For every edit the seconds until the config Secret that follows from it is written."""
    edits = {
        (write.namespace, write.name): write.received
        for write in writes
        if write.resource == "pooleddatabases" and write.user != "operator"
    }
    suffix = "-pooler-config"
    written = {
        (write.namespace, write.name.removesuffix(suffix)): write.answered
        for write in sorted(writes, key=lambda item: -item.answered)
        if write.resource == "secrets" and write.name.endswith(suffix) and write.code < 300
    }
    return [written[key] - received for key, received in edits.items()]


async def _memory(upstream: Upstream) -> Figure:
    """The operator's memory with 5,000, after it made them and after a restart: the larger of both."""
    async with plane(LARGE_COUNT, upstream) as control:
        async with _started(control, "operator") as operator:
            took = await _create(control, operator, LARGE_COUNT, upstream)
            made = operator.memory_mb()
            say(f"{LARGE_COUNT} made in {took:.0f} s: {made:.0f} MB (peak {operator.peak_memory_mb():.0f} MB)")
        async with _started(control, "restarted") as operator:
            restarted = operator.memory_mb()
            say(f"restarted over {LARGE_COUNT}: {restarted:.0f} MB (peak {operator.peak_memory_mb():.0f} MB)")
    return Figure("rss_5000_mb", max(made, restarted), "MB", 400.0)


async def _logged(operator: OperatorProcess, text: str) -> None:
    """Wait until the operator's log says so."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while text not in operator.log.read_text():
        operator.memory_mb()  # raises if it has ended
        if time.monotonic() > deadline:
            raise RuntimeError(f"the operator's log does not say {text!r}")
        await asyncio.sleep(0.05)


def _by_operator(writes: Sequence[Write]) -> list[Write]:
    return [write for write in writes if write.user == "operator"]
