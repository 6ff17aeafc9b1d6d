"""A server that asks for endless hashing stops nobody: neither the operator nor another server's login."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import ssl
import struct
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.credentials.certificates import authority, issue
from poolkeeper.credentials.mint import authority_key
from poolkeeper.upstream import faults, scram
from poolkeeper.upstream.target import Target
from poolkeeper.workers.upstream import Observation, probe
from tests.fast.upstream.hostile_postgres import (
    ANSWER,
    KEY,
    LOGIN,
    PARAMETERS,
    READY,
    TRUSTED,
    message,
    serving,
)

SASL = message(b"R", struct.pack("!I", 10) + b"SCRAM-SHA-256\0\0")
CA = authority("servers", authority_key())
SALT = base64.b64encode(b"0123456789abcdef")
MODES = pytest.mark.parametrize("sslmode", ["disable", "require", "verify-ca"])


def challenge(text: bytes) -> bytes:
    return message(b"R", struct.pack("!I", 11) + text)


def target(port: int, sslmode: str) -> Target:
    ca = CA.certificate if sslmode == "verify-ca" else None
    return Target("127.0.0.1", port, "shop", "owner", "s3cret", sslmode, ca)


@contextlib.asynccontextmanager
async def asking(for_: bytes, tmp_path: Path, before: bytes = b"") -> AsyncIterator[int]:
    """A server that begins a login by SCRAM with what is `for_` the attribute i, and then says nothing more;
    yields its port. What it sends `before` comes first."""
    certificate = issue(CA, "server", datetime.now(UTC))
    files = tmp_path / "server.crt", tmp_path / "server.key"
    for file, text in zip(files, (certificate.certificate, certificate.key), strict=True):
        file.write_text(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def read(header: int) -> bytes:
            start = await reader.readexactly(header + 4)
            return await reader.readexactly(struct.unpack("!I", start[-4:])[0] - 4)

        with contextlib.suppress(OSError, EOFError):
            if (await read(0)).startswith(struct.pack("!I", 80877103)):
                writer.write(b"S")
                await writer.start_tls(context)
                await read(0)
            writer.write(before + SASL)
            [nonce] = re.findall(rb"r=(\S+)", await read(1))
            text = b"r=" + nonce + b"server,s=" + SALT + b",i=" + for_
            for byte in challenge(text):  # however it is cut
                writer.write(bytes([byte]))
                await writer.drain()
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def longest_stop(task: asyncio.Task[Observation]) -> float:
    """How long the event loop stood still at the most, in seconds, until the task was done."""
    longest = 0.0
    while not task.done():
        began = time.monotonic()
        await asyncio.sleep(0.005)
        longest = max(longest, time.monotonic() - began)
    return longest


@MODES
@pytest.mark.parametrize(
    "asked", [b"1000001", b"3000000", b"2147483647", b"2147483648", b"4294967297", b"9999999999"], ids=repr
)
async def test_too_many_iterations_are_refused_in_words(asked: bytes, sslmode: str, tmp_path: Path) -> None:
    async with asking(asked, tmp_path) as port:
        looking = asyncio.create_task(probe(target(port, sslmode), 5.0))
        assert await longest_stop(looking) < 0.3
    outcome = looking.result()
    assert f"the server asks for {int(asked):,} SCRAM iterations" in outcome.message
    assert "lower scram_iterations" in outcome.message


@MODES
@pytest.mark.parametrize(
    "asked",
    [b"0", b"-1", b"+3000000", b" 3000000", b"3000000 ", b"3000000,m=x", b"0x2dc6c0", b"", b"3000000\0"],
)
async def test_what_is_no_number_of_iterations_is_refused(asked: bytes, sslmode: str, tmp_path: Path) -> None:
    async with asking(asked, tmp_path) as port:
        looking = asyncio.create_task(probe(target(port, sslmode), 5.0))
        assert await longest_stop(looking) < 0.3
    assert re.search("malformed|invalid", looking.result().message)


NEGOTIATION = struct.pack("!II", 196608, 1) + b"_pq_.x"


@pytest.mark.parametrize(
    "before",
    [
        message(b"v", struct.pack("!II", 196608, 0)),
        message(b"v", NEGOTIATION + b"\0"),
        message(b"v", NEGOTIATION + b"x" * 2500 + b"\0"),
        message(b"v", NEGOTIATION + b"x" * 10_000 + b"\0"),
        message(b"N", b"SNOTICE\0C00000\0Mx\0\0"),
        message(b"S", b"a\0b\0"),
        message(b"R", struct.pack("!I", 10) + b"X" * 3000 + b"\0\0"),
        message(b"E", b"SERROR\0C28000\0Mno\0\0"),
        TRUSTED,
        b"\0" * 5,
    ],
    ids=lambda sent: f"{sent[:1]!r} {len(sent)}",
)
async def test_nothing_that_comes_before_hides_the_number(before: bytes, tmp_path: Path) -> None:
    async with asking(b"2147483647", tmp_path, before) as port:
        looking = asyncio.create_task(probe(target(port, "disable"), 1.0))
        assert await longest_stop(looking) < 0.3
    assert not looking.result().reachable


@MODES
async def test_what_is_computed_stops_nothing_else(sslmode: str, tmp_path: Path) -> None:
    """Neither the event loop, nor logins elsewhere; and it leaves nothing behind."""
    asked = str(scram.MOST_ITERATIONS).encode()
    async with asking(asked, tmp_path) as port:
        with serving((LOGIN, ANSWER)) as elsewhere:
            before = len(os.listdir("/proc/self/fd"))
            looking = asyncio.create_task(probe(target(port, sslmode), 0.3))
            stop = asyncio.create_task(longest_stop(looking))
            assert (await probe(target(elsewhere, "disable"), 5.0)).reachable
            assert await stop < 0.15
            assert looking.result().reason == faults.TIMEOUT
            deadline = time.monotonic() + 20
            while len(os.listdir("/proc/self/fd")) > before:
                assert time.monotonic() < deadline, "the connection was not closed after the hashing"
                await asyncio.sleep(0.05)


@given(st.lists(st.integers(1, 40), max_size=30), st.sampled_from([4096, 999_999]))
def test_a_login_reaches_libpq_whole_however_it_arrives(cuts: list[int], iterations: int) -> None:
    text = b"r=abc,s=" + SALT + b",i=%d" % iterations
    final = message(b"R", struct.pack("!I", 12) + b"v=x")
    sent = SASL + challenge(text) + final + TRUSTED + PARAMETERS + KEY + READY
    exchange = scram.Exchange()
    passed, seen, at = b"", [], 0
    for cut in [*cuts, len(sent)]:
        passed += exchange.pass_on(sent[at : at + cut])
        seen.append(exchange.iterations)
        at += cut
    assert passed == sent
    assert [found for found in seen if found] == [iterations]


@given(st.binary(max_size=200), st.sampled_from([b"R", b"v", b"E", b"N", b"S"]))
def test_no_more_than_a_message_is_held(data: bytes, kind: bytes) -> None:
    exchange = scram.Exchange()
    sent = kind + data
    with contextlib.suppress(scram.Unacceptable):
        passed = exchange.pass_on(sent) + exchange.pass_on(b"x" * 2000)
        assert len(sent) + 2000 - len(passed) <= 2001
