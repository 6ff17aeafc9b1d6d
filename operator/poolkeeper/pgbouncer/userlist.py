"""Writes PgBouncer's userlist.txt: the logins of the pooler, as SCRAM verifiers.

https://www.pgbouncer.org/config.html#authentication-file-format
"""

import zlib
from collections.abc import Iterable

from poolkeeper.credentials.logins import Login
from poolkeeper.spec.values import forbidden_character

_PADDING = 509
"""How many different lengths the end of a file may have."""


def marker(generation: str) -> str:
    """A user that can't log in. Once SHOW USERS lists it, that generation's file was read to its end."""
    return f"pk.{generation}"


def render(logins: Iterable[Login], generation: str) -> str:
    """The file, sorted by name, with the marker user last (its password is empty, and no hba line admits it).

    It ends with empty lines, whose number comes from the generation: PgBouncer does not read a file that has
    the inode, the size and the second of the one that it read last (auth_loaded in its loader.c), and a file
    system reuses a freed inode for the next file. Raises ValueError for a control character and for a login
    without a verifier.
    """
    by_name = {login.name: login for login in logins}
    lines = []
    for name, login in sorted(by_name.items()):
        if not login.verifier:
            raise ValueError(f"the login {name} has no SCRAM verifier")
        lines.append(f"{_quote(name)} {_quote(login.verifier)}\n")
    padding = "\n" * (zlib.crc32(generation.encode()) % _PADDING)
    return "".join(lines) + f'{_quote(marker(generation))} ""\n' + padding


def _quote(value: str) -> str:
    if found := forbidden_character(value):
        raise ValueError(f"a login of the pooler holds the control character {found}")
    return '"' + value.replace('"', '""') + '"'
