"""Named faults of PgBouncer's releases that endanger a PooledDatabase, and which of them a process has.

Only faults that the operator's configuration exposes are listed. CVE-2025-12819 needs an auth_query,
CVE-2026-6667 a console user without admin rights, and CVE-2026-107348 a max_packet_size that
spec.pooler.parameters refuses: no pooler and no keeper has any of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from poolkeeper.engine.pgbouncer_version import Release, Version

NEWEST_TRIED: Release = (1, 26, 1)
"""The newest release that was checked for faults."""
_FIRST: Release = (0, 0, 0)


@dataclass(frozen=True)
class Fault:
    """One fault of the releases from `since` to `until`, both included.

    `servers_below` (PostgreSQL's version number, such as 180000), `server_tls` (values of server_tls_sslmode)
    and `options_parsed` (ignore_startup_parameters has names, without `options`) limit where it shows.
    `backported`: a distribution may fix it under the same version. Poolkeeper's builds before `mended_in` have
    the fault.
    """

    name: str
    since: Release
    until: Release
    effect: str
    servers_below: int | None = None
    server_tls: tuple[str, ...] | None = None
    options_parsed: bool = False
    backported: bool = False
    mended_in: int = 1


@dataclass(frozen=True)
class Circumstances:
    """What else decides on a process's faults. `server_version` is PostgreSQL's number, None if unknown."""

    server_version: int | None
    server_tls: str
    ignored_parameters: frozenset[str]


TABLE = (
    Fault(
        "forced-user-scram",
        _FIRST,
        (1, 25, 2),
        "logins to a server that asks for SCRAM fail",
    ),
    Fault(
        "search-path-mixed",
        (1, 26, 0),
        NEWEST_TRIED,
        "clients that set a search_path get answers from another client's schema",
        servers_below=180000,
    ),
    Fault(
        "changed-columns",
        (1, 21, 0),
        NEWEST_TRIED,
        "after a schema change, clients take one column of a prepared statement for another",
        mended_in=2,
    ),
    Fault(
        "startup-parameters-lost",
        (1, 20, 0),
        NEWEST_TRIED,
        "timeouts (before 1.26 also search_path) of start-up messages are lost or reach other clients",
    ),
    Fault(
        "partial-message-mixed",
        _FIRST,
        NEWEST_TRIED,
        "a client that stops in the middle of a message gets another client's query into its own",
    ),
    Fault(
        "late-copy-messages",
        _FIRST,
        (1, 25, 2),
        "a COPY that fails while its data is sent blocks its server connection, or mixes answers",
    ),
    Fault(
        "copy-answers-mixed",
        _FIRST,
        NEWEST_TRIED,
        "what a client sends behind bad data of a COPY may be answered to another client",
        mended_in=4,
    ),
    Fault(
        "copy-early-data-wedge",
        (1, 26, 0),
        NEWEST_TRIED,
        "a COPY whose data comes early (pgx CopyFrom) blocks its server connection for good",
    ),
    Fault(
        "CVE-2026-107350",
        (1, 17, 0),
        (1, 26, 0),
        "one valid password logs in as any user with a SCRAM secret",
        backported=True,
    ),
    Fault(
        "CVE-2026-107349",
        (1, 20, 0),
        (1, 26, 0),
        "a client without a login stops the process from serving",
        options_parsed=True,
        backported=True,
    ),
    Fault(
        "CVE-2026-6664",
        _FIRST,
        (1, 25, 1),
        "a client without a login crashes the process",
        backported=True,
    ),
    Fault(
        "CVE-2026-6665",
        _FIRST,
        (1, 25, 1),
        "a hostile server overflows the stack of the process",
        backported=True,
    ),
    Fault(
        "CVE-2026-6666",
        _FIRST,
        (1, 25, 1),
        "a server's error without SQLSTATE crashes the process",
        backported=True,
    ),
    Fault(
        "reload-crash-login",
        _FIRST,
        NEWEST_TRIED,
        "a RELOAD that removes an entry during a login there crashes the process",
    ),
    Fault(
        "reload-crash-tls",
        _FIRST,
        NEWEST_TRIED,
        "a RELOAD during a TLS handshake with the server crashes the process",
        server_tls=("require", "verify-ca"),
    ),
    Fault(
        "reload-loses-rules",
        _FIRST,
        NEWEST_TRIED,
        "a RELOAD while the pod's files are swapped may refuse every login until the next one",
        mended_in=2,
    ),
    Fault(
        "unfinished-logins",
        _FIRST,
        NEWEST_TRIED,
        "clients without a password take the slots of those that have one",
        mended_in=3,
    ),
    Fault(
        "open-files",
        _FIRST,
        NEWEST_TRIED,
        "clients beyond the container's soft limit of open files are not accepted",
        mended_in=4,
    ),
    Fault(
        "prepared-in-doubt",
        (1, 21, 0),
        NEWEST_TRIED,
        "pipelined statements behind one that fails count as prepared and fail too",
    ),
    Fault(
        "answers-out-of-order",
        (1, 21, 0),
        NEWEST_TRIED,
        "pipelines of many prepared statements get their answers out of order",
    ),
    Fault(
        "refused-statement-kept",
        (1, 21, 0),
        NEWEST_TRIED,
        "preparing a refused statement again under its name ends the connection",
    ),
    Fault(
        "stale-plans",
        (1, 21, 0),
        NEWEST_TRIED,
        "after a schema change, prepared statements fail until the server connection ends",
    ),
    Fault(
        "cancels-lost",
        _FIRST,
        NEWEST_TRIED,
        "cancels of queries that wait, or run in a pause or a shutdown, are lost",
        mended_in=2,
    ),
    Fault(
        "flush-holds-server",
        _FIRST,
        NEWEST_TRIED,
        "a Flush behind a Sync holds a server connection while its client is idle",
        mended_in=2,
    ),
    Fault(
        "lost-server-two-errors",
        _FIRST,
        NEWEST_TRIED,
        "a statement whose server connection is lost gets two errors",
    ),
    Fault(
        "cached-login-error",
        _FIRST,
        NEWEST_TRIED,
        "a failed login to the server fails clients that could have waited",
    ),
)
"""Gravest first."""

KNOWN: Mapping[str, Fault] = MappingProxyType({fault.name: fault for fault in TABLE})


def applying(version: Version, circumstances: Circumstances) -> tuple[Fault, ...]:
    """The faults that a process of this version has in these circumstances. While the server's version is
    unknown, a fault that depends on it counts too: see uncertain()."""
    return tuple(
        fault
        for fault in TABLE
        if fault.since <= version.release <= fault.until
        and version.build < fault.mended_in
        and _exposed(fault, circumstances)
    )


def uncertain(fault: Fault, circumstances: Circumstances) -> bool:
    """Whether the fault depends on the server's version, and that is unknown."""
    return fault.servers_below is not None and circumstances.server_version is None


def _exposed(fault: Fault, circumstances: Circumstances) -> bool:
    server, ignored = circumstances.server_version, circumstances.ignored_parameters
    if fault.servers_below is not None and server is not None and server >= fault.servers_below:
        return False
    if fault.server_tls is not None and circumstances.server_tls not in fault.server_tls:
        return False
    return not fault.options_parsed or (bool(ignored) and "options" not in ignored)
