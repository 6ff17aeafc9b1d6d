"""Every threat that docs/security.md lists has a test, and the test is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text()
SECTION = PAGE.partition("## Tenants as attackers")[2].partition("\n## ")[0]
ROWS = [line for line in SECTION.splitlines() if line.startswith("| ")][1:]
TESTS = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", SECTION)


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_the_test_of_a_threat_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in names, f"docs/security.md names {path}::{name}, which is not there"


@pytest.mark.parametrize("row", ROWS)
def test_every_threat_has_its_four_cells_and_a_test(row: str) -> None:
    cells = row.strip("| ").split(" | ")
    assert len(cells) == 4
    assert "::test_" in cells[-1]


def test_there_are_threats() -> None:
    assert len(ROWS) > 15
