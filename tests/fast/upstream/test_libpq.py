"""What a server may send, and how much of it the operator takes: in bytes, in time, and without a stop of the
event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolkeeper.upstream import faults, libpq, login, tls, wire
from poolkeeper.upstream.target import Target
from poolkeeper.upstream.tls import ServerTls
from poolkeeper.upstream.wire import Oversized
from poolkeeper.workers.upstream import Observation, Unmeasured, measuring, probe
from tests.fast.upstream.hostile_postgres import (
    ANSWER,
    DONE,
    DROP,
    FLOODS,
    KEY,
    LOGIN,
    ONE,
    PARAMETERS,
    PASSWORD,
    READY,
    STALL,
    TRUSTED,
    Script,
    columns,
    flooding,
    message,
    row,
    serving,
)

SECONDS = 1.0
MIB = 1 << 20


def target(port: int) -> Target:
    return Target("127.0.0.1", port, "shop", "owner", "s3cret", "disable", None)


def connected(port: int) -> contextlib.AbstractAsyncContextManager[libpq.Connection]:
    return libpq.connect(SECONDS, host="127.0.0.1", port=str(port), user="o", password="s", dbname="d")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[dict[str, float]]:
    """The growth of this process (bytes), its longest stop of the event loop, and the duration (seconds)."""
    found = {"lag": 0.0, "grown": 0.0, "took": 0.0}

    async def tick() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            found["lag"] = max(found["lag"], time.monotonic() - began - 0.01)
            found["grown"] = max(found["grown"], resident() - before)

    before, began = resident(), time.monotonic()
    ticking = asyncio.create_task(tick())
    try:
        yield found
    finally:
        found["took"] = time.monotonic() - began
        ticking.cancel()


async def look(port: int, seconds: float = SECONDS) -> Observation:
    outcome = await probe(target(port), seconds)
    assert "s3cret" not in outcome.message
    return outcome


async def unmeasured(port: int) -> str:
    try:
        async with measuring(target(port), SECONDS) as meter:
            await meter.identify()
    except Unmeasured as error:
        return str(error)
    raise AssertionError("it was measured")


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_server_that_floods_takes_neither_memory_nor_time(flood: str) -> None:
    with flooding(FLOODS[flood]) as port:
        await look(port)  # warms up
        async with watched() as found:
            outcome = await look(port)
            said = await unmeasured(port)
    assert not outcome.reachable
    assert outcome.reason in (faults.OVERSIZED, faults.UNAVAILABLE, faults.TIMEOUT), outcome
    assert said
    assert found["grown"] < 8 * MIB, found
    assert found["lag"] < 0.3, found
    assert found["took"] < 2 * SECONDS + 0.5, found


async def test_many_that_flood_at_once_take_no_more_memory_and_hold_up_no_honest_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libpq, "HELD_BYTES", 8 * MIB)

    async def flooded(port: int) -> None:
        async with connected(port) as connection:
            await libpq.execute(connection, "SHOW SOCKETS", 9, libpq.CONSOLE)

    with flooding(FLOODS["long rows"]) as port, serving((LOGIN, ANSWER)) as honest:
        async with watched() as found, connected(honest) as beside:
            floods = asyncio.gather(*(flooded(port) for _ in range(8)), return_exceptions=True)
            while not floods.done():
                answer = await libpq.execute(beside, "SELECT 1", SECONDS)
                assert answer.rows == ((b"1",),)
                await asyncio.sleep(0.01)
        assert all(isinstance(outcome, Oversized) for outcome in await floods)
    assert not libpq._unfinished
    assert found["grown"] < 40 * MIB, found


NOT_TLS = {
    "none": (b"N", faults.TLS_FAILED, "the server offers no TLS"),
    "an end": (b"", faults.UNAVAILABLE, "server closed the connection unexpectedly"),
    "an error": (b"E", faults.UNAVAILABLE, "invalid response to SSL negotiation: b'E'"),
    "another protocol": (b"HTTP/1.1 400", faults.UNAVAILABLE, "invalid response to SSL negotiation: b'H'"),
}


@pytest.mark.parametrize("answer", NOT_TLS)
async def test_whatever_a_server_answers_to_the_request_for_tls_is_said_as_it_is(answer: str) -> None:
    sent, reason, said = NOT_TLS[answer]
    with serving(((*([sent] if sent else []), DROP), ())) as port:
        outcome = await probe(replace(target(port), sslmode="require"), SECONDS)
    assert (outcome.reachable, outcome.reason) == (False, reason)
    assert said in outcome.message


async def test_a_server_without_tls_is_reported_with_field_problem_and_remedy() -> None:
    with serving(((b"N", STALL), ())) as port:
        outcome = await probe(replace(target(port), sslmode="require"), SECONDS)
        plain = {"host": "127.0.0.1", "port": str(port), "user": "o", "password": "s", "dbname": "d"}
        with pytest.raises(psycopg.OperationalError, match="server does not support SSL, but SSL was required"):
            async with libpq.connect(SECONDS, tls=ServerTls("require"), **plain):
                pass
    problem, remedy = outcome.message.split("; ")
    assert problem == (
        f"login at 127.0.0.1:{port}: the server offers no TLS, which every mode of spec.upstream.tls but"
        " disable needs"
    )
    assert "turn TLS on at the server, or set spec.upstream.tls to {mode: disable}" in remedy


async def test_the_request_for_tls_fails_with_errors_of_its_own() -> None:
    """None of them is the system's: a reset that the network reports means something else."""
    for sent, kind in ((b"N", tls.NotOffered), (b"", wire.Ended), (b"S", wire.Ended)):
        script = ((*([sent] if sent else []), DROP), ())
        with serving(script) as port, socket.create_connection(("127.0.0.1", port)) as connection:
            carrier = wire.Wire(connection.fileno())
            with pytest.raises(kind):
                await login._secure(carrier, ServerTls("require").session("h"))
            carrier.close()


async def test_an_honest_server_is_reached_and_an_answer_may_come_byte_by_byte() -> None:
    whole = b"".join(ANSWER)
    with serving((LOGIN, tuple(whole[at : at + 1] for at in range(len(whole))))) as port:
        assert (await look(port)).reachable
    with serving((LOGIN, (columns(b"a", b"b"), row(b"x" * 100_000, b"y"), DONE, READY))) as port:
        async with connected(port) as connection:
            answers = [await libpq.execute(connection, "SELECT", SECONDS) for _ in range(2)]
            assert answers == [libpq.Answer(("a", "b"), ((b"x" * 100_000, b"y"),))] * 2
            with pytest.raises(Oversized, match="more than 64 KiB"):
                await libpq.execute(connection, "SELECT", SECONDS, libpq.ONE_ROW)
            assert connection.closed
            with pytest.raises(psycopg.Error):
                await libpq.execute(connection, "SELECT", SECONDS)


async def test_parameters_that_nobody_asked_for_end_a_connection_sooner_or_later() -> None:
    more = b"".join(message(b"S", b"%d\0%s\0" % (number, b"x" * 900)) for number in range(30))
    with serving((LOGIN, (ONE, more, DONE, READY))) as port:
        async with connected(port) as connection:
            for _ in range(140):
                await libpq.execute(connection, "SELECT 1", SECONDS)
            with pytest.raises(Oversized, match="not asked for"):
                await asyncio.gather(*(libpq.execute(connection, "SELECT 1", SECONDS) for _ in range(20)))


async def test_a_standing_connection_outlives_any_number_of_honest_answers() -> None:
    with serving((LOGIN, ANSWER)) as port:
        async with connected(port) as connection:
            for _ in range(300):
                await libpq.execute(connection, "SELECT 1", SECONDS)
            assert connection._stray == 0


def pieces(script: tuple[bytes, ...], end: bytes) -> list[tuple[bytes, ...]]:
    return [(*script[:number], end) for number in range(len(script))]


STAGES: list[Script] = [
    *((login, ANSWER) for end in (STALL, DROP) for login in pieces(LOGIN, end)),
    *((LOGIN, answer) for end in (STALL, DROP) for answer in pieces(ANSWER, end)),
]


async def test_a_server_that_stalls_or_drops_at_any_message_is_told_in_time() -> None:
    for script in STAGES:
        with serving(script) as port:
            async with watched() as found:
                outcome = await look(port, 0.3)
        expected = faults.TIMEOUT if STALL in script[0] + script[1] else faults.UNAVAILABLE
        assert outcome.reason == expected, (script, outcome)
        assert found["took"] < 0.8, script


@settings(max_examples=60, deadline=None)
@given(
    stage=st.integers(0, 7),
    garbage=st.one_of(
        st.binary(min_size=1, max_size=64),
        st.builds(
            message, st.sampled_from([bytes([kind]) for kind in b"RSKZEDCTNAGHIWVvnstc123d"]), st.binary()
        ),
        st.builds(
            message,
            st.sampled_from([bytes([kind]) for kind in b"RSKZEDCTNAGHI"]),
            st.binary(max_size=16),
            st.integers(0, 2**32 - 1),
        ),
    ),
)
def test_garbage_at_any_message_is_an_outcome(stage: int, garbage: bytes) -> None:
    honest = (*LOGIN, *ANSWER)
    cut = (*honest[:stage], garbage, DROP)
    script = (cut, ANSWER) if stage < len(LOGIN) else (LOGIN, cut[len(LOGIN) :])
    with serving(script) as port:
        outcome = asyncio.run(look(port, 0.5))
    assert outcome.message
    assert outcome.reason != "UnexpectedError"


async def test_several_tasks_ask_over_one_connection_and_its_end_ends_them_all() -> None:
    with serving((LOGIN, (ONE, DONE, READY))) as port:
        async with connected(port) as connection:
            answers = await asyncio.gather(*(libpq.execute(connection, "SELECT 1", 3) for _ in range(20)))
            assert [answer.rows for answer in answers] == [((b"1",),)] * 20
    with flooding(((PASSWORD, b"", TRUSTED, PARAMETERS, KEY, READY), (STALL,))) as port:
        before = len(os.listdir("/proc/self/fd"))
        async with connected(port) as connection:
            tasks = [asyncio.create_task(libpq.execute(connection, "SELECT 1", 9)) for _ in range(3)]
            await asyncio.sleep(0.1)
            connection.close()
            done, late = await asyncio.wait(tasks, timeout=2)
            assert not late
            assert all(isinstance(task.exception(), psycopg.Error) for task in done)
        assert len(os.listdir("/proc/self/fd")) <= before


async def test_a_name_without_its_address_is_refused_and_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be completed as a name of the operator's own namespace."""

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    with pytest.raises(psycopg.OperationalError, match=r"host 'pg\.data' has not been resolved"):
        async with libpq.connect(SECONDS, host="pg.data", dbname="shop"):
            pass
