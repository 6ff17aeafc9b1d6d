"""Everything that one pooler process reads, as one value: its files, and what its console must show of them.

The userlist and hba file carry the configuration's generation, a digest of all its files, in their names. So
SHOW CONFIG shows which configuration is in force, and a process that hasn't reloaded yet finds its own files.
The digest also covers the entries' lines, which stand in each pod's own table.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from poolkeeper.consumers.entries import Entry
from poolkeeper.credentials.certificates import Certificate
from poolkeeper.credentials.logins import Logins
from poolkeeper.names import POOLER_PORT
from poolkeeper.pgbouncer import client_slots, hba, userlist
from poolkeeper.pgbouncer import ini as pgbouncer_ini
from poolkeeper.pgbouncer.ini import Paths
from poolkeeper.upstream.target import Target

INI = "pgbouncer.ini"
SCRAM_INI = "scram.ini"
"""Read instead by a keeper that demands a password of the app. It includes INI."""
POD_FILE = "pod.ini"
"""Written by the downward API next to the files: settings that each pod has of its own."""
_FILE = re.compile(r"(?:userlist|hba|hba-scram|ca|tls|tls-ca)-[0-9a-f]{12}\.(?:txt|conf|crt|key)")
_RULES = re.compile(r"^auth_hba_file = (\S+)$", re.MULTILINE)
_NO_CA = "# No certificate authority is given: the upstream's certificate is not verified.\n"
MAX_CLIENTS = "max_client_conn"
USUAL_SLOTS = 20
"""Clients of each consumer that every pooler has room for, unless spec.pooler.parameters say otherwise."""
MOST_CLIENTS = 100_000
"""The largest max_client_conn, in spec.pooler.parameters too."""
MAX_CLIENTS_COLUMN = "max_client_connections"
"""The column of SHOW DATABASES with the maximum number of clients of an entry."""
PLACEHOLDER = "generation"
"""Stands for the generation while its digest is computed."""
_NUL = "\0"


@dataclass(frozen=True)
class Configuration:
    """The `files` of a process by name, secret; what SHOW CONFIG, SHOW DATABASES and SHOW USERS must show; and
    the `lines` of the entries by name, also secret, for the tables that have them (budget/allotments.py).

    `settings` and the columns of `databases` (by entry name) are in the console's own spelling. SHOW USERS must
    list `users`, and show `slots`: the maximum number of clients of each login in one process. `peers` are the
    columns of SHOW PEERS by peer_id. `generation` is 12 hexadecimal digits and reveals nothing.
    """

    generation: str
    files: Mapping[str, str] = field(repr=False)
    settings: Mapping[str, str]
    databases: Mapping[str, Mapping[str, str]]
    users: frozenset[str]
    peers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    lines: Mapping[str, str] = field(default_factory=dict, repr=False)
    slots: Mapping[str, int] = field(default_factory=dict)


def rules_of(files: Mapping[str, str]) -> str:
    """The path of the login rules of a process that reads these files; empty if it reads none."""
    match = _RULES.search(files.get(INI, ""))
    return match[1] if match else ""


def configuration(
    target: Target,
    entries: Iterable[Entry],
    logins: Logins,
    certificate: Certificate,
    parameters: Mapping[str, str],
    directory: str,
    peers: Mapping[int, str] | None = None,
) -> Configuration:
    """Compose the files that are mounted at `directory`. Logins of consumers without an entry are left out.

    `certificate` is shown to clients; `peers` are the addresses of all poolers by peer_id. Raises ValueError
    for what can't be written, and if a login is missing.
    """
    rows = tuple(entries)
    if logins.console is None or logins.authorities is None:
        raise ValueError("the console's login is not made yet")
    if missing := sorted({row.login for row in rows} - logins.consumers.keys()):
        raise ValueError(f"the login {missing[0]} is not made yet")
    if target.sslmode.startswith("verify-") and not target.ca:
        raise ValueError(f"sslmode {target.sslmode} needs a certificate authority; give one")
    known = [logins.console, *(logins.consumers[name] for name in sorted({row.login for row in rows}))]
    rules = hba.render(rows, logins.console.name)
    # Named after their own content alone: PgBouncer closes every server connection when these paths change.
    upstream_ca = content_file("ca", target.ca or _NO_CA, "crt")
    tls_ca = content_file("tls-ca", logins.authorities.poolers.certificate, "crt")
    tls_certificate = content_file("tls", certificate.certificate, "crt")
    tls_key = content_file("tls", certificate.key, "key")
    addresses = dict(peers or {})
    lines = {row.name: pgbouncer_ini.line(target, row) for row in rows}
    parameters = with_slots(parameters, rows)
    slots = divided_slots(parameters, rows)

    def paths(generation: str) -> Paths:
        tls = (tls_ca[0], tls_certificate[0], tls_key[0])
        return paths_in(directory, generation, upstream_ca[0], *tls)

    def files(generation: str) -> dict[str, str]:
        where = paths(generation)
        settings = pgbouncer_ini.settings(target, parameters, where)
        return {
            INI: pgbouncer_ini.render(settings, where.pod, addresses, slots),
            f"userlist-{generation}.txt": userlist.render(known, generation),
            f"hba-{generation}.conf": rules,
            **dict((upstream_ca, tls_ca, tls_certificate, tls_key)),
        }

    generation = digest(logins.console.password, {**files(PLACEHOLDER), **lines})
    return Configuration(
        generation=generation,
        files=files(generation),
        settings=pgbouncer_ini.settings(target, parameters, paths(generation)),
        databases={row.name: shown_columns(target, row) for row in rows},
        users=frozenset({login.name for login in known} | {userlist.marker(generation)}),
        peers={str(peer): {"host": host, "port": str(POOLER_PORT)} for peer, host in addresses.items()},
        lines=lines,
        slots=slots,
    )


def with_slots(parameters: Mapping[str, str], entries: Iterable[Entry]) -> dict[str, str]:
    """The parameters with a max_client_conn: their own, or else the usual one, raised if it would leave too few
    slots for each of many consumers."""
    consumers = len({entry.login for entry in entries})
    usual = int(pgbouncer_ini.DEFAULTS[MAX_CLIENTS])
    enough = min(client_slots.needed(USUAL_SLOTS * consumers), MOST_CLIENTS)
    return {MAX_CLIENTS: str(max(usual, enough)), **parameters}


def divided_slots(parameters: Mapping[str, str], entries: Iterable[Entry]) -> dict[str, int]:
    """The maximum clients of each login in one process, over all of its entries; `parameters` with_slots()."""
    general = int(parameters.get(pgbouncer_ini.SLOTS_SETTING, "0"))  # 0: no limit
    rows: dict[str, list[Entry]] = {}
    for entry in entries:
        rows.setdefault(entry.login, []).append(entry)
    parties = []
    for login, own in rows.items():
        limits = [row.max_clients for row in own if row.max_clients is not None]
        ceilings = [sum(limits)] if len(limits) == len(own) else []
        ceilings += [general] if general else []
        parties.append(client_slots.Party(login, own[0].weight, min(ceilings, default=None)))
    return client_slots.divide(int(parameters[MAX_CLIENTS]), parties)


def paths_in(
    directory: str, generation: str, upstream_ca: str, tls_ca: str, tls_certificate: str, tls_key: str
) -> Paths:
    """Where a process finds its files; the last four arguments are names of content_file()."""
    return Paths(
        userlist=f"{directory}/userlist-{generation}.txt",
        hba=f"{directory}/hba-{generation}.conf",
        upstream_ca=f"{directory}/{upstream_ca}",
        tls_ca=f"{directory}/{tls_ca}",
        tls_certificate=f"{directory}/{tls_certificate}",
        tls_key=f"{directory}/{tls_key}",
        pod=f"{directory}/{POD_FILE}",
    )


def content_file(stem: str, content: str, suffix: str) -> tuple[str, str]:
    """(name, content) of a file that is named after its content."""
    return f"{stem}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.{suffix}", content


def kept_files(stored: Mapping[str, str], generation: str) -> dict[str, str]:
    """The files of the one generation before `generation`, to be kept along with its own.

    These are the files that the stored configuration names or, if that is of `generation` already, all that
    are stored.
    """
    ini = stored.get(INI, "") + stored.get(SCRAM_INI, "")
    names = sorted(name for name in stored if _FILE.fullmatch(name))
    if f"-{generation}." in ini:
        return {name: stored[name] for name in names}
    return {name: stored[name] for name in names if f"/{name}\n" in ini}


def digest(key: str, files: Mapping[str, str]) -> str:
    """A generation, from the files with PLACEHOLDER in its place. It is keyed with a password of the operator:
    with a plain hash, its readers could test guesses of a weak upstream password."""
    content = _NUL.join(_NUL.join(item) for item in sorted(files.items()))
    return hmac.new(key.encode(), content.encode(), hashlib.sha256).hexdigest()[:12]


def shown_columns(target: Target, entry: Entry) -> dict[str, str]:
    """What SHOW DATABASES must show of an entry."""
    return {
        "host": target.host,
        "port": str(target.port),
        "database": entry.database,
        "force_user": target.user,
        "pool_mode": entry.pool_mode,
        **({} if entry.max_clients is None else {MAX_CLIENTS_COLUMN: str(entry.max_clients)}),
    }
