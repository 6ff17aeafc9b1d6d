"""The budget as stored in the Secret that pooler pods mount: a Record, and each pod's table of caps.

Pure. A pod reads only its own table, which it includes by the file's name (plan/peers.py). A pod without a
table has no entries and can't hold a connection. https://www.pgbouncer.org/config.html#section-databases
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from poolkeeper.budget.division import Caps
from poolkeeper.budget.protocol import Allotment, Reading, Record

RECORD_FILE = "allotments.json"
_TABLE_FILE = "caps-{}.ini"
_CAP = " max_db_connections="
_MARKER = re.compile(r"caps-([1-9][0-9]*)")
MARKER_SETTING = "syslog_ident"
"""Free text that PgBouncer shows and re-reads, and doesn't use as long as nothing is logged to syslog. If no
table is included, it falls back to its default."""

Row = Mapping[str, str]


@dataclass(frozen=True)
class Stored:
    """A Record with the name of the server that its connections are on (servers.py), and the UID and resource
    version of the Secret that it was read from. `rules` is the path of the login rules that are stored with
    it, empty if there are none."""

    record: Record
    server: str
    uid: str
    version: str
    rules: str = ""


def table_file(uid: str) -> str:
    """Name of the file with a pod's table."""
    return _TABLE_FILE.format(uid)


def files(record: Record, server: str, lines: Mapping[str, str], stored: Mapping[str, str]) -> dict[str, str]:
    """The files by name. `lines` are the [databases] lines without caps, by entry. An entry that no longer
    has a line, and is still to be removed, keeps its line from the `stored` files."""
    return {RECORD_FILE: _written(record, server), **_tables(record, lines, stored)}


def _written(record: Record, server: str) -> str:
    pods = {
        uid: {"bound": item.bound, "revision": item.revision, "caps": dict(sorted(item.caps.items()))}
        for uid, item in sorted(record.allotments.items())
    }
    whole = {"epoch": record.epoch, "server": server, "pods": pods}
    return json.dumps(whole, sort_keys=True, separators=(",", ":"))


def _tables(record: Record, lines: Mapping[str, str], stored: Mapping[str, str]) -> dict[str, str]:
    return {
        name: table(item, {**_lines(stored.get(name, "")), **lines})
        for uid, item in record.allotments.items()
        for name in [table_file(uid)]
    }


def _lines(table: str) -> dict[str, str]:
    """The lines of a table without caps, by entry."""
    lines = (text.rpartition(_CAP)[0] for text in table.splitlines() if _CAP in text)
    return {line.partition(" = ")[0]: line for line in lines}


def table(allotment: Allotment, lines: Mapping[str, str]) -> str:
    """A pod's table. Each entry is one pool, since all its clients become the same upstream user. min_pool_size
    0 keeps an unused pod from holding connections."""
    text = [f"{MARKER_SETTING} = caps-{allotment.revision}", "[databases]"]
    text += [
        f"{lines[entry]}{_CAP}{cap} pool_size={cap} min_pool_size=0 reserve_pool_size=0"
        for entry, cap in sorted(allotment.caps.items())
        if entry in lines
    ]
    return "\n".join(text) + "\n"


def parse(stored: Mapping[str, str]) -> tuple[Record, str]:
    """(Record, server) from the files; an empty Record from files that aren't Poolkeeper's."""
    try:
        whole = json.loads(stored[RECORD_FILE])
        pods = {
            str(uid): Allotment(
                int(item["bound"]),
                int(item["revision"]),
                {str(entry): int(cap) for entry, cap in item["caps"].items()},
            )
            for uid, item in whole["pods"].items()
        }
        return Record(int(whole["epoch"]), pods), str(whole["server"])
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return Record(0), ""


def current(stored: Mapping[str, str], record: Record, lines: Mapping[str, str]) -> bool:
    """Whether the stored tables match the Record that is stored with them, and these lines."""
    return all(stored.get(name) == text for name, text in _tables(record, lines, stored).items())


def kept(stored: Mapping[str, str], record: Record, server: str) -> dict[str, str]:
    """The files with the tables as they are stored, if the entries' lines are unknown."""
    tables = {name: stored[name] for name in map(table_file, record.allotments) if name in stored}
    return {RECORD_FILE: _written(record, server), **tables}


def body(namespace: str, name: str, stored: Stored, files: Mapping[str, str]) -> dict[str, Any]:
    """The body to apply to the Secret, with all of the budget's `files`. The API server refuses it if the
    Secret was written since `stored` was read."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": stored.uid,
            "resourceVersion": stored.version,
        },
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in files.items()},
    }


def revision(settings: Mapping[str, str]) -> int:
    """The revision of the table in force, from the settings that the console shows; 0 for none."""
    match = _MARKER.fullmatch(settings.get(MARKER_SETTING, ""))
    return int(match[1]) if match else 0


def reading(settings: Mapping[str, str], databases: Iterable[Row], allotted: Caps | None) -> Reading:
    """A Reading from the settings in force and a later SHOW DATABASES.

    If PgBouncer read a table in part, only the marker may be right: unless the caps are those `allotted` too,
    the revision counts as none. (Entries without a line may be missing.) If `allotted` is None, nothing is
    known to be allotted.
    """
    rows = [row for row in databases if row["max_connections"] != "0"]
    caps = {row["name"]: int(row["max_connections"]) for row in rows}
    held = {row["name"]: int(row["current_connections"]) for row in rows}
    complete = allotted is None or caps.items() <= dict(allotted).items()
    return Reading(revision(settings) if complete else 0, caps, held)
