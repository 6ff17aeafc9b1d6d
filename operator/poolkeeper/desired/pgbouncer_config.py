"""Everything that one pooler process reads, as one value: its files, and what its console must show of them.

The userlist and hba file carry the configuration's generation, a digest of all its files, in their names. So
SHOW CONFIG tells which configuration is in force, and a process that hasn't reloaded yet finds its own files.
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
_FILE = re.compile(r"(?:userlist|hba|ca)-[0-9a-f]{12}\.(?:txt|conf|crt)")
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

    # Named after its own content alone: PgBouncer closes every server connection when this path changes.
    ca = f"ca-{hashlib.sha256(authority.encode()).hexdigest()[:12]}.crt"

    def paths(generation: str) -> dict[str, str]:
        names = {
            "userlist_path": f"userlist-{generation}.txt",
            "hba_path": f"hba-{generation}.conf",
            "ca_path": ca,
        }
        return {argument: f"{directory}/{name}" for argument, name in names.items()}

    def files(generation: str) -> dict[str, str]:
        return {
            INI: pgbouncer_ini.render(target, rows, parameters, **paths(generation)),
            f"userlist-{generation}.txt": userlist.render(known, generation),
            f"hba-{generation}.conf": rules,
            ca: authority,
        }

    generation = _digest(logins.console.password, files(_PLACEHOLDER))
    return Configuration(
        generation=generation,
        files=files(generation),
        settings=pgbouncer_ini.settings(target, parameters, **paths(generation)),
        databases={row.name: _shown(target, row) for row in rows},
        users=frozenset({login.name for login in known} | {userlist.marker(generation)}),
    )


def kept_files(stored: Mapping[str, str], generation: str) -> dict[str, str]:
    """The files of the one generation before `generation`, to be kept beside its own.

    They are those that the stored pgbouncer.ini names or, where that is of `generation` already, what was
    kept when it came.
    """
    ini = stored.get(INI, "")
    names = sorted(name for name in stored if _FILE.fullmatch(name))
    if f"-{generation}." in ini:
        return {name: stored[name] for name in names}
    return {name: stored[name] for name in names if f"/{name}\n" in ini}


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
