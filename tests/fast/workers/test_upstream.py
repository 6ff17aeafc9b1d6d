"""Whatever fails in a login or a question, foreseen or not, is an outcome in words."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from poolkeeper.credentials.logins import Login
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.upstream import faults, libpq
from poolkeeper.upstream.target import Target
from poolkeeper.upstream.wire import Oversized
from poolkeeper.workers import boundary, upstream
from poolkeeper.workers.upstream import Meter, Unmeasured, measuring, probe

TARGET = Target("db.example", 5432, "shop", "owner", "s3cret", "disable", None)
LOGIN = Login("web--database", "s3cret", "")
ACCESS = ConsoleAccess("10.0.0.1", 6432, "pooler", "", "")

FAILURES = [
    KeyError("s3cret"),
    RecursionError(),
    MemoryError(),
    AttributeError("no such thing as s3cret"),
    UnicodeDecodeError("ascii", b"\xff", 0, 1, "s3cret"),
    ZeroDivisionError("s3cret"),
    psycopg.OperationalError("s3cret was refused"),
    psycopg.InternalError("s3cret"),
    Oversized("the server sent more than 64 KiB"),
    OSError(5, "s3cret"),
    TimeoutError(),
    ValueError("s3cret"),
    ExceptionGroup("s3cret", [ValueError("s3cret")]),
]


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary, "_known", set())


@pytest.fixture(params=FAILURES, ids=lambda failure: type(failure).__name__)
def failure(request: pytest.FixtureRequest) -> Exception:
    found: Exception = request.param
    return found


@pytest.fixture
def unreachable(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.asynccontextmanager
    async def connect(timeout: float, **parameters: Any) -> AsyncIterator[Any]:
        raise failure
        yield

    monkeypatch.setattr(libpq, "connect", connect)


def clean(words: str, log: str) -> None:
    assert words
    assert "s3cret" not in words + log


@pytest.mark.usefixtures("unreachable")
async def test_a_probe_always_has_an_outcome(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        outcome = await probe(TARGET, 1.0)
        assert not outcome.reachable
        assert outcome.reason
        clean(outcome.message, caplog.text)
    assert sum(record.levelno >= logging.ERROR for record in caplog.records) <= 1


@pytest.mark.usefixtures("unreachable")
async def test_a_login_to_measure_fails_as_unmeasured(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Unmeasured) as caught:
        await contextlib.AsyncExitStack().enter_async_context(measuring(TARGET, 1.0))
    clean(str(caught.value), caplog.text)


@pytest.mark.usefixtures("unreachable")
async def test_a_probe_through_a_pooler_always_has_an_outcome(caplog: pytest.LogCaptureFixture) -> None:
    echo = await upstream.through_pooler(ACCESS, LOGIN, "shop", 1.0)
    clean(echo.said or echo.failed, caplog.text)


QUESTIONS: dict[str, Callable[[Meter], Awaitable[object]]] = {
    "identify": lambda meter: meter.identify(),
    "measure": lambda meter: meter.measure(),
    "snapshot": lambda meter: meter.snapshot(),
    "schema": lambda meter: meter.schema(),
    "backends": lambda meter: meter.backends([1]),
    "terminate": lambda meter: meter.terminate(1, "17"),
}


@pytest.mark.parametrize("question", QUESTIONS)
async def test_every_question_to_a_server_fails_as_unmeasured(
    question: str, failure: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def execute(*_: object) -> libpq.Answer:
        raise failure

    monkeypatch.setattr(libpq, "execute", execute)
    connection: Any = SimpleNamespace(pid=7, closed=True, address="10.0.0.1")
    meter = Meter(connection, TARGET, 1.0)
    meter._settings = (100, 3, 0)
    with pytest.raises(Unmeasured) as caught:
        await QUESTIONS[question](meter)
    clean(str(caught.value), caplog.text)


async def test_a_server_that_answers_nonsense_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    async def execute(*_: object) -> libpq.Answer:
        return libpq.Answer(("x",), ((b"999999999",), (None,)))

    monkeypatch.setattr(libpq, "execute", execute)
    connection: Any = SimpleNamespace(pid=7, closed=False, address="10.0.0.1")
    meter = Meter(connection, TARGET, 1.0)
    with pytest.raises(Unmeasured, match="no PostgreSQL answers like this"):
        await meter.identify()
    with pytest.raises(Unmeasured, match="not been identified"):
        await meter.measure()


def test_every_reason_has_a_remedy() -> None:
    reasons = {value for name, value in vars(faults).items() if name.isupper() and isinstance(value, str)}
    assert reasons == set(upstream._REMEDIES)
