"""What the poolers show to clients who ask for TLS, and how they know one another."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography import x509

from poolkeeper.consumers.entries import entries
from poolkeeper.credentials import mint
from poolkeeper.credentials.certificates import PERIOD, issue
from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.configuration import Configuration, configuration
from tests.pgbouncer.processes import DIRECTORY, Pooler, pooler
from tests.pgbouncer.shop import FULL_NAME, NAME, WEB, Shop


def verified(shop: Shop, running: Pooler, directory: Path, authority: str, name: str = NAME) -> dict[str, Any]:
    """libpq's parameters for the consumer with the pooler's certificate verified."""
    path = directory / "authority.pem"
    path.write_text(authority)
    return {
        **shop.connection(running, WEB),
        "host": name,
        "hostaddr": running.host,
        "sslmode": "verify-full",
        "sslrootcert": str(path),
    }


def test_a_client_may_verify_the_poolers_name_or_do_without_tls(shop: Shop, tmp_path: Path) -> None:
    (mounted := tmp_path / "pooler").mkdir()
    with pooler(mounted, shop.configuration()) as running:
        authority = shop.authorities.poolers.certificate
        for name in (FULL_NAME, NAME):
            with psycopg.connect(**verified(shop, running, tmp_path, authority, name)) as client:
                assert client.pgconn.ssl_in_use
                assert client.execute("SELECT 1").fetchone() == (1,)
        with psycopg.connect(**shop.connection(running, WEB)) as client:
            assert not client.pgconn.ssl_in_use
        with pytest.raises(psycopg.OperationalError, match="does not match host name"):
            psycopg.connect(**verified(shop, running, tmp_path, authority, "another.data.svc"))
        for other in (shop.authorities.keepers, mint.authorities().poolers):
            with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
                psycopg.connect(**verified(shop, running, tmp_path, other.certificate))


async def test_the_console_is_only_spoken_to_by_the_name_in_its_certificate(
    running_pooler: Pooler, shop: Shop
) -> None:
    access = shop.console(running_pooler)
    for wrong in (
        replace(access, name="another.data.svc"),
        replace(access, authority=shop.authorities.keepers.certificate),
    ):
        with pytest.raises(console.ConsoleError):
            async with console.connect(wrong, 2):
                pass


def before_renewal(shop: Shop) -> Configuration:
    """The configuration with the certificate of one period ago, which is still valid."""
    certificate = issue(shop.authorities.poolers, NAME, datetime.now(UTC) - PERIOD)
    rows = entries(shop.target, [WEB], "transaction")
    return configuration(shop.target, rows, shop.logins, certificate, {}, DIRECTORY)


async def test_a_renewed_certificate_reaches_new_connections_and_breaks_no_old_one(
    shop: Shop, tmp_path: Path
) -> None:
    (mounted := tmp_path / "pooler").mkdir()
    with pooler(mounted, before_renewal(shop)) as running:
        parameters = verified(shop, running, tmp_path, shop.authorities.poolers.certificate)
        with psycopg.connect(**parameters) as old:
            with old.transaction():
                backend = old.execute("SELECT pg_backend_pid()").fetchone()
                changed = running.write(shop.configuration([WEB]))
                assert await running.apply(changed, shop.console(running)) is None
                assert old.execute("SELECT pg_backend_pid()").fetchone() == backend
            with psycopg.connect(**parameters) as new:
                assert new.execute("SELECT 1").fetchone() == (1,)
            assert old.execute("SELECT 1").fetchone() == (1,)


def test_a_certificate_is_the_same_all_through_its_period_and_overlaps_the_next(shop: Shop) -> None:
    authority = shop.authorities.poolers
    start = datetime(2026, 6, 1, tzinfo=UTC)
    days = [issue(authority, NAME, start + timedelta(days=day)).certificate for day in range(2 * PERIOD.days)]
    assert 2 <= len(set(days)) <= 3
    assert issue(authority, "another.data.svc", start).certificate not in days


def test_certificates_with_more_names_differ_in_their_serial_numbers_and_share_their_keys(shop: Shop) -> None:
    """Verifiers may take two certificates of one authority and number for the same."""
    authority, start = shop.authorities.poolers, datetime(2026, 6, 1, tzinfo=UTC)
    made = [issue(authority, NAME, start, *others) for others in ((), (FULL_NAME,), ("x", "y"), ("y", "x"))]
    numbers = {x509.load_pem_x509_certificate(item.certificate.encode()).serial_number for item in made}
    assert len(numbers) == len(made)
    assert len({item.key for item in made}) == 1
    assert issue(authority, NAME, start, FULL_NAME) == made[1]


async def test_a_pooler_takes_its_peer_id_from_its_own_file_and_shows_its_peers(
    shop: Shop, tmp_path: Path
) -> None:
    with pooler(tmp_path, shop.configuration()) as running:
        running.peer = 7
        changed = running.write(shop.configuration(peers={7: "127.0.0.7", 8: "fd00::8"}))
        numbered = replace(changed, settings={**changed.settings, "peer_id": "7"})
        assert await running.apply(numbered, shop.console(running)) is None
        async with console.connect(shop.console(running), 3) as opened:
            shown = {row["peer_id"]: row["host"] for row in await opened.show("PEERS")}
        assert shown == {"7": "127.0.0.7", "8": "fd00::8"}
        problem = await running.apply(
            replace(numbered, settings={**numbered.settings, "peer_id": "9"}), shop.console(running), 0.3
        )
        assert problem == "peer_id is '7' instead of '9'"
