"""The parameters that clients set at start-up, three values of each, and the forms in which they arrive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StartupParameter:
    """A name, and the values that clients ask for. A client that asks for none has the role's own."""

    name: str
    values: tuple[str, str, str]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


FORMS: Mapping[str, Callable[[str, str], dict[str, str]]] = {
    "key": lambda name, value: {name: value},
    "option -c": lambda name, value: {"options": f"-c {name}={_escaped(value)}"},
    "option -c joined": lambda name, value: {"options": f"-c{name}={_escaped(value)}"},
    "option --": lambda name, value: {"options": f"--{name.replace('_', '-')}={_escaped(value)}"},
}

PARAMETERS = (
    StartupParameter("search_path", ("t1", "t2", "t3")),
    StartupParameter("statement_timeout", ("61s", "62s", "63s")),
    StartupParameter("lock_timeout", ("71s", "72s", "73s")),
    StartupParameter("idle_in_transaction_session_timeout", ("81s", "82s", "83s")),
    StartupParameter("DateStyle", ("SQL, DMY", "German, DMY", "Postgres, MDY")),
    StartupParameter("IntervalStyle", ("iso_8601", "sql_standard", "postgres_verbose")),
    StartupParameter("TimeZone", ("Europe/Paris", "Asia/Tokyo", "America/Lima")),
    StartupParameter("client_encoding", ("LATIN1", "WIN1252", "SQL_ASCII")),
    StartupParameter("application_name", ("one", "two with blanks", "it's three")),
    StartupParameter("standard_conforming_strings", ("off", "on", "off")),
    StartupParameter("extra_float_digits", ("0", "2", "3")),
    StartupParameter("work_mem", ("5MB", "6MB", "7MB")),
    StartupParameter("jit", ("off", "on", "off")),
    StartupParameter("default_transaction_isolation", ("serializable", "repeatable read", "read uncommitted")),
    StartupParameter("default_transaction_read_only", ("on", "off", "on")),
    StartupParameter("geqo", ("off", "on", "off")),
    StartupParameter("bytea_output", ("escape", "hex", "escape")),
    StartupParameter("role", ("auditor", "none", "auditor")),
    StartupParameter("app.tenant", ("acme", "globex", "it's")),
)
