"""Writes PgBouncer's hba file: which login may use which database entry.

Without it every login could use every entry, since PgBouncer itself ties no login to an entry.
https://www.pgbouncer.org/config.html#hba-file-format
"""

import re
from collections.abc import Iterable

from poolkeeper.consumers.entries import Entry
from poolkeeper.names import CONSOLE_DATABASE

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


def render(entries: Iterable[Entry], console_login: str) -> str:
    """The file: each entry admits its own login, the console the operator's, all with SCRAM; nothing else.

    Addresses are left to the NetworkPolicy. Raises ValueError for a name that isn't of [a-z0-9_.-], since the
    format gives words like `all` and characters like `@`, `+` and `,` a meaning.
    """
    allowed: dict[str, list[str]] = {console_login: [CONSOLE_DATABASE]}
    for entry in sorted(entries, key=lambda entry: (entry.login, entry.name)):
        allowed.setdefault(entry.login, []).append(entry.name)
    # One line for each login: thousands of them have to fit into a Secret.
    return "".join(
        f"host {','.join(map(_quote, databases))} {_quote(login)} all scram-sha-256\n"
        for login, databases in allowed.items()
    )


def _quote(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot stand in the pooler's hba file; use letters, digits, '_', '.' and '-'"
        )
    return f'"{name}"'
