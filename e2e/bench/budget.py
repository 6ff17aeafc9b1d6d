"""`budget`: how fast a scale request's new caps are everywhere, and what dividing the connections costs.

On the current cluster, at a server with max_connections = 100. But for the rounds of the throughput the
server's connections are sampled all the while and held against what is usable, as in the e2e tests.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kubernetes import client, config

from e2e import kube
from e2e.bench.figures import Figure, median
from e2e.bench.ratios import transactions_per_second
from e2e.bench.site import DATABASE_NAMESPACE, server, site
from e2e.bench.stock import Stock
from e2e.cluster.paths import KUBECONFIG
from e2e.cluster.shell import ClusterError, say
from e2e.images.catalog import recipe
from e2e.kube import Object, kubectl
from tests.e2e import postgres
from tests.e2e.clients.programs import PROGRAMS
from tests.e2e.connections import Count, Record, Table, Verdict, judge, settled_at
from tests.e2e.keeper_kit import Fleet, core, make_table
from tests.e2e.kit import POOLER_PODS, Place, identifier, restricted_pod, wait_until
from tests.e2e.sampling import Sampling

MAX_CONNECTIONS = 100
RESERVE = 5
PERIOD_SECONDS = 0.1
"""Of the sampler: it asks ten consoles, on the processors that everything else runs on."""
PODS, SCALES = 10, (9, 10) * 4
QUIET_SECONDS = 3.0
"""No console's caps may change in that time before a request counts as done and the next one comes."""
CLIENTS_PER_PROGRAM, RATE = 50, 20
RESOURCES = {"requests": {"cpu": "10m", "memory": "16Mi"}}
POOLERS = 2
CLIENTS = 160
ROUNDS, SECONDS = 5, 8
RAMP_SECONDS = 3.0
FULL_SECONDS = 16
WORK = "SELECT pg_sleep(0.05);\n"
"""What keeps connections busy, and not the processors: those would be what is full otherwise."""
READY_SECONDS = 180.0
OURS, STOCK = "ours", "stock"
_STOCK_SERVER = "pg-stock"
_SCRIPT = "/tmp/script.sql"

Rounds = Mapping[str, Sequence[float]]
"""Transactions per second by way, one after the other."""


@dataclass(frozen=True)
class Request:
    """A scale request. Times are epoch seconds: from `ready` on as many pods as asked for were ready and no
    others but those that end, and until `until` nothing else was asked for."""

    replicas: int
    began: float
    ready: float
    until: float

    def took(self, tables: Sequence[Table]) -> float:
        """Until the last console has shown its last caps."""
        return settled_at(tables, self.began, self.until) - self.began

    def served(self, tables: Sequence[Table]) -> float:
        """Until the pods were ready as well."""
        return max(self.ready - self.began, self.took(tables))


def run() -> list[Figure]:
    """Everything; takes about eight minutes once the images are loaded."""
    with site(MAX_CONNECTIONS) as place:
        make_table(place)
        place.apply(_spec(place, PODS))
        say(f"waiting for {PODS} pooler pods")
        place.wait_ready(READY_SECONDS)
        place.wait_settled(READY_SECONDS)
        scaled, requests = _scale(place)
        _settle(place, POOLERS)
        loaded, full, runs = _load(place)
    verdicts = [judge(record, {place.role}, RESERVE) for record in (scaled, loaded)]
    for verdict in verdicts:
        say(str(verdict))
    return [
        *recap(requests, scaled.tables),
        *unused(verdicts[1], loaded, full),
        *throughput(runs[POOLERS], runs[1]),
        Figure("over_samples", sum(len(verdict.over) for verdict in verdicts), "samples over usable", 0),
        Figure("samples", sum(len(verdict.counts) for verdict in verdicts), "samples"),
    ]


def recap(requests: Sequence[Request], tables: Sequence[Table]) -> list[Figure]:
    """From scale requests to caps; all, and those that add a pod and that remove one."""
    took = {request: request.took(tables) for request in requests}
    up = [seconds for request, seconds in took.items() if request.replicas == PODS]
    down = [seconds for request, seconds in took.items() if request.replicas != PODS]
    served = [request.served(tables) for request in requests]
    return [
        Figure("recap_p50_s", median([*took.values()]), "s", 3),
        Figure("recap_max_s", max(took.values()), "s"),
        Figure("recap_up_p50_s", median(up), f"s, {PODS - 1} to {PODS} pods"),
        Figure("recap_down_p50_s", median(down), f"s, {PODS} to {PODS - 1} pods"),
        Figure("recap_ready_p50_s", median(served), "s, and the pods are ready"),
        Figure("recap_requests", len(took), "scale requests"),
    ]


def unused(verdict: Verdict, record: Record, full: tuple[float, float]) -> list[Figure]:
    """The share of what is usable beside others that no client is served with, while more of them wait: from
    when to when they do."""

    def share(one: Count, amount: int) -> float:
        return 1 - amount / (record.limits_at(one.at).usable(RESERVE) - one.others)

    began, ended = full
    steady = [one for one in verdict.counts if began + RAMP_SECONDS <= one.at <= ended - RAMP_SECONDS]
    if not steady:
        raise ClusterError("there is no sample of the steady load")
    return [
        Figure("unused_ratio", median([share(one, one.busy) for one in steady]), "of usable", 0.05),
        Figure("unheld_ratio", median([share(one, one.held) for one in steady]), "of usable"),
        Figure("unused_samples", len(steady), "samples of full load"),
    ]


def throughput(rounds: Rounds, of_one: Rounds) -> list[Figure]:
    """Ours by stock, each round by itself; and likewise of one pooler."""
    ratios, one = _ratios(rounds), _ratios(of_one)
    return [
        Figure("throughput_ratio", median(ratios), f"x by hand, {POOLERS} poolers", 0.95, at_least=True),
        Figure("throughput_ratio_least", min(ratios), "x by hand, the least round"),
        Figure("throughput_one_ratio", median(one), "x by hand, one pooler"),
        Figure("throughput_one_ratio_least", min(one), "x by hand, the least round"),
        Figure("throughput_tps", median(rounds[OURS]), "transactions/s"),
        Figure("throughput_stock_tps", median(rounds[STOCK]), "transactions/s"),
    ]


def _ratios(rounds: Rounds) -> list[float]:
    return [ours / stock for ours, stock in zip(rounds[OURS], rounds[STOCK], strict=True)]


def _spec(place: Place, replicas: int) -> Object:
    """No session is used here, so none has connections of its own."""
    return {
        **place.spec(replicas=replicas, drainSeconds=30, resources=RESOURCES),
        "budget": {"maxConnections": "auto", "reserve": RESERVE},
        "keeper": {"poolSize": CLIENTS_PER_PROGRAM},
        "consumers": [{"namespace": place.web, "limits": {"sessionConnections": 0}}],
    }


def _scale(place: Place) -> tuple[Record, list[Request]]:
    """Scale requests, one at a time, while apps with keepers are at work."""
    programs = {name: PROGRAMS[name] for name in ("pg", "psycopg-pool")}
    fleet = Fleet(place.web, "crowd", RATE, programs, env={"POOL_SIZE": str(CLIENTS_PER_PROGRAM)})
    fleet.deploy()
    requests: list[Request] = []
    with Sampling(place.server, place, period=PERIOD_SECONDS) as sampling:
        wait_until(lambda: len(sampling.caps()) == PODS, READY_SECONDS, f"{PODS} consoles to be watched")
        for replicas in SCALES:
            requests.append(_request(place, replicas, sampling))
            say(f"{replicas} pods after {requests[-1].ready - requests[-1].began:.2f} s")
    fleet.remove()
    return sampling.record, requests


def _request(place: Place, replicas: int, sampling: Sampling) -> Request:
    resources = client.CustomObjectsApi(config.new_client_from_config(str(KUBECONFIG)))
    began = time.time()
    resources.patch_namespaced_custom_object_scale(
        "poolkeeper.io", "v1alpha1", place.data, "pooleddatabases", "shop", {"spec": {"replicas": replicas}}
    )
    ready = wait_until(lambda: _all_ready(place, replicas), READY_SECONDS, f"{replicas} ready pods")
    place.wait_settled(READY_SECONDS)
    _wait_quiet(sampling)
    return Request(replicas, began, ready, time.time())


def _wait_quiet(sampling: Sampling) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        before = sampling.caps()
        time.sleep(QUIET_SECONDS)
        if sampling.caps() == before:
            return
        if time.monotonic() > deadline:
            raise ClusterError("the caps do not settle")


def _all_ready(place: Place, replicas: int) -> float | None:
    """The time, if just so many pods are there and ready, besides those that end."""
    pods = core().list_namespaced_pod(place.data, label_selector=POOLER_PODS).items
    staying = [pod for pod in pods if pod.metadata.deletion_timestamp is None]
    ready = [
        pod
        for pod in staying
        if any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or ())
    ]
    return time.time() if len(ready) == len(staying) == replicas else None


def _settle(place: Place, poolers: int) -> None:
    place.apply(_spec(place, poolers))
    place.wait_settled(READY_SECONDS)


def _load(place: Place) -> tuple[Record, tuple[float, float], dict[int, Rounds]]:
    """Clients that keep every connection busy, from when to when; and transactions per second of clients that
    keep the processors busy, by either way in turns, by the number of poolers."""
    held = int(place.resource()["status"]["budget"]["held"])
    say(f"{CLIENTS} clients at {held} connections: {POOLERS} poolers, and one PgBouncer set up by hand")
    other = server(place.agent, MAX_CONNECTIONS, _STOCK_SERVER)
    other.create(place.role, place.password, place.database)
    by_hand = replace(place, server=other)
    stock = Stock(by_hand, "SIGTERM", replicas=1, pool_size=held, resources=RESOURCES)
    stock.deploy()
    for name in (postgres.NAME, _STOCK_SERVER):
        _fill(place, name)
    pods = {OURS: _pgbench(place, OURS, "database"), STOCK: _pgbench(place, STOCK, stock.name)}
    with Sampling(place.server, place, period=PERIOD_SECONDS) as sampling:
        began = time.time()
        _bench(place, pods[OURS], FULL_SECONDS, f"--file={_SCRIPT}", script=WORK)
        full = began, time.time()
    # Not sampled: what asks the consoles ten times a second costs our poolers alone, and shows in the ratio.
    found = {POOLERS: _rounds(place, pods)}
    _settle(place, 1)
    found[1] = _rounds(place, pods)
    return sampling.record, full, found


def _rounds(place: Place, pods: Mapping[str, str]) -> Rounds:
    found: dict[str, list[float]] = {name: [] for name in pods}
    for _ in range(ROUNDS):
        for name, pod in pods.items():
            found[name].append(_bench(place, pod, SECONDS, "--select-only"))
            say(f"{name}: {found[name][-1]:.0f} transactions per second")
    return found


def _fill(place: Place, name: str) -> None:
    """pgbench's tables, for the role to read."""
    words = ("pgbench", "--initialize", "--scale=5", "--quiet", "--host=/tmp", "--username=postgres")
    inside = ("-n", DATABASE_NAMESPACE, "exec", f"deployment/{name}", "--")
    kubectl(*inside, *words, place.database)
    grant = f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {identifier(place.role)}"
    kubectl(*inside, "psql", "--host=/tmp", "--username=postgres", "--command", grant, place.database)


def _pgbench(place: Place, name: str, secret: str) -> str:
    """A pod with pgbench that has the connection in its environment; gives its name."""
    pod = f"pgbench-{name}"
    spec = restricted_pod(
        recipe("postgres").reference,
        ["sleep", "infinity"],
        envFrom=[{"secretRef": {"name": secret}}],
        # Without TLS, which the PgBouncer set up by hand has not, and ours has.
        env=[{"name": "PGSSLMODE", "value": "disable"}],
        volumeMounts=[{"name": "tmp", "mountPath": "/tmp"}],
    )
    spec["volumes"] = [{"name": "tmp", "emptyDir": {}}]
    metadata = {"namespace": place.web, "name": pod}
    kube.apply(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
    kubectl("-n", place.web, "wait", "--for=condition=Ready", f"pod/{pod}", "--timeout=60s", timeout=70)
    return pod


def _bench(place: Place, pod: str, seconds: int, *arguments: str, script: str = "") -> float:
    words = ("pgbench", "--no-vacuum", f"--client={CLIENTS}", "--jobs=2", f"--time={seconds}", *arguments)
    program = ("sh", "-c", f'cat > {_SCRIPT}; exec "$@"', "sh", *words)
    said = kubectl("-n", place.web, "exec", "-i", pod, "--", *program, text_input=script, timeout=seconds + 60)
    return transactions_per_second(said)
