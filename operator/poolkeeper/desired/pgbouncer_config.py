"""Everything that one pooler process reads, as one value: its files, and what its console must show of them.

The files of one configuration carry its generation, a digest of their content, in their names. So the paths
in SHOW CONFIG tell which configuration is in force, and a process that hasn't reloaded yet finds its own.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from poolkeeper.desired import hba, pgbouncer_ini, userlist
from poolkeeper.desired.entries import Entry
from poolkeeper.logins import Logins
from poolkeeper.target import Target

INI = "pgbouncer.ini"
_FILE = re.compile(r"(?:userlist|hba|ca)-(?P<generation>[0-9a-f]{12})\.(?:txt|conf|crt)")
_NO_CA = "# No certificate authority is given: the upstream's certificate is not verified.\n"
_PLACEHOLDER = "generation"
_NUL = "\0"


@dataclass(frozen=True)
class Configuration:
    """`files` by name, secret; what SHOW CONFIG, SHOW DATABASES and SHOW USERS must show of them.

    `settings` and the columns of `databases` (by entry name) are in the console's own spelling; `users` must
    be listed. `generation` is 12 hexadecimal digits and gives nothing away.
    """

    generation: str
    files: Mapping[str, str] = field(repr=False)
    settings: Mapping[str, str]
    databases: Mapping[str, Mapping[str, str]]
    users: frozenset[str]


def configuration(
    target: Target, entries: Iterable[Entry], logins: Logins, parameters: Mapping[str, str], directory: str
) -> Configuration:
    """Compose the files that are mounted at `directory`. Logins of consumers without an entry are left out.

    Raises ValueError for what can't be written, and where a login is missing.
    """
    rows = tuple(entries)
    if logins.console is None:
        raise ValueError("the console's login is not made yet")
    if missing := sorted({row.login for row in rows} - logins.consumers.keys()):
        raise ValueError(f"the login {missing[0]} is not made yet")
    if target.sslmode.startswith("verify-") and not target.ca:
        raise ValueError(f"sslmode {target.sslmode} needs a certificate authority; give one")
    known = [logins.console, *(logins.consumers[name] for name in sorted({row.login for row in rows}))]
    rules = hba.render(rows, logins.console.name)
    authority = target.ca or _NO_CA

    def files(generation: str) -> dict[str, str]:
        names = _names(generation)
        ini = pgbouncer_ini.render(target, rows, parameters, **_paths(directory, generation))
        contents = (userlist.render(known, generation), rules, authority)
        return {INI: ini, **dict(zip(names.values(), contents, strict=True))}

    generation = _digest(logins.console.password, files(_PLACEHOLDER))
    settings = pgbouncer_ini.settings(target, parameters, **_paths(directory, generation))
    return Configuration(
        generation=generation,
        files=files(generation),
        settings=settings,
        databases={row.name: _shown(target, row) for row in rows},
        users=frozenset({login.name for login in known} | {userlist.marker(generation)}),
    )


def kept_files(stored: Mapping[str, str], generation: str) -> dict[str, str]:
    """The files of the one generation before `generation`, to be kept beside its own.

    That is the generation which the stored pgbouncer.ini names or, where that is `generation` already, the
    other one that is stored.
    """
    generations = {name: match["generation"] for name in stored if (match := _FILE.fullmatch(name))}
    others = set(generations.values()) - {generation}
    named = {previous for previous in others if _names(previous)["userlist_path"] in stored.get(INI, "")}
    kept = min(named or others, default=None)
    return {name: stored[name] for name in sorted(generations) if generations[name] == kept}


def _names(generation: str) -> dict[str, str]:
    return {
        "userlist_path": f"userlist-{generation}.txt",
        "hba_path": f"hba-{generation}.conf",
        "ca_path": f"ca-{generation}.crt",
    }


def _paths(directory: str, generation: str) -> dict[str, str]:
    return {argument: f"{directory}/{name}" for argument, name in _names(generation).items()}


def _digest(key: str, files: Mapping[str, str]) -> str:
    """Keyed with the console's password: a plain hash would let anybody who sees it test guesses of a weak
    upstream password."""
    content = _NUL.join(_NUL.join(item) for item in sorted(files.items()))
    return hmac.new(key.encode(), content.encode(), hashlib.sha256).hexdigest()[:12]


def _shown(target: Target, entry: Entry) -> dict[str, str]:
    return {
        "host": target.host,
        "port": str(target.port),
        "database": entry.database,
        "force_user": target.user,
        "pool_mode": entry.pool_mode,
    }
