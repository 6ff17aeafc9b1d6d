"""What becomes of an exception that was not foreseen."""

from __future__ import annotations

import pytest

from poolkeeper.workers import boundary
from poolkeeper.workers.boundary import LASTING_SECONDS, Trouble, unexpected


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary, "_known", set())


def failure(kind: type[Exception], text: str) -> Exception:
    try:
        raise kind(text)
    except Exception as error:
        return error


def test_it_is_words_with_a_remedy_and_its_traceback_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(20):
        words = unexpected("measuring the server", failure(KeyError, f"x{number}"))
        assert "measuring the server failed" in words
        assert f"KeyError: 'x{number}'" in words
        assert "report it" in words
    [record] = caplog.records
    assert "in failure" in record.getMessage()
    unexpected("measuring the server", failure(IndexError, "x"))
    assert len(caplog.records) == 2, "another cause is another traceback"


def test_neither_words_nor_log_have_the_secret_or_a_line_of_a_servers_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = unexpected("the login", failure(ValueError, "s3cret\nERROR forged line\x1b[31m"), "s3cret")
    for text in (words, caplog.text):
        assert "s3cret" not in text
        assert "forged" not in text
        assert "\x1b" not in text


def test_the_log_has_an_end_however_many_causes_there_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(boundary, "_CAUSES", 3)
    for number in range(10):
        kind = type(f"Fault{number}", (Exception,), {})
        assert f"Fault{number}" in unexpected("this", failure(kind, ""))
    assert len(caplog.records) == 3


def test_a_trouble_is_reported_once_it_lasts_and_forgotten_at_once() -> None:
    trouble = Trouble()
    assert not trouble.lasting(0.0)
    trouble.note("no answer", 10.0)
    trouble.note("refused", 12.0)
    assert not trouble.lasting(10.0 + LASTING_SECONDS - 0.1)
    assert trouble.lasting(10.0 + LASTING_SECONDS) == "refused"
    trouble.note("", 20.0)
    assert not trouble.lasting(20.0)
    trouble.note("again", 21.0)
    assert not trouble.lasting(22.0), "its time begins anew"
