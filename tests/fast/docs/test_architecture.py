"""What docs/architecture.md names exists: a map of places that have moved leads nowhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
BASES = (ROOT / "operator" / "poolkeeper", ROOT)
PATHS = sorted({*re.findall(r"`([\w-]+/[\w./-]*)", PAGE), *re.findall(r"\btests/[\w./-]*\w", PAGE)})
QUESTIONS = re.findall(r"^\| ([^|]+\?) \| ([^|]+) \|$", PAGE, re.MULTILINE)


def found(path: str) -> Path | None:
    """The file or package of this name, with or without `.py`."""
    tried = [base / f"{path.rstrip('/.')}{suffix}" for base in BASES for suffix in ("", ".py")]
    return next((one for one in tried if one.exists()), None)


@pytest.mark.parametrize("path", PATHS)
def test_a_named_path_exists(path: str) -> None:
    assert found(path), f"docs/architecture.md names {path}, which is not there"


def test_the_page_names_paths_and_at_least_ten_questions() -> None:
    assert len(PATHS) > 30
    assert len(QUESTIONS) >= 10


@pytest.mark.parametrize(("question", "answer"), QUESTIONS)
def test_a_question_has_its_place(question: str, answer: str) -> None:
    places = [place for place in map(found, re.findall(r"`([\w./-]+/[\w./-]*)`", answer)) if place]
    assert places, question
    for function in re.findall(r"`(?:\w+\.)?(\w+)\(\)`", answer):
        tree = ast.parse(places[0].read_text())
        names = {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert function in names, f"{function} is not in {places[0]}"


@pytest.mark.parametrize("package", sorted(one.parent.name for one in BASES[0].glob("*/__init__.py")))
def test_every_package_has_its_row(package: str) -> None:
    assert f"\n| `{package}` | " in PAGE
