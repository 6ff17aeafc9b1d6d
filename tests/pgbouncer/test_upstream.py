"""The operator's logins against real faults: what each is called, said about it, and how long it takes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from e2e.cluster.ports import free_port
from poolkeeper.consumers.entries import entry_name
from poolkeeper.credentials.scram import verifier
from poolkeeper.upstream.target import Target
from poolkeeper.workers.upstream import Observation, probe, trial_login
from tests.pgbouncer.processes import Pooler, Postgres, pooler, postgres
from tests.pgbouncer.shop import API, WEB, Shop

SECONDS = 5.0


async def look(target: Target, seconds: float = SECONDS) -> Observation:
    began = time.monotonic()
    outcome = await probe(target, seconds)
    assert time.monotonic() - began < seconds + 0.5
    assert target.password not in outcome.message
    assert not outcome.reachable or outcome.reason == "Reachable"
    assert (outcome.server_version is not None) == outcome.reachable
    return outcome


def authority(server: Postgres, name: str = "ca") -> str:
    return (server.directory / f"{name}.crt").read_text()


@pytest.mark.parametrize("sslmode", ["disable", "require", "verify-ca", "verify-full"])
async def test_a_working_upstream_is_reachable_in_every_tls_mode(
    sslmode: str, shop: Shop, server: Postgres
) -> None:
    ca = authority(server) if sslmode.startswith("verify-") else None
    outcome = await look(replace(shop.target, sslmode=sslmode, ca=ca))
    assert (outcome.reachable, outcome.reason) == (True, "Reachable"), outcome
    assert outcome.server_version is not None
    assert outcome.server_version // 10000 == 17


async def test_require_does_not_verify_although_a_ca_is_given_just_like_pgbouncer(
    shop: Shop, server: Postgres
) -> None:
    """resolve() makes verify-ca of it; a target that an earlier version stored may say so."""
    assert (await look(replace(shop.target, ca=authority(server, "other-ca")))).reachable


@pytest.mark.parametrize("host", ["localhost", "::1"])
async def test_host_names_and_ipv6_addresses_are_reached(host: str, shop: Shop) -> None:
    assert (await look(replace(shop.target, host=host))).reachable


async def test_a_wrong_password_fails_authentication(shop: Shop) -> None:
    outcome = await look(replace(shop.target, password="not-the-password"))
    assert outcome.reason == "AuthenticationFailed"
    assert "shop_owner" in outcome.message
    assert "Secret" in outcome.message


@pytest.mark.parametrize("size", [1000, 1024, 1025, 2047])
async def test_a_password_that_is_too_long_for_scram_fails_authentication_as_it_does_for_a_pooler(
    size: int, shop: Shop, server: Postgres, tmp_path: Path
) -> None:
    target = replace(shop.target, user=f"long_{size}", password="x" * size)
    server.create_role(target.user, target.password)
    outcome = await look(target)
    assert outcome.reachable == (size <= 1024)
    if not outcome.reachable:
        assert outcome.reason == "AuthenticationFailed"
        assert "no password of more than 1024 bytes; set a shorter one" in outcome.message
    with pooler(tmp_path, shop.configuration(target=target)) as running:
        assert (await through(running, shop, 1.5 if size > 1024 else SECONDS)).reachable == outcome.reachable


async def test_a_role_whose_verifier_takes_many_iterations_logs_in(shop: Shop, server: Postgres) -> None:
    """libpq hashes for it in a thread."""
    target = replace(shop.target, user="hardened", password="a long enough password")
    server.create_role(target.user, verifier(target.password, b"0123456789abcdef", 200_000))
    for sslmode in ("disable", "require"):
        assert (await look(replace(target, sslmode=sslmode))).reachable
        wrong = await look(replace(target, sslmode=sslmode, password="another"))
        assert wrong.reason == "AuthenticationFailed"


async def test_an_unknown_user_fails_authentication(shop: Shop) -> None:
    assert (await look(replace(shop.target, user="nobody_here"))).reason == "AuthenticationFailed"


async def test_a_role_without_login_fails_authentication(shop: Shop, server: Postgres) -> None:
    server.create_role("no_login", "secret-enough", "NOLOGIN")
    target = replace(shop.target, user="no_login", password="secret-enough")
    assert (await look(target)).reason == "AuthenticationFailed"


async def test_a_role_without_the_right_to_connect_fails_authentication(shop: Shop, server: Postgres) -> None:
    server.create_role("no_connect", "secret-enough")
    server.create_database("closed")
    server.execute("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    target = replace(shop.target, user="no_connect", password="secret-enough", database="closed")
    assert (await look(target)).reason == "AuthenticationFailed"


async def test_a_refusal_by_pg_hba_fails_authentication(shop: Shop, server: Postgres) -> None:
    hba = server.directory / "data/pg_hba.conf"
    before = hba.read_text()
    try:
        hba.write_text("host all postgres 127.0.0.1/32 scram-sha-256\n")
        server.execute("SELECT pg_reload_conf()")
        await asyncio.sleep(0.3)
        assert (await look(shop.target)).reason == "AuthenticationFailed"
    finally:
        hba.write_text(before)
        server.execute("SELECT pg_reload_conf()")


async def test_a_missing_database_is_told_apart(shop: Shop) -> None:
    outcome = await look(replace(shop.target, database="no_such_place"))
    assert outcome.reason == "DatabaseMissing"
    assert "no_such_place" in outcome.message


async def test_a_wrong_ca_fails_tls(shop: Shop, server: Postgres) -> None:
    target = replace(shop.target, sslmode="verify-ca", ca=authority(server, "other-ca"))
    assert (await look(target)).reason == "TlsFailed"


async def test_a_ca_that_is_no_certificate_fails_tls(shop: Shop) -> None:
    pem = "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"
    assert (await look(replace(shop.target, sslmode="verify-ca", ca=pem))).reason == "TlsFailed"


@pytest.mark.parametrize("certificate", ["stranger", "expired"])
async def test_a_certificate_for_another_name_or_out_of_date_fails_tls(
    certificate: str, shop: Shop, server: Postgres
) -> None:
    target = replace(shop.target, sslmode="verify-full", ca=authority(server))
    with (
        server.setting("ssl_key_file", f"/tmp/{certificate}.key"),
        server.setting("ssl_cert_file", f"/tmp/{certificate}.crt"),
    ):
        outcome = await look(target)
    assert outcome.reason == "TlsFailed", outcome
    assert (await look(target)).reachable


async def test_a_server_without_tls_fails_tls(shop: Shop, server: Postgres) -> None:
    with server.setting("ssl", "off"):
        outcome = await look(shop.target)
    assert outcome.reason == "TlsFailed"
    assert "spec.upstream.tls" in outcome.message


@pytest.mark.parametrize("host", ["no-such-host.invalid", "two..dots.invalid", "a" * 64 + ".invalid"])
async def test_a_host_without_an_address_fails_dns(host: str, shop: Shop) -> None:
    outcome = await look(replace(shop.target, host=host))
    assert outcome.reason == "DnsFailed"
    assert host in outcome.message


async def test_a_port_where_nothing_listens_refuses(shop: Shop) -> None:
    assert (await look(replace(shop.target, port=free_port()))).reason == "ConnectionRefused"


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


async def test_a_server_that_never_answers_times_out(shop: Shop, silent: int) -> None:
    assert (await look(replace(shop.target, port=silent), 1)).reason == "Timeout"


async def test_a_server_that_freezes_after_its_start_times_out(shop: Shop, tmp_path: Path) -> None:
    with postgres(tmp_path) as other:
        os.kill(other.pid, signal.SIGSTOP)
        assert (await look(replace(shop.target, port=other.port), 1)).reason == "Timeout"


async def test_something_else_than_postgresql_is_unavailable(shop: Shop) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        assert (await look(replace(shop.target, port=port))).reason == "Unavailable"
        assert (await look(replace(shop.target, port=port, sslmode="disable"))).reason == "Unavailable"


async def test_a_role_at_its_connection_limit_has_too_many_connections(shop: Shop, server: Postgres) -> None:
    server.create_role("limited", "secret-enough", "LOGIN CONNECTION LIMIT 0")
    target = replace(shop.target, user="limited", password="secret-enough")
    assert (await look(target)).reason == "TooManyConnections"


async def test_a_full_server_has_too_many_connections(shop: Shop, tmp_path: Path) -> None:
    with postgres(tmp_path) as small:
        small.create_role(shop.target.user, shop.target.password)
        target = replace(shop.target, port=small.port, database="postgres")
        assert (await look(target)).reachable
        held = []
        try:
            for _ in range(60):
                held.append(
                    await psycopg.AsyncConnection.connect(
                        host=target.host,
                        port=target.port,
                        user=target.user,
                        password=target.password,
                        dbname="postgres",
                    )
                )
        except psycopg.OperationalError:
            pass
        assert (await look(target)).reason == "TooManyConnections"
        for connection in held:
            await connection.close()


async def test_a_server_that_shuts_down_is_unavailable(shop: Shop, tmp_path: Path) -> None:
    with postgres(tmp_path) as other:
        other.create_role(shop.target.user, shop.target.password)
        target = replace(shop.target, port=other.port, database="postgres")
        parameters = {"host": target.host, "port": target.port, "user": target.user, "dbname": "postgres"}
        async with await psycopg.AsyncConnection.connect(
            password=target.password,
            **parameters,  # type: ignore[arg-type]
        ):
            os.kill(other.pid, signal.SIGTERM)  # a smart shutdown waits for this client
            await asyncio.sleep(0.3)
            assert (await look(target)).reason == "Unavailable"


async def test_no_outcome_leaves_a_descriptor_or_a_file_behind(
    shop: Shop, server: Postgres, silent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    verified = replace(shop.target, sslmode="verify-full", ca=authority(server))
    targets = [verified, replace(verified, password="wrong"), replace(verified, port=silent)]
    await asyncio.gather(*(probe(target, 0.5) for target in targets))  # warms up lazily opened descriptors
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await asyncio.gather(*(probe(target, 0.5) for target in targets))
    assert len(os.listdir("/proc/self/fd")) <= before
    assert list(tmp_path.iterdir()) == []


# Through a pooler pod.


async def through(running: Pooler, shop: Shop, seconds: float = SECONDS) -> Observation:
    login = shop.login(WEB)
    outcome = await trial_login(shop.console(running), login, shop.entry(WEB), seconds)
    assert login.password not in outcome.message
    assert shop.target.password not in outcome.message
    return outcome


@pytest.mark.parametrize("sslmode", ["disable", "require", "verify-ca", "verify-full"])
async def test_a_pooler_reaches_the_upstream_in_every_tls_mode(
    sslmode: str, shop: Shop, server: Postgres, tmp_path: Path
) -> None:
    ca = authority(server) if sslmode.startswith("verify-") else None
    target = replace(shop.target, sslmode=sslmode, ca=ca)
    with pooler(tmp_path, shop.configuration(target=target)) as running:
        assert (await through(running, shop)).reachable
        with psycopg.connect(**shop.connection(running, WEB)) as client:
            query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            assert client.execute(query).fetchone() == (sslmode != "disable",)
        assert running.complaints() == []


FAULTS = {
    "password": ({"password": "not-the-password"}, "AuthenticationFailed"),
    "database": ({"database": "no_such_place"}, "DatabaseMissing"),
}


@pytest.mark.parametrize(("change", "reason"), FAULTS.values(), ids=FAULTS.keys())
async def test_a_fault_of_the_upstream_shows_through_a_pooler(
    change: dict[str, str], reason: str, shop: Shop, tmp_path: Path
) -> None:
    configuration = shop.configuration(target=replace(shop.target, **change))  # type: ignore[arg-type]
    entry = entry_name(change.get("database", shop.target.database), WEB)
    with pooler(tmp_path, configuration) as running:
        outcome = await trial_login(shop.console(running), shop.login(WEB), entry, SECONDS)
    assert (outcome.reachable, outcome.reason) == (False, reason), outcome
    assert "not-the-password" not in outcome.message


@pytest.mark.parametrize("fault", ["refused", "dns", "ca", "name"])
async def test_a_login_waits_no_longer_than_its_limit_for_a_pooler_that_cannot_reach_the_upstream(
    fault: str, shop: Shop, server: Postgres, tmp_path: Path
) -> None:
    target = {
        "refused": replace(shop.target, port=free_port()),
        "dns": replace(shop.target, host="no-such-host.invalid"),
        "ca": replace(shop.target, sslmode="verify-ca", ca=authority(server, "other-ca")),
        "name": replace(shop.target, host="127.0.0.1", sslmode="verify-full", ca=authority(server)),
    }[fault]
    if fault == "name":
        with (
            server.setting("ssl_key_file", "/tmp/stranger.key"),
            server.setting("ssl_cert_file", "/tmp/stranger.crt"),
            pooler(tmp_path, shop.configuration(target=target)) as running,
        ):
            outcome = await through(running, shop, 3)
    else:
        with pooler(tmp_path, shop.configuration(target=target)) as running:
            outcome = await through(running, shop, 3)
    assert (outcome.reachable, outcome.reason) == (False, "Timeout")
    assert "upstream" in outcome.message


async def test_a_pooler_that_is_gone_refuses_the_connection(shop: Shop, tmp_path: Path) -> None:
    access = shop.console(Pooler(tmp_path, free_port()))
    outcome = await trial_login(access, shop.login(WEB), shop.entry(WEB), 2)
    assert (outcome.reachable, outcome.reason) == (False, "ConnectionRefused")


async def test_a_login_that_the_pooler_does_not_know_yet_is_refused_by_the_pooler(
    shop: Shop, tmp_path: Path
) -> None:
    with pooler(tmp_path, shop.configuration(consumers=[WEB])) as running:
        outcome = await trial_login(shop.console(running), shop.login(API), shop.entry(API), 3)
    assert outcome.reason == "PoolerRefused"
