"""A TLS mode and a CA mean the same to libpq, to the operator's login and to a pooler, or they are refused."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from e2e.cluster.ports import free_port
from poolkeeper.spec.parse import SecretKeyRef, Tls, Upstream
from poolkeeper.upstream.target import Target, TargetError, resolve
from poolkeeper.workers.upstream import probe, trial_login
from tests.pgbouncer.processes import Postgres, pooler
from tests.pgbouncer.shop import WEB, Shop

SECONDS = 5.0
REFUSED_SECONDS = 1.5
"""A login waits as long for a pooler that can't reach its server."""

MODES = ["", "disable", "require", "verify-ca", "verify-full"]
AUTHORITIES = {"no CA": None, "its CA": "ca", "another CA": "other-ca"}
HOSTS = {"its name": "127.0.0.1", "another name": "[::1]"}
"""The server's certificate is for 127.0.0.1 and localhost."""

Through = Callable[[Target, bool], Awaitable[bool]]
"""Logs in through a pooler on a target; the second argument: whether that is expected to work."""


@pytest.fixture(scope="module")
def through(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Through:
    """Logs in once for each target."""
    known: dict[Target, bool] = {}

    async def logs_in(target: Target, expected: bool) -> bool:
        if target not in known:
            configuration = shop.configuration([WEB], target=target)
            with pooler(tmp_path_factory.mktemp("pooler"), configuration) as running:
                access = shop.console(running)
                seconds = SECONDS if expected else REFUSED_SECONDS
                outcome = await trial_login(access, shop.login(WEB), shop.entry(WEB), seconds)
            known[target] = outcome.reachable
        return known[target]

    return logs_in


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("authority", AUTHORITIES)
@pytest.mark.parametrize("mode", MODES)
async def test_a_mode_and_a_ca_mean_the_same_to_libpq_operator_and_pooler_f5(
    mode: str, authority: str, name: str, shop: Shop, server: Postgres, through: Through
) -> None:
    login = f"{shop.target.user}:{quote(shop.target.password, safe='')}"
    url = f"postgres://{login}@{HOSTS[name]}:{server.port}/{shop.target.database}"
    ca = AUTHORITIES[authority]
    file = server.directory / f"{ca}.crt"
    said = f"?sslmode={mode}" if mode else ""
    tls = Tls(None, None if ca is None else SecretKeyRef("ca", "ca.crt"))
    upstream = Upstream(None, 5432, None, None, SecretKeyRef("url", "uri"), tls)
    secrets = {
        "url": {"uri": f"{url}{said}".encode()},
        "ca": {} if ca is None else {"ca.crt": file.read_bytes()},
    }

    if (mode.startswith("verify-") and ca is None) or (mode == "disable" and ca is not None):
        with pytest.raises(TargetError, match=r"spec\.upstream\.tls"):
            resolve(upstream, secrets)
        return
    target = resolve(upstream, secrets)
    # Without a mode libpq would do without TLS if the server has none: a pooler does not.
    expected = _libpq_logs_in(f"{url}?sslmode={mode or 'require'}", None if ca is None else str(file))
    assert expected == (ca != "other-ca" and not (mode == "verify-full" and name == "another name"))
    outcome = await probe(target, SECONDS)
    assert outcome.reachable == expected
    assert expected or outcome.reason == "TlsFailed"
    assert await through(target, expected) == expected

    # The same from the spec, whose mode replaces the URL's.
    if mode:
        by_spec = replace(upstream, tls=Tls(mode, tls.ca))
        assert resolve(by_spec, secrets) == target


def _libpq_logs_in(url: str, authority: str | None) -> bool:
    try:
        psycopg.connect(make_conninfo(url, sslrootcert=authority)).close()
    except psycopg.OperationalError as error:
        if "certificate" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_the_operator_shows_the_hosts_name_in_the_tls_handshake_where_a_pooler_does(
    mode: str, shop: Shop, server: Postgres, tmp_path: Path
) -> None:
    """Some providers find the database by that name."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.directory / "server.crt", server.directory / "server.key")
    context.sni_callback = lambda _socket, name, _context: names.append(name)

    async def shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            await reader.readexactly(8)  # SSLRequest
            writer.write(b"S")
            await writer.start_tls(context)
        writer.close()

    ca = None if mode == "require" else (server.directory / "ca.crt").read_text()
    port = free_port()
    async with await asyncio.start_server(shake_hands, ["127.0.0.1", "::1"], port):
        target = replace(shop.target, host="localhost", port=port, sslmode=mode, ca=ca)
        await probe(target, 1)
        by_operator, names[:] = set(names), []
        with pooler(tmp_path, shop.configuration([WEB], target=target)) as running:
            await trial_login(shop.console(running), shop.login(WEB), shop.entry(WEB), 1)
    assert by_operator == set(names) == {"localhost" if mode == "verify-full" else None}
