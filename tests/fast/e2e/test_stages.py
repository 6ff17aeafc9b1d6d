"""The record of the stages of `make test`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from e2e import stages
from e2e.bench import suite
from e2e.cluster.shell import ClusterError


@pytest.fixture(autouse=True)
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stages, "RECORD", tmp_path / "new" / "stages.json")


def stage(name: str, program: str = "") -> int:
    return stages.run(name, [sys.executable, "-c", program])


def test_stages_are_recorded_in_the_order_in_which_they_ran() -> None:
    assert [stage(name) for name in ("lint", "fast", "e2e", "fast")] == [0, 0, 0, 0]
    assert list(stages.read()) == ["lint", "e2e", "fast"]
    assert all(seconds > 0 for seconds in stages.read().values())
    assert stages.summary().endswith(f"together {sum(stages.read().values()):.0f} s")


def test_the_first_stage_begins_the_record_anew() -> None:
    stage("e2e")
    stage("lint")
    assert list(stages.read()) == ["lint"]


def test_a_stage_that_fails_has_its_exit_code_and_no_record() -> None:
    assert stage("fast", "raise SystemExit(3)") == 3
    assert stages.read() == {}


def test_a_stage_knows_its_name() -> None:
    program = f"import os; raise SystemExit(os.environ[{stages.NAME!r}] != 'fast')"
    assert stage("fast", program) == 0


def test_the_figures_of_the_suite_are_its_records() -> None:
    with pytest.raises(ClusterError, match="make test"):
        suite.run()
    stage("fast")
    stage("e2e")
    figures = {figure.name: figure for figure in suite.run()}
    assert figures["test_warm_s"].value == pytest.approx(sum(stages.read().values()))
    assert figures["fast_s"].ok
    assert figures["e2e_s"].ok is None
