"""The host names of one PooledDatabase: its upstream's, and its poolers' in everything that names them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509

from poolkeeper.dns import Dns
from poolkeeper.observed.refs import Ref
from tests.fast.worlds import CONFIG, SETTINGS, Simulation, ready_pod

SHORT = "shop-pooler.data.svc"
FULL, CUSTOM = f"{SHORT}.cluster.local", f"{SHORT}.k8s.example.com"
OTHER_DOMAIN = replace(SETTINGS, dns=Dns("k8s.example.com"))
URLS = (
    "DATABASE_URL",
    "DATABASE_SESSION_URL",
    "uri",
    "jdbc-url",
    "r2dbc-url",
    "session-uri",
    "session-jdbc-url",
)


def settled(**changes: object) -> Simulation:
    cluster = replace(Simulation(pods=(ready_pod(1), ready_pod(2))), **changes)  # type: ignore[arg-type]
    cluster.edit(keeper={"enabled": True})
    cluster.settle()
    return cluster


def certified(cluster: Simulation) -> list[str]:
    """The names in the certificate that the poolers' configuration shows."""
    files = cluster.values("data", CONFIG.name)
    path = next(
        line.split(" = ")[1]
        for line in files["pgbouncer.ini"].splitlines()
        if line.startswith("client_tls_cert_file")
    )
    certificate = x509.load_pem_x509_certificate(files[path.rpartition("/")[2]].encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize(("settings", "host"), [(SETTINGS, FULL), (OTHER_DOMAIN, CUSTOM)])
def test_every_url_and_variable_names_the_poolers_in_full_f6(settings: object, host: str) -> None:
    cluster = settled(settings=settings)
    direct, binding = cluster.values("web", "database"), cluster.values("web", "database-binding")
    given = {**direct, **binding}
    for key in URLS:
        assert f"{host}:6432" in given[key], key
    assert (given["PGHOST"], given["host"]) == (host, host)
    assert binding["pgpass"].startswith(f"{host}:6432:")
    assert f"host='{host}'" in cluster.values("web", "database-keeper")["pgbouncer.ini"]
    assert cluster.status["endpoints"]["host"] == host
    everything = "\n".join(f"{key}={value}" for key, value in given.items())
    assert everything.count(SHORT) == everything.count(host)


def test_the_poolers_certificate_vouches_for_both_names() -> None:
    assert certified(settled()) == [SHORT, FULL]
    assert certified(settled(settings=OTHER_DOMAIN)) == [SHORT, CUSTOM]


def test_the_host_stays_in_the_status_while_the_spec_is_invalid() -> None:
    cluster = settled(settings=OTHER_DOMAIN)
    cluster.edit(upstream={"database": "shop"})
    cluster.settle()
    assert cluster.condition("SpecValid")["status"] == "False"
    assert cluster.status["endpoints"]["host"] == CUSTOM


def test_another_domain_is_handed_out_once_every_pooler_vouches_for_it() -> None:
    """As an upgrade from short names does it: the poolers' consoles are still verified by a name that the old
    certificate has, too."""
    cluster = settled()
    cluster.log.clear()
    cluster.settings = OTHER_DOMAIN
    names = set()
    for _ in range(14):
        steps = cluster.step()
        names |= {reload.access.name for reload in steps.reload}
    cluster.settle()
    assert names == {SHORT}
    last = max(index for index, line in enumerate(cluster.log) if line.startswith("reload"))
    for name in ("database", "database-binding", "database-keeper"):
        assert cluster.log.index(f"apply {Ref('Secret', 'web', name)}") > last
    assert certified(cluster) == [SHORT, CUSTOM]


@pytest.mark.parametrize("by_url", [False, True], ids=["host", "url"])
@pytest.mark.parametrize(
    "host", ["pg", "pg.data", "pg.data.svc", "pg.data.svc.cluster.local", "db.example.com."]
)
def test_poolers_get_the_host_as_written_and_the_operator_the_names_it_stands_for_f1(
    host: str, by_url: bool
) -> None:
    upstream = {"host": host, "database": "shop", "credentialsSecretRef": {"name": "shop-owner"}}
    cluster = Simulation(pods=(ready_pod(1),))
    if by_url:
        upstream = {"uriSecretRef": {"name": "shop-url", "key": "uri"}}
        cluster.secrets = {"shop-url": {"uri": f"postgres://shop_owner:pw@{host}:5432/shop".encode()}}
    cluster.edit(upstream=upstream)
    cluster.settle()
    assert f"host='{host}'" in "".join(cluster.tables.values())
    steps = cluster.plan()
    assert steps.budget is not None
    assert steps.observe is not None
    expected = SETTINGS.dns.names(host, "data")
    assert (steps.budget.names, steps.observe.names) == (expected, expected)
    assert not any(".poolkeeper." in name for name in expected.tried)
