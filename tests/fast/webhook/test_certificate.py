"""The webhook's certificate: made once, the same on every replica, renewed while the port stays open."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from e2e.cluster.ports import free_port
from poolkeeper.credentials import certificates, mint
from poolkeeper.credentials.certificates import PERIOD, Certificate
from poolkeeper.kube.client import Conflict, Refused
from poolkeeper.observed.refs import Ref
from poolkeeper.settings import Settings, Webhook
from poolkeeper.webhook import certificate as webhook_certificate
from poolkeeper.webhook import server

Object = dict[str, Any]
OWN = Settings("poolkeeper-system", "pod")
CONCERNS = Webhook("poolkeeper-webhook")
SECRET = Ref("Secret", "poolkeeper-system", "poolkeeper-webhook")
CONFIGURATION = Ref("MutatingWebhookConfiguration", "", "poolkeeper-webhook")
NOW = datetime(2026, 6, 1, tzinfo=UTC)


class Objects:
    """An API server in small, which counts writes; `rival` stores an object of its own just before ours."""

    def __init__(self) -> None:
        metadata = {"name": "poolkeeper-webhook", "uid": "1-2"}
        hook = {"name": webhook_certificate.WEBHOOK, "clientConfig": {"service": {"port": 443}}}
        self.stored: dict[Ref, Object] = {
            CONFIGURATION: {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "MutatingWebhookConfiguration",
                "metadata": metadata,
                "webhooks": [hook],
            }
        }
        self.rival: Object | None = None
        self.writes = 0

    async def get(self, ref: Ref) -> Object | None:
        return copy.deepcopy(self.stored.get(ref))

    async def create(self, body: Mapping[str, Any]) -> Object:
        if self.rival is not None:
            self.stored[SECRET] = self.rival
            raise Conflict("Conflict", "it exists")
        assert SECRET not in self.stored
        self.writes += 1
        self.stored[SECRET] = dict(body)
        return dict(body)

    async def apply(self, body: Mapping[str, Any], manager: str) -> Object:
        assert manager == webhook_certificate.BUNDLE_MANAGER
        [sent] = body["webhooks"]
        [held] = self.stored[CONFIGURATION]["webhooks"]
        assert (sent["name"], body["metadata"]["uid"]) == (held["name"], "1-2")
        self.writes += 1
        held["clientConfig"] |= sent["clientConfig"]
        return dict(body)

    @property
    def bundle(self) -> str:
        [held] = self.stored[CONFIGURATION]["webhooks"]
        return base64.b64decode(held["clientConfig"]["caBundle"]).decode()

    async def current(self, now: datetime = NOW) -> Certificate:
        return await webhook_certificate.current(self, OWN, CONCERNS, now)  # type: ignore[arg-type]


def ends(certificate: Certificate) -> datetime:
    return x509.load_pem_x509_certificate(certificate.certificate.encode()).not_valid_after_utc


async def test_it_is_made_once_and_the_api_server_is_told() -> None:
    objects = Objects()
    made = await objects.current()
    assert made.name == "poolkeeper-webhook.poolkeeper-system.svc"
    assert objects.writes == 2
    assert "BEGIN CERTIFICATE" in objects.bundle
    assert "KEY" not in objects.bundle
    assert await objects.current() == made
    assert objects.writes == 2


async def test_it_is_renewed_in_time_without_a_write() -> None:
    objects = Objects()
    before, bundle = await objects.current(), objects.bundle
    day = NOW
    while (renewed := await objects.current(day)) == before:
        day += timedelta(days=1)
    assert ends(before) - day >= PERIOD - timedelta(days=1)
    assert ends(renewed) > ends(before)
    assert (objects.bundle, objects.writes) == (bundle, 2)


async def test_of_two_replicas_that_begin_at_once_one_authority_wins() -> None:
    first, second = Objects(), Objects()
    made = await first.current()
    second.rival = first.stored[SECRET]
    assert await second.current() == made
    assert second.bundle == first.bundle


async def test_a_bundle_that_somebody_changed_is_set_right() -> None:
    objects = Objects()
    await objects.current()
    right = objects.bundle
    objects.stored[CONFIGURATION]["webhooks"][0]["clientConfig"]["caBundle"] = "AAAA"
    await objects.current()
    assert objects.bundle == right


async def test_without_a_configuration_nothing_is_made() -> None:
    objects = Objects()
    del objects.stored[CONFIGURATION]
    with pytest.raises(Refused, match="does not exist; install the chart"):
        await objects.current()
    assert objects.stored == {}


@pytest.mark.parametrize("data", [{}, {"authority.key": "AAAA"}, {"authority.key": ""}, None])
async def test_a_secret_without_a_key_is_named_with_its_remedy(data: object) -> None:
    objects = Objects()
    objects.stored[SECRET] = {"metadata": {}, "data": data}
    with pytest.raises(Refused, match=r"Secret poolkeeper-system/poolkeeper-webhook holds no key.*delete it"):
        await objects.current()


# The server


async def shown(port: int, authority: Certificate, name: str) -> str:
    context = ssl.create_default_context(cadata=authority.certificate)
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return ssl.DER_cert_to_PEM_cert(found)


async def test_renewed_files_are_shown_to_new_connections_and_old_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(server, "RETRY_SECONDS", 0.05)
    authority = certificates.authority("tests", mint.authority_key())
    name, now = "poolkeeper-webhook.poolkeeper-system.svc", datetime.now(UTC)
    old, new = certificates.issue(authority, name, now - PERIOD), certificates.issue(authority, name, now)
    own = Webhook("poolkeeper-webhook", free_port(), str(tmp_path))
    serving = asyncio.create_task(server.serve(Objects(), OWN, own))  # type: ignore[arg-type]
    try:
        await asyncio.sleep(0.2)  # the files are not there yet
        assert not serving.done()
        for certificate in (old, new):
            (tmp_path / "tls.key").write_text(certificate.key)
            (tmp_path / "tls.crt").write_text(certificate.certificate)
            async with asyncio.timeout(5):
                while await _answer(own.port, authority, name) != certificate.certificate.strip():
                    await asyncio.sleep(0.02)
            if certificate is old:
                context = ssl.create_default_context(cadata=authority.certificate)
                kept = await asyncio.open_connection("127.0.0.1", own.port, ssl=context, server_hostname=name)
        kept[1].write(f"GET {server.READY_PATH} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        assert b"200 OK" in await kept[0].readline()
        kept[1].close()
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def _answer(port: int, authority: Certificate, name: str) -> str:
    try:
        return (await shown(port, authority, name)).strip()
    except ConnectionRefusedError:
        return ""


# The client's certificate


def client_certificate(authority: Certificate, name: str, directory: Path) -> ssl.SSLContext:
    """A client that trusts any server and shows a certificate with this common name."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.load_pem_x509_certificate(authority.certificate.encode()).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(certificates._load(authority.key), hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files = directory / f"{name}.crt", directory / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(secret)
    context = without_certificate()
    context.load_cert_chain(*files)
    return context


def without_certificate() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def status(port: int, context: ssl.SSLContext, request: str) -> str:
    """The status of the answer; empty if there is none."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(f"{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        line = (await asyncio.wait_for(reader.readline(), 5)).decode()
        writer.close()
    except (ssl.SSLError, OSError):
        return ""
    return line.split()[1] if line else ""


async def test_only_the_api_servers_certificate_gets_an_answer_where_one_is_demanded(tmp_path: Path) -> None:
    issuer = certificates.authority("api", mint.authority_key())
    api = client_certificate(issuer, "api-server", tmp_path)
    other = client_certificate(issuer, "kubelet", tmp_path)
    foreign = client_certificate(certificates.authority("api", mint.authority_key()), "foreign", tmp_path)
    own = Webhook(
        "poolkeeper-webhook", free_port(), client_authority=issuer.certificate, client_name="api-server"
    )
    serving = asyncio.create_task(server.serve(Objects(), OWN, own))  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(5):
            while await status(own.port, without_certificate(), f"GET {server.READY_PATH}") != "200":
                await asyncio.sleep(0.02)
        asked = f"POST {server.PATH}"
        assert await status(own.port, api, asked) == "400"  # it is read, and no review
        for context in (without_certificate(), other):
            assert await status(own.port, context, asked) == "403"
        assert await status(own.port, foreign, asked) == ""
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_without_a_demand_clients_need_no_certificate() -> None:
    own = Webhook("poolkeeper-webhook", free_port())
    serving = asyncio.create_task(server.serve(Objects(), OWN, own))  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(5):
            while await status(own.port, without_certificate(), f"POST {server.PATH}") != "400":
                await asyncio.sleep(0.02)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
