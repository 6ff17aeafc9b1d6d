"""What listens at the address of a pooler that has gone gets neither a password nor a query."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from poolkeeper.credentials import mint
from poolkeeper.credentials.certificates import Certificate, issue
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.pgbouncer import console
from poolkeeper.workers import upstream

NAME = "shop-pooler.data.svc"
LOGIN = mint.mint("web-database")
CONSOLE = mint.mint("poolkeeper")
AUTHORITY = mint.authorities().poolers

CLEARTEXT, MD5, SASL, SASL_CONTINUE, SASL_FINAL = 3, 5, 10, 11, 12


@dataclass
class Impostor:
    """A listener that asks for a password in its own way, and keeps every message that it gets."""

    asks: str
    tls: ssl.SSLContext | None
    messages: list[tuple[bytes, bytes]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        startup = await self._startup(reader)
        if struct.unpack("!I", startup[:4]) == (80877103,):  # SSLRequest
            writer.write(b"N" if self.tls is None else b"S")
            await writer.drain()
            if self.tls is not None:
                await writer.start_tls(self.tls)
            await self._startup(reader)
        await self._authenticate(reader, writer)
        writer.write(_message(b"R", struct.pack("!I", 0)) + _message(b"Z", b"I"))
        while True:
            await self._message(reader)

    async def _authenticate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.asks == "nothing":
            return
        if self.asks == "cleartext":
            writer.write(_message(b"R", struct.pack("!I", CLEARTEXT)))
        elif self.asks == "md5":
            writer.write(_message(b"R", struct.pack("!I", MD5) + b"salt"))
        else:
            writer.write(_message(b"R", struct.pack("!I", SASL) + b"SCRAM-SHA-256\0\0"))
            first = await self._message(reader)
            found = re.search(rb"r=([^,]+)", first)
            assert found is not None
            salt = base64.b64encode(b"0123456789abcdef")
            challenge = b"r=" + found[1] + b"more,s=" + salt + b",i=4096"
            writer.write(_message(b"R", struct.pack("!I", SASL_CONTINUE) + challenge))
            await self._message(reader)
            if self.asks == "scram":
                signature = base64.b64encode(bytes(32))
                writer.write(_message(b"R", struct.pack("!I", SASL_FINAL) + b"v=" + signature))
            return
        await self._message(reader)

    async def _startup(self, reader: asyncio.StreamReader) -> bytes:
        (length,) = struct.unpack("!I", await reader.readexactly(4))
        return await reader.readexactly(length - 4)

    async def _message(self, reader: asyncio.StreamReader) -> bytes:
        kind = await reader.readexactly(1)
        body = await self._startup(reader)
        self.messages.append((kind, body))
        return body


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def _shown(authority: Certificate, directory: Path) -> ssl.SSLContext:
    """TLS with a certificate of this authority for the pooler's name."""
    certificate = issue(authority, NAME, datetime.now(UTC))
    (directory / "tls.crt").write_text(certificate.certificate)
    (directory / "tls.key").write_text(certificate.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    return context


@contextlib.asynccontextmanager
async def listening(asks: str, tls: ssl.SSLContext | None) -> AsyncIterator[tuple[Impostor, ConsoleAccess]]:
    impostor = Impostor(asks, tls)
    async with await asyncio.start_server(impostor.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        access = ConsoleAccess("127.0.0.1", port, CONSOLE.password, NAME, AUTHORITY.certificate)
        yield impostor, access


async def _tried(access: ConsoleAccess) -> str:
    outcome = await upstream.trial_login(access, LOGIN, "shop", 2)
    assert not outcome.reachable
    return outcome.message


async def _probed(access: ConsoleAccess) -> str:
    echo = await upstream.through_pooler(access, LOGIN, "shop", 2)
    assert echo.said
    return echo.said


async def _asked(access: ConsoleAccess) -> str:
    with pytest.raises(console.ConsoleError) as refusal:
        async with console.connect(access, 2):
            pass
    return refusal.value.message


@pytest.mark.parametrize("login", [_tried, _probed, _asked])
@pytest.mark.parametrize("asks", ["cleartext", "md5", "nothing", "scram", "half of scram"])
@pytest.mark.parametrize("shows", ["no TLS", "a certificate of its own", "the pooler's certificate"])
async def test_an_impostor_at_a_poolers_address_gets_no_password(
    shows: str, asks: str, login: Callable[[ConsoleAccess], Awaitable[str]], tmp_path: Path
) -> None:
    authority = {
        "no TLS": None,
        "a certificate of its own": mint.authorities().poolers,
        "the pooler's certificate": AUTHORITY,
    }[shows]
    tls = None if authority is None else _shown(authority, tmp_path)
    async with listening(asks, tls) as (impostor, access):
        message = await login(access)
    scram = [kind for kind, _ in impostor.messages]
    assert scram == ([b"p", b"p"] if "scram" in asks and authority is AUTHORITY else [])
    for secret in (LOGIN.password, CONSOLE.password):
        assert secret not in message
        assert not any(secret.encode() in body for _, body in impostor.messages)
