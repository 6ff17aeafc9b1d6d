"""What consoles showed, and for how long a problem counts."""

import time

import pytest

from poolkeeper.observed.consoles import Shown
from poolkeeper.store.processes import Processes

FINE, FAILED = Shown("g", 0, ""), Shown("g", 0, "no answer")


def test_a_problem_is_forgotten_after_a_while_and_a_success_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    processes, now = Processes(), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for process, shown in (("fine", FINE), ("failed", FAILED)):
        processes.show(process, shown)
    for later, left in ((9.9, {"fine": FINE, "failed": FAILED}), (10.0, {"fine": FINE})):
        monkeypatch.setattr(time, "monotonic", lambda at=now + later: at)
        for process in ("fine", "failed", "unknown"):
            processes.unshow_problem(process, 10.0)
        assert processes.shown(["fine", "failed", "unknown"]) == left


def test_every_console_can_be_polled_again() -> None:
    processes = Processes()
    for process in ("a", "b"):
        processes.show(process, FINE)
    processes.unshow("a")
    assert processes.shown(["a", "b"]) == {"b": FINE}
    processes.unshow_all()
    assert processes.shown(["a", "b"]) == {}
