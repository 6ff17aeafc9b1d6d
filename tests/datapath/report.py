"""Runs the conformance suite for several engines and servers and writes docs/conformance.md.

python -m tests.datapath.report [--pooler IMAGE]... [--server-version N]... [--server-secrets KIND]
                                [--keep] [--only-write] [option of pytest]...

Every IMAGE is run with every server; without options that is the shipped image with the image's PostgreSQL.
--keep leaves the results of earlier runs in the page, --only-write writes the page from them alone.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

from e2e.cluster.paths import ROOT
from tests.datapath.causes import BY_DESIGN, NO_LOGIN, causes

DOCUMENT = ROOT / "docs" / "conformance.md"
STORE = ROOT / ".conformance"
SHIPPED, IN_IMAGE = "shipped", "image"
PASSED = "passed"
_HEAD = """# Conformance of the data path

The suite in `tests/datapath` compares PgBouncer with PostgreSQL itself: what a client gets directly is what it
must get through a pooler, and through a keeper and a pooler. It runs as root on Linux.

| command | judges |
|---|---|
| `make conformance` | the shipped image, before PostgreSQL of the project's image |
| `make conformance IMAGE=debian:trixie` | PgBouncer as that suite of Debian ships it |
| `make conformance IMAGE=path` | an archive of `docker save`, an unpacked file system, or a program |
| `make conformance SANITIZE=1` | the shipped image's source, built with address and undefined sanitizers |
| `make conformance SERVER=18` | before PostgreSQL 18: this machine's package, else Debian's |
| `make conformance SECRETS=md5` | before a server with MD5 secrets, which doesn't ask for SCRAM |
| `make conformance-table IMAGES="shipped debian:trixie" SERVERS="15 18"` | all of them, and writes this page |

`IMAGE`, `SERVER` and `SECRETS` go together; `KEEP=1` leaves the rows of earlier runs in the table.
PostgreSQL 13, 15, 17 and 18 come out of Debian's bullseye, bookworm, trixie and forky; the packages are
fetched and unpacked in the user's cache. No suite has 14 or 16: install such a package from elsewhere, and
`SERVER` finds it.

| area | tests |
|---|---|
"""
_AREAS = {
    "clients": "node-postgres, postgres.js, pgx, pgjdbc, sqlx and ruby-pg as programs use them",
    "startup_isolation": "start-up parameters are in force for their client alone, or refused by name",
    "session_state": "what a client leaves behind; isolation Strict leaks nothing, Fast exactly a list",
    "liveness": "hostile messages, cancels and disconnects leave every server connection usable",
    "copy_liveness": "COPY data that comes before the server asks for it",
    "failed_logins": "a failed login or a lost server costs no client more than it has to",
    "unfinished_logins": "clients that never log in keep no other client out",
    "truth": "answers are byte by byte the server's, also while the operator acts on the pooler",
    "survival": "known attacks, strange packets, reloads during logins and TLS handshakes",
    "python_clients": "psycopg and asyncpg",
}
_RESULTS = """Passed of all tests. The last column counts failures that no known fault of the release explains;
these were run a second time, alone. The cause `by design`: PgBouncer is meant to do that, and Poolkeeper's
build does better. A row of fewer tests than another is of a run before the others were added."""
_FAULTS = "security.md#known-faults-of-pgbouncer"

Row = dict[str, Any]
"""What conftest.Results writes."""


def run(options: list[str]) -> None:
    """The whole suite, in parallel; its results go into STORE. A failed test is a result.

    A failure that no known fault explains is run again alone: a time-out may be a busy machine's.
    """
    STORE.mkdir(exist_ok=True)
    result = _outcomes(["tests/datapath", "-n", "2", "--dist", "worksteal", *options])
    again = [_node(area, name) for area, name in _unexplained(result)]
    if again:
        second = _outcomes([*again, *options])
        for area, tests in second["areas"].items():
            result["areas"][area].update(tests)
    (STORE / f"{_file_name(result)}.json").write_text(json.dumps(result, indent=1, sort_keys=True))


def _outcomes(options: list[str]) -> Row:
    target = STORE / "run.json"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--results", str(target), *options], cwd=ROOT, check=False
    )
    result: Row = json.loads(target.read_text())
    target.unlink()
    return result


def _node(area: str, name: str) -> str:
    return f"tests/datapath/test_{area}.py::{name}"


def _file_name(result: Row) -> str:
    return re.sub(r"\W+", "-", f"{result['engine']} {result['server']} {result['secrets']}").lower()


def _failed(result: Row) -> Iterator[tuple[str, str, list[str]]]:
    """Area, test and causes of all that didn't pass. Empty causes: nothing explains it."""
    for area, tests in sorted(result["areas"].items()):
        for name, outcome in sorted(tests.items()):
            if outcome != PASSED:
                yield area, name, causes(f"{area}::{name}", result)


def _unexplained(result: Row) -> list[tuple[str, str]]:
    return [(area, name) for area, name, found in _failed(result) if not found]


def rendered(results: list[Row]) -> str:
    """The page: what passed, by engine, server and area; then what failed, by name and with its causes."""
    lines = [_HEAD.rstrip()]
    lines += [f"| {area} | {text} |" for area, text in _AREAS.items()]
    lines += [
        "",
        "## Results",
        "",
        _RESULTS,
        "",
    ]
    columns = ["PgBouncer", "PostgreSQL", *_AREAS, "unexplained"]
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += [_row(result) for result in results]
    for result in results:
        lines += ["", f"## Failed: PgBouncer {_engine(result)}, PostgreSQL {_server(result)}", ""]
        lines += _failures(result)
    return "\n".join(lines) + "\n"


def _row(result: Row) -> str:
    cells = []
    for area in _AREAS:
        outcomes = list(result["areas"].get(area, {}).values())
        cells.append(f"{outcomes.count(PASSED)} of {len(outcomes)}")
    left = len(_unexplained(result))
    return f"| {_engine(result)} | {_server(result)} | " + " | ".join(cells) + f" | {left or 'none'} |"


def _engine(result: Row) -> str:
    return str(result["engine"]).removeprefix("PgBouncer ")


def _server(result: Row) -> str:
    return f"{result['server']}, MD5" if result["secrets"] == "md5" else str(result["server"])


def _failures(result: Row) -> list[str]:
    """A line for each test function and cause, with the parameters that failed."""
    failed = list(_failed(result))
    if not failed:
        return ["None."]
    never = [found for _, name, found in failed if found == [NO_LOGIN]]
    lines = []
    if never:
        lines += [f"{len(never)} tests failed, since no client is served: {_linked([NO_LOGIN])}."]
    groups: dict[tuple[str, str, str], list[str]] = {}
    for area, name, found in failed:
        if found == [NO_LOGIN]:
            continue
        function, _, parameters = name.partition("[")
        groups.setdefault((area, _bare(function), _linked(found)), []).append(parameters.removesuffix("]"))
    if groups:
        lines += ["| area | test | of these parameters | cause |", "|---|---|---|---|"]
    lines += [
        f"| {area} | {test} | {_shortened(parameters)} | {found} |"
        for (area, test, found), parameters in groups.items()
    ]
    return lines


def _linked(found: Iterable[str]) -> str:
    names = [BY_DESIGN if name == BY_DESIGN else f"[{name}]({_FAULTS})" for name in found]
    return " or ".join(names) or "**unexplained**"


def _shortened(parameters: Iterable[str]) -> str:
    """Parameters that differ in one place only become one: `keeper-{copy, mixed}`."""
    # The dash of an option, which follows a blank, is part of a name.
    found = [tuple(frozenset([part]) for part in re.split(r"(?<! )-", whole)) for whole in parameters]
    for place in range(max(map(len, found))):
        merged: dict[tuple[Any, Any], frozenset[str]] = {}
        for parts in found:
            around = (parts[:place], parts[place + 1 :])
            merged[around] = merged.get(around, frozenset()).union(*parts[place : place + 1])
        found = [(*before, values, *after) if values else before for (before, after), values in merged.items()]
    return "; ".join(sorted("-".join(map(_braced, parts)) for parts in found)).replace("|", "\\|")


def _braced(values: Iterable[str]) -> str:
    names = sorted(values)
    return names[0] if len(names) == 1 else f"{{{', '.join(names)}}}"


def _bare(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def _order(result: Row) -> tuple[Any, ...]:
    return (result["engine"], int(result["server"].split(".")[0]), result["secrets"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pooler", action="append", default=[], help=f"{SHIPPED}, or as pytest takes it")
    parser.add_argument("--server-version", action="append", default=[], help=f"{IN_IMAGE}, or a major version")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--only-write", action="store_true")
    chosen, extra = parser.parse_known_args()
    if not chosen.keep and not chosen.only_write:
        for old in STORE.glob("*.json"):
            old.unlink()
    pairs = product(chosen.pooler or [SHIPPED], chosen.server_version or [IN_IMAGE])
    for pooler, server in () if chosen.only_write else pairs:
        options = [] if pooler == SHIPPED else ["--pooler", pooler]
        options += [] if server == IN_IMAGE else ["--server-version", server]
        run([*options, *extra])
    results = [json.loads(path.read_text()) for path in STORE.glob("*.json")]
    DOCUMENT.write_text(rendered(sorted(results, key=_order)))


if __name__ == "__main__":
    main()
