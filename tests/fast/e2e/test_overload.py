"""The demonstration of an overload: what is drawn of a run."""

from __future__ import annotations

from pathlib import Path

from e2e.demo.overload import curves
from e2e.demo.picture import Curves, Progress, Sample, draw

LINES = [
    {"state": "started", "at": 1_000_500},
    {"state": "running", "ms": 1000, "answered": 30, "failed": 2, "errors": {}},
    {"state": "done", "ms": 2000, "answered": 70, "failed": 2, "errors": {}},
]


def test_every_curve_begins_when_the_load_does() -> None:
    counted = [(1000.0, 1), (1000.5, 2), (1001.25, 40)]
    assert curves(LINES, counted, 1000.5) == Curves(
        [Sample(0.0, 2), Sample(0.75, 40)],
        [Progress(0, 0, 0), Progress(1.0, 30, 2), Progress(2.0, 70, 2)],
    )


def test_the_same_runs_make_the_same_picture(tmp_path: Path) -> None:
    run = curves(LINES, [(1001.0, 3), (1002.0, 4)], 1000.5)
    for name in ("one.svg", "two.svg"):
        draw(run, run, 100, tmp_path / name)
    first, second = ((tmp_path / name).read_text() for name in ("one.svg", "two.svg"))
    assert first == second
    assert "max_connections = 100" in first
    assert "requests so far" in first
