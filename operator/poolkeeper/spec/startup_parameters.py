"""How poolers and keepers treat session parameters of start-up messages, and isolate clients from each other.

A parameter of a start-up message is applied to every server connection that its client gets, ignored, or
refused by name. The engine also applies parameters that PostgreSQL doesn't report (docs/engine.md). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from poolkeeper.spec.fields import Fields, Text
from poolkeeper.spec.types import Pooler
from poolkeeper.spec.values import SpecError

APPLY, IGNORE, REFUSE = "Apply", "Ignore", "Refuse"
TREATMENTS = (APPLY, IGNORE, REFUSE)
FAST, STRICT = "Fast", "Strict"
ISOLATIONS = (FAST, STRICT)

DEFAULTS: Mapping[str, str] = {
    # PgBouncer's own default. PgBouncer always applies DateStyle, TimeZone, client_encoding, application_name.
    "IntervalStyle": APPLY,
    "idle_in_transaction_session_timeout": APPLY,
    "lock_timeout": APPLY,
    "search_path": APPLY,
    "statement_timeout": APPLY,
    # Since PostgreSQL 12 every value above 0 prints the same digits, and pgjdbc sends one with each connection.
    "extra_float_digits": IGNORE,
}
"""Any other parameter is refused unless spec.pooler.startupParameters names it."""

RESET_PARAMETERS = ("server_reset_query", "server_reset_query_always")
"""PgBouncer's settings that isolation Strict decides, so that they can't be set along with it."""

_NAME = Text(
    r"[A-Za-z_][A-Za-z0-9_.]*",
    63,
    "is not the name of a session parameter",
    "use at most 63 letters, digits, '_' and '.', starting with a letter or '_'",
)
_CONNECTION = frozenset({"user", "database", "options", "replication"})
"""Parts of a start-up message that are not session parameters."""


def parse(fields: Fields) -> dict[str, str]:
    """Read spec.pooler.startupParameters; raises SpecError for the first entry that fails."""
    entry = fields.object("startupParameters")
    found = {}
    for name in sorted(entry.values):
        _NAME.check(name, entry.at(name))
        if name.lower() in _CONNECTION:
            raise SpecError(entry.at(name), "belongs to the connection, not to its session", "remove it")
        treatment = entry.choice(name, TREATMENTS)
        if treatment is not None:
            found[name] = treatment
    return found


def treatments(chosen: Mapping[str, str]) -> dict[str, str]:
    """The treatment of each parameter that `chosen` or DEFAULTS names, sorted by name.

    Names in `chosen` are case-insensitive, as in PostgreSQL.
    """
    names = {name.lower() for name in chosen}
    kept = {name: treatment for name, treatment in DEFAULTS.items() if name.lower() not in names}
    return dict(sorted({**kept, **chosen}.items()))


def settings(chosen: Mapping[str, str]) -> dict[str, str]:
    """PgBouncer's settings for the treatments(), the same for poolers and keepers."""
    by_name = treatments(chosen)

    def listed(treatment: str) -> str:
        return ",".join(name for name, found in by_name.items() if found == treatment)

    return {"track_extra_parameters": listed(APPLY), "ignore_startup_parameters": listed(IGNORE)}


def isolation_settings(isolation: str) -> dict[str, str]:
    """PgBouncer's settings for what a client leaves on a server connection. With Strict, nothing stays."""
    if isolation == STRICT:
        return {"server_reset_query": "DISCARD ALL", "server_reset_query_always": "1"}
    return {}


def check_isolation(isolation: str, parameters: Mapping[str, object], field: str) -> None:
    """Refuse parameters that Strict decides; raises SpecError."""
    for name in RESET_PARAMETERS:
        if isolation == STRICT and name in parameters:
            raise SpecError(
                f"{field}.{name}", "does not go with isolation Strict", "remove it, or set isolation to Fast"
            )


def pooler_settings(pooler: Pooler) -> dict[str, str]:
    """PgBouncer's settings for start-up parameters and isolation of these poolers."""
    return {**settings(pooler.startup_parameters), **isolation_settings(pooler.isolation)}
