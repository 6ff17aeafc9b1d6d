"""What doesn't fit has a reason that is part of the API, and says what to change."""

from __future__ import annotations

import pytest

from poolkeeper.budget.problems import (
    ENTRIES_LEFT_OUT,
    GRAVITY,
    LIMIT_TOO_SMALL,
    OVERCOMMITTED,
    PODS_WAIT,
    Problem,
    of_entries,
    of_limits,
    of_pods,
)


@pytest.mark.parametrize(
    ("found", "reason", "words"),
    [
        (of_pods(10, 6, 2, 2, "X"), OVERCOMMITTED, "2 more are held than there should be; remove"),
        (of_pods(10, 6, 2, 3, "X"), OVERCOMMITTED, "2 pooler pods need 12 connections"),
        (of_pods(10, 4, 2, 4, "X"), PODS_WAIT, "2 of 4 pooler pods wait: a share of 10"),
        (of_entries(["a", "b"], "X"), ENTRIES_LEFT_OUT, "left for the entries a, b; remove"),
        (of_entries(list("abcde"), "X"), ENTRIES_LEFT_OUT, "a, b, c and 2 more; remove"),
        (
            of_limits([("a", 3, 8), ("b", 8, 8)], 4),
            LIMIT_TOO_SMALL,
            "is 3 for the consumer with the entry a, and",
        ),
        (of_limits([("a", 3, 8), ("b", 2, 8)], 4), LIMIT_TOO_SMALL, "entry a, and 1 more are like it, and"),
    ],
)
def test_what_does_not_fit_has_its_reason_and_a_remedy(
    found: tuple[Problem, ...], reason: str, words: str
) -> None:
    assert [problem.reason for problem in found] == [reason]
    assert reason in GRAVITY
    assert words in found[0].message
    assert "or raise X" in found[0].message or "raise it to 8" in found[0].message


@pytest.mark.parametrize(
    "found",
    [
        of_pods(12, 6, 2, 2, "X"),
        of_pods(0, 0, 0, 3, "X"),
        of_entries([], "X"),
        of_limits([("a", 8, 8)], 4),
        of_limits([], 4),
    ],
)
def test_what_fits_is_no_problem(found: tuple[Problem, ...]) -> None:
    assert found == ()
