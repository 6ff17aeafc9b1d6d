"""A bare host under a running operator, where a Service of that name is in the operator's namespace, too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.apiserver.operator.operator_process import OPERATOR_NAMESPACE, Operator
from tests.apiserver.operator.site import PASSWORD, Lane, Site, eventually
from tests.pgbouncer.names import Names, of_pod, serving
from tests.pgbouncer.processes import Postgres, postgres

DOMAIN = "k8s.example.com"
OPERATORS = "127.0.0.66"
"""The address of the operator's own Service, where no server listens."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("postgres")) as made:
        made.create_role("o", PASSWORD)
        made.create_database("shop")
        yield made


@pytest.fixture
def dns() -> Iterator[Names]:
    with serving() as made:
        yield made


def test_the_operator_logs_in_at_the_service_of_the_pooleddatabases_namespace_f1_f6(
    site: Site, lane: Lane, server: Postgres, dns: Names, tmp_path: Path
) -> None:
    dns.addresses |= {
        f"pg.{lane.data}.svc.{DOMAIN}": (server.host,),
        f"pg.{OPERATOR_NAMESPACE}.svc.{DOMAIN}": (OPERATORS,),
    }
    (tmp_path / "resolv.conf").write_text(of_pod(OPERATOR_NAMESPACE, DOMAIN))
    bind = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", bind, str(tmp_path / "resolv.conf"))
    site.operator(lane.namespaces, fresh=True, prefix=prefix).start()
    lane.apply(
        upstream={**lane.spec()["upstream"], "host": "pg", "port": server.port},
        consumers=[{"namespace": lane.web}],
    )
    assert "logged in at pg:" in lane.expect("UpstreamReachable", "True", "Reachable")
    eventually(lambda: lane.resource()["status"].get("upstream", {}).get("addresses") == [server.host], 10)
    eventually(lambda: lane.secret(lane.web, "database"), 20)
    values = lane.secret(lane.web, "database") or {}
    assert values["PGHOST"] == f"shop-pooler.{lane.data}.svc.{DOMAIN}"
    assert f"@{values['PGHOST']}:6432/" in values["DATABASE_URL"]


def test_the_operator_runs_as_a_user_without_a_name(site: Site, lane: Lane) -> None:
    """The cluster may assign it one that is in nobody's /etc/passwd."""
    prefix = ("unshare", "--user", "--map-user=1000730000", "--map-group=0")
    unnamed: dict[str, Any] = dict.fromkeys(("LOGNAME", "USER", "LNAME", "USERNAME"), "")
    operator = site.operator(lane.namespaces, fresh=True, prefix=prefix, **unnamed).start()
    eventually(lambda: healthy("127.0.0.1", operator), 20)


@pytest.mark.parametrize(("ip", "host"), [("10.1.0.7", "127.0.0.1"), ("2001:db8::7", "[::1]")])
def test_kubelet_reaches_the_health_endpoint_in_clusters_of_either_family(
    site: Site, lane: Lane, ip: str, host: str
) -> None:
    operator = site.operator(lane.namespaces, POOLKEEPER_POD_IP=ip).start()
    eventually(lambda: healthy(host, operator), 20)


def healthy(host: str, operator: Operator) -> bool:
    """Whether kubelet would take it for alive."""
    url = f"http://{host}:{operator.health_port}/healthz"
    with contextlib.suppress(URLError), urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False
