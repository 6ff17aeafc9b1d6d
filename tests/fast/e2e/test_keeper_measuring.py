"""What counts the failed transactions: the load programs, the events, and the sums of what they cost."""

from __future__ import annotations

import json

import pytest

from e2e.bench.rollouts import figures, table
from e2e.cluster.paths import ROOT
from e2e.images.catalog import context_files, recipe
from e2e.images.dockerfile import Copy
from poolkeeper.engine.parameter_table import OLDEST
from poolkeeper.spec.parameters import PARAMETERS, validate
from tests.e2e.clients.programs import PROGRAMS
from tests.e2e.keeper_events import HOT_PARAMETERS
from tests.e2e.keeper_kit import Fleet, Outcome, Tally


@pytest.mark.parametrize("image", ["clients", "nextjs-app", "demo-app"])
def test_packages_are_locked_by_their_contents_and_by_no_registrys_address(image: str) -> None:
    steps = [step for stage in recipe(image).stages for step in stage.steps]
    sources = {source for step in steps if isinstance(step, Copy) and not step.stage for source in step.sources}
    locks = [
        path for source in sources for _, path in context_files(source) if path.name == "package-lock.json"
    ]
    assert locks
    for lock in locks:
        packages = json.loads(lock.read_text())["packages"]
        assert len(packages) > 10
        assert all("integrity" in package for name, package in packages.items() if name)
        assert not any("resolved" in package for package in packages.values())


def test_every_program_is_in_the_image_s_sources() -> None:
    for command in PROGRAMS.values():
        assert (ROOT / "tests/e2e/clients" / command[1]).is_file()


def test_the_hot_parameters_are_all_of_those_that_need_no_restart_with_other_values_than_by_default() -> None:
    assert HOT_PARAMETERS.keys() == {
        name for name, one in PARAMETERS.items() if not one.restart and one.since == OLDEST
    }
    for name, value in HOT_PARAMETERS.items():
        assert validate(name, value)


def outcome(seconds: float, **tallies: Tally) -> Outcome:
    during = {program: tally.committed for program, tally in tallies.items()}
    return Outcome("rollout", seconds, tallies, during)


FLEET = Fleet("web", "keeper", rate=50)


def test_nothing_failed_and_everybody_at_work_is_lossless() -> None:
    FLEET.check_lossless(outcome(10, pg=Tally(480), prisma=Tally(130)))


@pytest.mark.parametrize(
    ("tally", "message"),
    [
        (Tally(480, failed=1, errors={"pg Error": "1 x Error: gone"}), "1 x Error: gone"),
        (Tally(480, uncaught=1), "1 uncaught"),
        (Tally(99), "at least 100"),
        (Tally(0), "at least 100"),
    ],
)
def test_a_failure_an_uncaught_exception_and_an_idle_program_are_not(tally: Tally, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        FLEET.check_lossless(outcome(10, prisma=Tally(480), pg=tally))


def test_the_bench_sums_up_by_column_and_keepers_have_the_target() -> None:
    columns = {
        "stock-sigterm": {"rollout": [outcome(9, pg=Tally(90, failed=10, uncaught=5))]},
        "direct": {
            "rollout": [outcome(9, pg=Tally(99, failed=1))],
            "operator upgrade": [outcome(9, pg=Tally(100))],
        },
        "keeper": {
            "rollout": [outcome(9, pg=Tally(400), prisma=Tally(600))] * 2,
            "operator upgrade": [outcome(9, pg=Tally(100))],
        },
    }
    found = {figure.name: figure for figure in figures(columns)}
    assert (found["failed_tx"].value, found["failed_tx"].ok) == (0, True)
    assert (found["uncaught"].value, found["uncaught"].ok) == (0, True)
    assert found["total_tx"].value == 2100
    assert found["failed_tx_direct"].value == 1
    assert (found["failed_tx_stock_sigterm"].value, found["uncaught_stock_sigterm"].value) == (10, 5)
    assert found["failed_tx_direct"].ok is None
    assert table(columns).splitlines() == [
        "| event | keeper | direct | stock-sigterm |",
        "|---|---|---|---|",
        "| rollout | 0 + 0 of 2,000 | 1 + 0 of 100 | 10 + 5 of 100 |",
        "| operator upgrade | 0 + 0 of 100 | 0 + 0 of 100 | - |",
    ]
