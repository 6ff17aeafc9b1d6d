"""The word list that `make lint` checks docs, comments and messages against."""

from __future__ import annotations

import pytest

from docs.check_words import WORDS, problems, python_text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The pooler serves whoever connects.", ["whoever"]),
        ("Nobody is told of it.\nIt waits for ever.", ["Nobody", "is told", "for ever"]),
        (
            'A `whoever` in code, a "somebody" that is quoted, [a link](docs/nobody.md), https://nobody.example',
            [],
        ),
        ("```sh\necho whoever\n```\nnobody", ["nobody"]),
        ("besides, overlooks a lookup", []),
    ],
)
def test_words_are_found_in_prose_and_not_in_code_or_quotations(text: str, found: list[str]) -> None:
    assert [word for _, word, _ in problems(text)] == found


def test_a_find_has_its_line_and_its_remedy() -> None:
    ((line, word, remedy),) = problems("one\n\nit is made anew\n")
    assert (line, word, remedy) == (3, "anew", WORDS["anew"])


def test_comments_docstrings_and_messages_of_python_stand_in_their_lines() -> None:
    source = '"""Whoever\nreads."""\n\nnobody = 1  # somebody\nraise Error(f"{nobody} is told")\n'
    found = [(line, word) for line, word, _ in problems(python_text(source))]
    assert found == [(1, "Whoever"), (4, "somebody"), (5, "is told")]
