"""Text from outside, for lines that people read: log lines and Events. One text stays one line.

A line end in a name would add a line of the sender's choice to the log; an escape sequence or a mark for the
direction of writing would change what a terminal shows of the lines around it.
"""

from __future__ import annotations

import logging

_LINE_LIMIT = 8_192
"""Maximum length of a log line, in characters."""
_CUT = "…"


def printable(text: str, limit: int) -> str:
    """The text with every character that can't be printed as an escape (`\\n`, `\\x1b`, `\\u202e`), cut to
    `limit` characters."""
    text = _cut(text, limit)
    if text.isprintable():
        return text
    return _cut("".join(one if one.isprintable() else _escape(one) for one in text), limit)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + _CUT


class LogFormatter(logging.Formatter):
    """One record is one line, plus its traceback, whose lines are indented: none looks like a record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        return printable(super().formatMessage(record), _LINE_LIMIT)

    def format(self, record: logging.LogRecord) -> str:
        first, *rest = super().format(record).split("\n")
        return "\n".join([first, *(f"  {printable(line, _LINE_LIMIT)}" for line in rest)])
