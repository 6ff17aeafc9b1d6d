"""Writes PgBouncer's userlist.txt: who may log in at the pooler, as SCRAM verifiers.

https://www.pgbouncer.org/config.html#authentication-file-format
"""

from collections.abc import Iterable

from poolkeeper.logins import Login
from poolkeeper.scalars import forbidden_character


def marker(generation: str) -> str:
    """A user that nobody can be. Once SHOW USERS lists it, that generation's file was read to its end."""
    return f"pk.{generation}"


def render(logins: Iterable[Login], generation: str) -> str:
    """The file, sorted by name, with the marker user last (its password is empty, and no hba line admits it).

    Raises ValueError for a control character and for a login without a verifier.
    """
    by_name = {login.name: login for login in logins}
    lines = []
    for name, login in sorted(by_name.items()):
        if not login.verifier:
            raise ValueError(f"the login {name} has no SCRAM verifier")
        lines.append(f"{_quote(name)} {_quote(login.verifier)}\n")
    return "".join(lines) + f'{_quote(marker(generation))} ""\n'


def _quote(value: str) -> str:
    if found := forbidden_character(value):
        raise ValueError(f"a login of the pooler holds the control character {found}")
    return '"' + value.replace('"', '""') + '"'
