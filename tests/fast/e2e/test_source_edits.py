"""Edits to PgBouncer's source: where they go, and that one which no longer fits stops the build."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.cluster.paths import ROOT
from e2e.images.pgbouncer.edit import EditError, apply, main, read

EDITS = ROOT / "e2e/images/pgbouncer/edits"
SOURCE = """\
int twice(int);

static int once(int n)
{
	if (n)
		return n;
	return 1;
}

int twice(int n)
{
	return once(n) + once(n);
}
"""


def edited(directory: Path, text: str, source: str = SOURCE) -> str:
    (directory / "a.edit").write_text(text)
    for edit in read(directory / "a.edit"):
        source = apply(edit, source)
    return source


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("@@ a.c : once\n<< before return 1;\n\tn++;\n>>\n", ("\treturn 1;", "\tn++;\n\treturn 1;")),
        ("@@ a.c : once\n<< after return 1;\n\tn++;\n>>\n", ("\treturn 1;", "\treturn 1;\n\tn++;")),
        ("@@ a.c : twice\n<< replace return\n\treturn 2;\n>>\n", ("return once(n) + once(n);", "return 2;")),
        ("@@ a.c : once\n<< replace if (n) ... return\n\tn++;\n>>\n", ("\tif (n)\n\t\treturn n;", "\tn++;")),
        ("@@ a.c\n<< after int twice(int);\nint thrice(int);\n>>\n", ("(int);", "(int);\nint thrice(int);")),
        (
            "@@ a.c : twice\n<< rewrite\nint twice(int n) { return 2 * n; }\n>>\n",
            ("int twice(int n)\n{\n\treturn once(n) + once(n);\n}", "int twice(int n) { return 2 * n; }"),
        ),
    ],
)
def test_an_edit_changes_its_place_and_nothing_else(
    tmp_path: Path, text: str, changed: tuple[str, str]
) -> None:
    assert edited(tmp_path, text) == SOURCE.replace(*changed)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("@@ a.c : once\n<< before return 2;\n>>\n", "0 places"),
        ("@@ a.c : once\n<< before return\n>>\n", "2 places"),
        ("@@ a.c : thrice\n<< rewrite\n>>\n", "0 places"),
        ("@@ a.c : once\n<< replace return 1; ... return 2;\n>>\n", "0 places"),
        ("@@ a.c : once\n<< after if (n) ... return\n>>\n", "is not `<<"),
        ("@@ a.c : once\n<< instead of return 1;\n>>\n", "is not `<<"),
        ("@@ a.c\n<< rewrite\n>>\n", "is not `<<"),
        ("<< after return 1;\n>>\n", "is not `<<"),
        ("@@ a.c : once\n<< after return 1;\n\tn++;\n", "has no end"),
        ("@@ a.c : once\nreturn 1;\n", "belongs to no edit"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused_by_its_file_and_line(
    tmp_path: Path, text: str, problem: str
) -> None:
    with pytest.raises(EditError, match=rf"^a\.edit:\d+: .*{re.escape(problem)}"):
        edited(tmp_path, text)


def test_an_edit_of_a_file_that_is_gone_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "a.edit").write_text("@@ src/gone.c\n<< after x\n>>\n")
    with pytest.raises(EditError, match=r"a\.edit:2: the source has no src/gone\.c"):
        main(tmp_path, tmp_path)
    command = [sys.executable, str(EDITS.parent / "edit.py"), str(tmp_path), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "adapt the edit" in ended.stderr


@pytest.mark.parametrize("path", sorted(EDITS.glob("*.edit")), ids=lambda path: path.stem)
def test_every_edit_says_why_and_is_reported(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert list(read(path))
    if path.stem != "90-version":
        assert (ROOT / "docs/upstream" / f"{path.stem}.md").is_file()
