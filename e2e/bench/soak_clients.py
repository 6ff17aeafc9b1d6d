"""The soak's clients: programs on this machine, in the network of an app's pod, which has a keeper on its
loopback and reaches the poolers' Service.

Half of the connections of each program lead through the keeper and are never closed. The others lead to the
Service and live for some seconds, as in a connection pool with a maximum lifetime, since a pooler that goes
waits for clients without a keeper for `drainSeconds` only. Each connection belongs to one of several tenants,
which differ by the search path that they ask for when they connect.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from e2e import kube
from e2e.cluster.paths import ROOT
from e2e.cluster.shell import ClusterError
from e2e.images.catalog import recipe
from e2e.kube import kubectl
from tests.datapath.clients.programs import PROGRAMS, Address, Program, Report, asked, built, uri
from tests.e2e.keeper_kit import LABEL, SECRET
from tests.e2e.kit import Place, identifier, restricted_pod
from tests.e2e.postgres import NAME as SERVER

TENANTS = ("t1", "t2", "t3", "public")
APP = "soak"
LIFETIME_SECONDS = 6.0
"""Of connections to the Service; far less than `drainSeconds`."""
PAUSE_SECONDS = 0.5
PROBERS = 12
"""Of each way: more than it has server connections."""
CHANGE_SECONDS = 17.0
"""Between two schema changes: more than 100 of them in half an hour."""
_END_SECONDS = 150.0
"""How much longer than its work a program may take: longer than the longest that a client may have to wait."""

Run = Callable[[], Report]


@dataclass(frozen=True)
class Site:
    """Where clients find the database, from within the app's pod."""

    within: tuple[str, ...]
    keeper: Address
    pooler: Address
    owner: Address


def prepare(place: Place) -> None:
    """The tenants' schemas and the tables that the programs work on."""
    owner = identifier(place.role)
    statements = [
        statement
        for schema in TENANTS
        for statement in (
            f"CREATE SCHEMA IF NOT EXISTS {schema}",
            f"GRANT USAGE ON SCHEMA {schema} TO {owner}",
            f"CREATE TABLE {schema}.who AS SELECT '{schema}'::text AS name",
            f"CREATE TABLE {schema}.work (client text, n int, body text)",
            f"ALTER TABLE {schema}.who OWNER TO {owner}",
            f"ALTER TABLE {schema}.work OWNER TO {owner}",
        )
    ]
    place.server.run(
        *statements,
        "CREATE TABLE public.copied (client int, number int, note text)",
        "CREATE TABLE public.changing (id int PRIMARY KEY, name text, first text)",
        "INSERT INTO public.changing VALUES (1, 'one', 'first')",
        f"ALTER TABLE public.copied OWNER TO {owner}",
        f"ALTER TABLE public.changing OWNER TO {owner}",
        database=place.database,
    )


def deploy(place: Place) -> Site:
    """An app's pod with a keeper, and the addresses of everything."""
    pod = restricted_pod(recipe("operator").reference, ["sleep", "infinity"])
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": place.web, "name": APP, "labels": {LABEL: SECRET}},
        "spec": pod,
    }
    kube.apply(json.dumps(body))
    kubectl("-n", place.web, "wait", "--for=condition=Ready", f"pod/{APP}", "--timeout=60s", timeout=70)
    made = kube.get("pod", place.web, APP)
    assert made is not None
    environment = kubectl("-n", place.web, "exec", APP, "-c", "main", "--", "env")
    variables = dict(line.split("=", 1) for line in environment.splitlines() if "=" in line)
    pooler = _address(place.url())
    database = kube.get("service", place.server.host.split(".")[1], SERVER)
    assert database is not None
    return Site(
        ("nsenter", "--target", str(_process(made["metadata"]["uid"])), "--net", "--"),
        _address(variables["DATABASE_URL"]),
        Address(_cluster_ip(place, pooler.host), pooler.port, pooler.user, pooler.password, pooler.database),
        Address(database["spec"]["clusterIP"], 5432, place.role, place.password, place.database),
    )


def _address(url: str) -> Address:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    assert parts.username
    user, password = unquote(parts.username), unquote(parts.password or "")
    return Address(parts.hostname, parts.port, user, password, unquote(parts.path[1:]))


def _cluster_ip(place: Place, host: str) -> str:
    """Of the poolers' Service: its name means nothing outside of the cluster."""
    found = kube.get("service", place.data, host.split(".")[0])
    assert found is not None, f"there is no Service {host}"
    return str(found["spec"]["clusterIP"])


def _process(uid: str) -> int:
    """A process of the pod on this machine. Raises ClusterError where its node is another one."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if uid in (entry / "cgroup").read_text():
                return int(entry.name)
        except OSError:
            continue  # it ended while we looked
    raise ClusterError("the soak needs the local cluster: the app's pod has no process on this machine")


def runs(site: Site, seconds: float) -> dict[str, Run]:
    """What is run at the same time, by name; each returns when its time is over."""
    for program in PROGRAMS.values():
        built(program.sources, program.build)
    found: dict[str, Run] = {
        name: partial(_program, site, program, seconds) for name, program in PROGRAMS.items()
    }
    for module in ("psycopg", "asyncpg"):
        url = partial(_libpq, _search_path)
        job = _job(site, module, url, seconds)
        found[module] = partial(_python, site, f"{module}_client", job, seconds)
    found["wire"] = partial(_python, site, "wire_client", _wire_job(site, seconds), seconds)
    found["recovery"] = partial(_python, site, "recovery", _recovery_job(site, seconds), seconds)
    return found


def _program(site: Site, program: Program, seconds: float) -> Report:
    def url(address: Address, tenant: str) -> str:
        return program.url(address, {} if tenant == "public" else program.schema(tenant))

    job = _job(site, program.name, url, seconds)
    return program.run({"scenario": "soak", **job}, seconds + _END_SECONDS, site.within)


def _python(site: Site, module: str, job: Mapping[str, Any], seconds: float) -> Report:
    path = f"PYTHONPATH={os.pathsep.join((str(ROOT), str(ROOT / 'operator')))}"
    command = [*site.within, "env", path, sys.executable, "-m", f"tests.datapath.soak.{module}"]
    return asked(module, command, ROOT, job, seconds + _END_SECONDS)


def _job(site: Site, name: str, url: Callable[[Address, str], str], seconds: float) -> dict[str, Any]:
    ways = [(site.keeper, 0.0), (site.pooler, LIFETIME_SECONDS)]
    connections = [(address, life, tenant) for address, life in ways for tenant in TENANTS]
    return {
        "client": name,
        "urls": [url(address, tenant) for address, _, tenant in connections],
        "expect": [tenant for _, _, tenant in connections],
        "lifetimes": [life for _, life, _ in connections],
        "seconds": seconds,
        "pause": PAUSE_SECONDS,
    }


def _search_path(tenant: str) -> Mapping[str, str]:
    return {"options": f"-c search_path={tenant}"}


def _libpq(schema: Callable[[str], Mapping[str, str]], address: Address, tenant: str) -> str:
    return uri(address, {"sslmode": "disable", **({} if tenant == "public" else schema(tenant))})


def _wire_job(site: Site, seconds: float) -> dict[str, Any]:
    addresses = {"keeper": site.keeper, "pooler": site.pooler}
    return {
        "routes": [{"name": name, "shared": True, **asdict(one)} for name, one in addresses.items()],
        "direct": {"name": "direct", "shared": False, **asdict(site.owner)},
        "lifetimes": [0.0, LIFETIME_SECONDS],
        "seconds": seconds,
        "pause": PAUSE_SECONDS,
    }


def _recovery_job(site: Site, seconds: float) -> dict[str, Any]:
    plain = {"sslmode": "disable"}
    return {
        "owner": uri(site.owner, plain),
        "urls": [uri(site.keeper, plain)] * PROBERS + [uri(site.pooler, plain)] * PROBERS,
        "lifetimes": [0.0] * PROBERS + [LIFETIME_SECONDS] * PROBERS,
        "seconds": seconds,
        "period": CHANGE_SECONDS,
    }
