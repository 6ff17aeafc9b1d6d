"""What counts as explained in the soak of the data path."""

from __future__ import annotations

from typing import Any

from e2e.bench import datapath
from e2e.bench.soak_verdict import RECOVERY_SECONDS, STALE, Change, Verdict, changes, judge
from tests.datapath.clients.programs import Report

BEGAN = 1000.0
CHANGED = [Change(1010.0, 1.5, 3), Change(1030.0, 0.2, 0)]


def report(*connections: dict[str, Any], statements: int = 10, wrong: int = 0) -> Report:
    return Report(statements, wrong, {}, list(connections))


def failed(*pairs: tuple[float, str]) -> dict[str, Any]:
    return {"failed": [list(pair) for pair in pairs], "wrong": []}


def judged(*connections: dict[str, Any]) -> Verdict:
    return judge({"pgx": report(*connections)}, CHANGED, BEGAN)


def test_a_stale_plan_right_after_a_schema_change_is_explained() -> None:
    verdict = judged(failed((1011.0, f"ERROR: {STALE}")), failed((1030.5, STALE)))
    assert (verdict.explained, verdict.repeated, verdict.unexplained) == (2, 0, 0)
    assert verdict.findings == {}


def test_the_same_connections_second_stale_plan_of_a_change_is_counted_apart() -> None:
    verdict = judged(failed((1011.0, STALE), (1012.0, STALE), (1031.0, STALE)))
    assert (verdict.explained, verdict.repeated, verdict.unexplained) == (3, 1, 0)


def test_a_connections_first_stale_plan_is_explained_whenever_the_statement_is_used_next() -> None:
    late = CHANGED[0].committed + RECOVERY_SECONDS + 0.1
    asyncpg = "cached statement plan is invalid due to a database schema or configuration change"
    verdict = judged(failed((late, STALE)), failed((late, asyncpg)))
    assert (verdict.explained, verdict.repeated, verdict.unexplained) == (2, 0, 0)


def test_a_later_one_and_one_before_any_change_are_not() -> None:
    late = CHANGED[0].committed + RECOVERY_SECONDS + 0.1
    verdict = judged(failed((1005.0, STALE), (1011.0, STALE), (late, STALE)))
    assert (verdict.explained, verdict.unexplained) == (1, 2)


def test_a_library_that_never_prepares_a_statement_again_fails_with_it_for_good() -> None:
    late = CHANGED[0].committed + RECOVERY_SECONDS + 0.1
    verdict = judge({"sqlx": report(failed((1011.0, STALE), (late, STALE)))}, CHANGED, BEGAN)
    assert (verdict.explained, verdict.repeated, verdict.unexplained) == (2, 1, 0)


def test_nothing_else_is_explained_and_alike_findings_are_told_together() -> None:
    verdict = judged(failed((1011.0, "connection 7 was lost")), failed((1012.0, "connection 8 was lost")))
    assert verdict.unexplained == 2
    ((kind, lines),) = verdict.findings.items()
    assert kind == "pgx: connection * was lost"
    assert str(lines[0]).split(maxsplit=2) == ["11.00", "s", "pgx 0  connection 7 was lost"]


def test_statements_and_wrong_answers_are_those_of_all_programs() -> None:
    one = report({"failed": [], "wrong": [[1001.0, "own schema: 't2', not 't1'"]]}, wrong=1)
    verdict = judge({"pgx": one, "sqlx": report(statements=5)}, [], BEGAN)
    assert (verdict.statements, verdict.wrong, verdict.unexplained) == (15, 1, 0)
    assert list(verdict.findings) == ["pgx: wrong answer: own schema: 't*', not 't*'"]


def test_the_figures_have_the_targets_of_the_soak() -> None:
    recovery = report({"changes": [[1010.0, 1.5, 3], [1030.0, 6.0, 0]]})
    verdict = judge({"recovery": recovery}, changes(recovery), BEGAN)
    figures = {one.name: one for one in datapath.figures(verdict, changes(recovery), [], [])}
    zero = ("wrong_answers", "stuck_connections", "crashes", "unexplained_errors")
    assert {name: figures[name].target for name in zero} == dict.fromkeys(zero, 0)
    assert all(figures[name].ok for name in zero)
    assert (figures["ddl_recovery_s"].value, figures["ddl_recovery_s"].ok) == (6.0, False)
