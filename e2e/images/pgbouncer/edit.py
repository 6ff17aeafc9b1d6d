"""Applies edits to a source tree: ``edit.py TREE EDITS``, where EDITS is a directory of ``*.edit`` files.

An edit names the place and holds only what is new there, so it goes on fitting while the source around it
changes, and fails when the place itself has changed. The form, as often as needed in a file:

    # Why, in as many lines as it takes.
    @@ FILE [: NAME]           the file, and the function, struct or other block whose first line names it
    << after|before|replace LINE, << replace LINE ... LINE, or << rewrite
    what is new, to the letter
    >>

LINE is the beginning of a line in that block, without its indentation; exactly one line must begin so. A second
one is the end of what is replaced: the first line below that begins so. `rewrite` replaces the whole block.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_VERBS = ("after", "before", "replace", "rewrite")


class EditError(Exception):
    """An edit that can't be read, or that no longer fits the source."""


@dataclass(frozen=True)
class Edit:
    """One insertion or replacement. `where` names it in messages; `block` is empty for the whole file."""

    where: str
    file: str
    block: str
    verb: str
    line: str
    text: tuple[str, ...]


def read(path: Path) -> Iterator[Edit]:
    """The edits of a file, in order. Raises EditError for what is not of the form above."""
    file = block = verb = line = where = ""
    text: list[str] = []
    for number, raw in enumerate(path.read_text().splitlines(), start=1):
        if verb and raw == ">>":
            yield Edit(where, file, block, verb, line, tuple(text))
            verb, text = "", []
        elif verb:
            text.append(raw)
        elif raw.startswith("@@ "):
            file, _, block = (part.strip() for part in raw[3:].partition(" : "))
        elif raw.startswith("<< "):
            where = f"{path.name}:{number}"
            verb, _, line = raw[3:].partition(" ")
            spanning = " ... " in line and verb != "replace"
            if verb not in _VERBS or not file or spanning or not (block if verb == "rewrite" else line):
                raise EditError(f"{where}: {raw!r} is not `<< {'|'.join(_VERBS)} LINE` below a `@@ FILE`")
        elif raw and not raw.startswith("#"):
            raise EditError(f"{path.name}:{number}: {raw!r} belongs to no edit")
    if verb:
        raise EditError(f"{where}: has no end")


def apply(edit: Edit, source: str) -> str:
    """The source with the edit in it. Raises EditError unless there is exactly one place for it."""
    lines = source.splitlines()
    blocks = list(_blocks(edit.block, lines))
    if edit.verb == "rewrite":
        places = blocks
    else:
        places = [place for first, last in blocks for place in _places(edit, lines, first, last)]
    if len(places) != 1:
        sought = edit.line or edit.block
        raise EditError(f"{edit.where}: {len(places)} places in {edit.file} fit {sought!r}, and it takes one")
    [(start, end)] = places
    return "\n".join([*lines[:start], *edit.text, *lines[end:]]) + "\n"


def _places(edit: Edit, lines: list[str], first: int, last: int) -> Iterator[tuple[int, int]]:
    beginning, _, end = edit.line.partition(" ... ")
    for n in (n for n in range(first, last) if _begins(lines[n], beginning)):
        if end:
            yield from [(n, m + 1) for m in range(n + 1, last) if _begins(lines[m], end)][:1]
        elif edit.verb == "replace":
            yield n, n + 1
        else:
            at = n if edit.verb == "before" else n + 1
            yield at, at


def _begins(line: str, beginning: str) -> bool:
    return line.strip().startswith(beginning)


def _blocks(name: str, lines: list[str]) -> Iterator[tuple[int, int]]:
    """From the first line of each definition of `name` to its closing brace, in the first column."""
    if not name:
        yield 0, len(lines)
        return
    first = re.compile(rf"[^\s#/*].*\b{re.escape(name)}\b[^;]*$")
    for start, line in enumerate(lines):
        if first.match(line) and _opens(lines, start):
            yield start, next(n for n in range(start, len(lines)) if lines[n].startswith("}")) + 1


def _opens(lines: list[str], start: int) -> bool:
    """Whether a body begins here, and not a statement or a declaration."""
    for line in lines[start : start + 6]:
        if line.rstrip().endswith("{"):
            return True
        if line.rstrip().endswith((";", "}")):
            return False
    return False


def main(tree: Path, directory: Path) -> int:
    """Apply every file of the directory by name. Returns the exit code; says what did not fit."""
    for path in sorted(directory.glob("*.edit")):
        for edit in read(path):
            target = tree / edit.file
            if not target.is_file():
                raise EditError(f"{edit.where}: the source has no {edit.file}")
            target.write_text(apply(edit, target.read_text()))
        print(f"applied {path.name}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
    except EditError as error:
        sys.exit(f"error: {error}\nThe source has changed there: adapt the edit, or drop it if it is fixed")
