"""Checks docs, docstrings, comments, messages and descriptions for words that make a sentence hard to read."""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

WORDS = {
    r"whoever|somebody|nobody|everybody|everyone|anybody": "name the pooler, consumer, client or role",
    r"beside": "say in the background, next to, or also",
    r"(tell|tells|told) of|(is|are|was|were) told": "say report, notify, or reports",
    r"(a|every|each|one) look|look after look|looks at|is looked": "say poll, read or inspect",
    r"sees? to|seen to be": "say handle, ensure, or shown to be",
    r"comes? to be": "say is created, or becomes",
    r"for ever|for so long": "say how long",
    r"anew": "say again",
}
"""Words, as regular expressions, and what to write in their place."""

_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_QUOTED = re.compile(r"`[^`\n]*`|\"[^\"\n]*\"|\]\([^)\s]*\)|https?://\S+")
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")


def main() -> int:
    """Print every find with its remedy; the exit code."""
    finds = [
        f"{path.relative_to(ROOT)}:{line}: {word!r}: {remedy}"
        for path, text in sorted(prose())
        for line, word, remedy in sorted(problems(text))
    ]
    print("\n".join(finds) or "no word of the list")
    return 1 if finds else 0


def problems(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, word and remedy of each word of the list, outside of code and quotations."""
    for pattern in (_FENCE, _QUOTED):
        text = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    for word, remedy in WORDS.items():
        for match in re.finditer(rf"\b(?:{word})\b", text, re.IGNORECASE):
            yield text.count("\n", 0, match.start()) + 1, match[0], remedy


def prose() -> Iterator[tuple[Path, str]]:
    """Every file that people read, and its prose, line by line where it stands in the file."""
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        yield path, path.read_text()
    for path in (ROOT / "operator").rglob("*.py"):
        yield path, python_text(path.read_text())
    for folder in ("crds", "charts"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in (".yaml", ".txt", ".tpl", ".json"):
                yield path, path.read_text()


def python_text(source: str) -> str:
    """Comments, docstrings and all other strings of a Python source, in their lines."""
    lines = [""] * (source.count("\n") + 1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            for number, line in enumerate(token.string.strip("\"'").split("\n"), token.start[0] - 1):
                lines[number] += " " + _PLACEHOLDER.sub("", line)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
