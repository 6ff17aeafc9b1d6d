"""TLS to the upstream: what it verifies, and what happens when that fails on a system that works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e import kube
from e2e.cluster.pki import Authority
from e2e.cluster.shell import run
from e2e.kube import Object
from tests.e2e import postgres
from tests.e2e.client import Agent
from tests.e2e.kit import Place, setting

ENCRYPTED = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


@pytest.fixture(scope="module")
def shop(module_place: Place, authority: Authority) -> Place:
    """A PooledDatabase that verifies its server in full."""
    write_authority(module_place, authority.pair.certificate)
    module_place.serve(verified(module_place))
    return module_place


def test_verify_full_with_the_right_authority_and_host_name_serves(shop: Place, agent: Agent) -> None:
    assert agent.query(shop.url(), ENCRYPTED) == [{"ssl": "True"}]
    with shop.consoles() as consoles:
        for console in consoles:
            assert setting(console, "server_tls_sslmode") == "verify-full"


def test_verify_full_with_a_wrong_authority_is_a_condition_and_old_pods_serve(
    shop: Place, agent: Agent, authority: Authority, tmp_path: Path
) -> None:
    write_authority(shop, Authority(tmp_path, "stranger").pair.certificate)
    try:
        assert_old_pods_serve(shop, agent)
    finally:
        write_authority(shop, authority.pair.certificate)
    shop.wait_condition("UpstreamReachable", "True", "Reachable", within=30)


def test_verify_full_with_a_wrong_host_name_is_a_condition_and_old_pods_serve(
    shop: Place, agent: Agent
) -> None:
    namespace = shop.server.host.split(".")[1]
    kube.apply(json.dumps(postgres.service(namespace, "another-name")))
    shop.patch({"upstream": {"host": f"another-name.{namespace}.svc"}})
    try:
        assert_old_pods_serve(shop, agent)
    finally:
        shop.patch({"upstream": {"host": shop.server.host}})
    shop.wait_condition("UpstreamReachable", "True", "Reachable", within=30)


def test_verify_full_with_an_expired_authority_is_a_condition_and_old_pods_serve(
    shop: Place, agent: Agent, authority: Authority, tmp_path: Path
) -> None:
    write_authority(shop, expired(authority, tmp_path))
    try:
        assert_old_pods_serve(shop, agent)
    finally:
        write_authority(shop, authority.pair.certificate)
    shop.wait_condition("UpstreamReachable", "True", "Reachable", within=30)


def test_verify_full_without_an_authority_is_refused(shop: Place) -> None:
    spec = shop.spec()
    spec["upstream"]["tls"] = {"mode": "verify-full"}
    with pytest.raises(Exception, match="caSecretRef"):
        shop.apply(spec)


def test_require_against_a_server_without_tls_is_a_condition(place: Place, agent: Agent) -> None:
    plain = postgres.start(place.data, "superuser")
    postgres.wait(place.data)
    place.write_owner("superuser", user="postgres")
    spec = place.spec(replicas=1)
    spec["upstream"] |= {"host": plain, "database": "postgres", "tls": {"mode": "require"}}
    place.apply(spec)
    place.wait_condition("UpstreamReachable", "False", "TlsFailed", within=30)
    place.patch({"upstream": {"tls": {"mode": "disable"}}})
    place.wait_ready()
    assert agent.query_soon(place.url(), ENCRYPTED, within=10) == [{"ssl": "False"}]


def assert_old_pods_serve(shop: Place, agent: Agent) -> None:
    before = shop.identities()
    shop.wait_condition("UpstreamReachable", "False", "TlsFailed")
    assert shop.condition("Ready")["reason"] == "TlsFailed"
    assert agent.query(shop.url(), ENCRYPTED) == [{"ssl": "True"}]
    shop.reconnect()  # new server connections are verified against what was right
    assert agent.query_soon(shop.url(), ENCRYPTED, within=5) == [{"ssl": "True"}]
    assert shop.identities() == before


def verified(place: Place) -> Object:
    spec = place.spec()
    tls = {"mode": "verify-full", "caSecretRef": {"name": "authority", "key": "ca.crt"}}
    return spec | {"upstream": spec["upstream"] | {"tls": tls}}


def write_authority(place: Place, certificate: Path) -> None:
    kube.apply(json.dumps(kube.secret(place.data, "authority", {"ca.crt": certificate.read_text()})))


def expired(authority: Authority, directory: Path) -> Path:
    """The authority's certificate, with its own key and name, as if it had run out yesterday."""
    request, extensions, certificate = (directory / name for name in ("request", "extensions", "expired.crt"))
    current, key = authority.pair.certificate, authority.pair.key
    extensions.write_text("basicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign\n")
    run(["openssl", "x509", "-x509toreq", "-in", current, "-signkey", key, "-out", request])
    signed = ["openssl", "x509", "-req", "-in", str(request), "-signkey", str(key), "-days", "-1"]
    run([*signed, "-extfile", extensions, "-out", certificate])
    return certificate
