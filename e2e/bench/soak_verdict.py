"""What the soak's programs reported, and what of it is explained. Pure.

A failure is explained if the app would see it with PostgreSQL itself: a prepared statement whose result type a
schema change has changed. With a server connection of its own a client sees it once, when it next uses the
statement, and each of the programs has one statement that changes. Here it may see it again within 5 s after
the change, which is counted apart. Everything else is not explained.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.datapath.clients.programs import Report

STALE = "cached plan must not change result type"
_STALE_PLAN = (STALE, "cached statement plan is invalid due to a database schema or configuration change")
"""PostgreSQL's words, and asyncpg's."""
NEVER_AGAIN = frozenset({"sqlx", "node-postgres"})
"""Programs of libraries that don't prepare a statement again: it fails for good, with PostgreSQL itself too."""
RECOVERY_SECONDS = 5.0
_EARLY_SECONDS = 1.0
"""A change is timed once the server has answered, on a machine whose processors are busy."""


@dataclass(frozen=True)
class Change:
    """A schema change: when it was committed in epoch seconds, and how long until every connection's prepared
    statements worked again."""

    committed: float
    recovery: float
    failures: int


class Finding(NamedTuple):
    """Something wrong or unexplained, `seconds` after the beginning, on a program's connection."""

    seconds: float
    connection: str
    text: str

    def __str__(self) -> str:
        return f"{self.seconds:8.2f} s  {self.connection}  {self.text}"


@dataclass
class Verdict:
    """`repeated` are explained failures of a connection after its first one of the same change."""

    statements: int = 0
    wrong: int = 0
    explained: int = 0
    repeated: int = 0
    unexplained: int = 0
    findings: dict[str, list[Finding]] = field(default_factory=dict)

    def add(self, found: Finding) -> None:
        """Keep a finding with those that are alike."""
        kind = f"{found.connection.split()[0]}: {re.sub('[0-9a-f]{16}|[0-9]+', '*', found.text)[:100]}"
        self.findings.setdefault(kind, []).append(found)


def changes(recovery: Report) -> list[Change]:
    """As the program of that name reports them."""
    return [Change(*one) for one in recovery.detail[0]["changes"]]


def judge(reports: Mapping[str, Report], changed: Sequence[Change], began: float) -> Verdict:
    """All programs together; the findings are what was wrong or unexplained, by program and text."""
    verdict = Verdict()
    for name, report in reports.items():
        verdict.statements += report.statements
        verdict.wrong += report.wrong
        for index, seen in enumerate(report.detail):
            _judge_connection(verdict, f"{name} {index}", seen, changed, began)
    return verdict


def _judge_connection(
    verdict: Verdict, name: str, seen: Mapping[str, Any], changed: Sequence[Change], began: float
) -> None:
    stale: Counter[float] = Counter()
    for at, text in seen.get("wrong", ()):
        verdict.add(Finding(at - began, name, f"wrong answer: {text}"))
    for at, text in seen.get("failed", ()):
        change = _cause(at, changed) if any(words in text for words in _STALE_PLAN) else None
        if change is not None and (
            not stale[change.committed]
            or at - change.committed <= RECOVERY_SECONDS
            or name.split()[0] in NEVER_AGAIN
        ):
            stale[change.committed] += 1
        else:
            since = (
                f"{at - change.committed:.1f} s after the last schema change: " if change is not None else ""
            )
            verdict.unexplained += 1
            verdict.add(Finding(at - began, name, since + text))
    verdict.explained += stale.total()
    verdict.repeated += sum(count - 1 for count in stale.values())


def _cause(at: float, changed: Sequence[Change]) -> Change | None:
    """The change that a prepared statement's failure follows from: the last one before it."""
    before = [one for one in changed if one.committed <= at + _EARLY_SECONDS]
    return max(before, key=lambda one: one.committed, default=None)
