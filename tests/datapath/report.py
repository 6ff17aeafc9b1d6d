"""Runs the conformance suite for several engines and servers and writes the table in docs/conformance.md.

python -m tests.datapath.report [--pooler PATH]... [--server-version N]... [--keep]

Without options: the shipped image on the image's PostgreSQL. --keep leaves the results that earlier runs came
to in the table, and adds those of these.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from typing import Any

from e2e.cluster.paths import ROOT

DOCUMENT = ROOT / "docs" / "conformance.md"
STORE = ROOT / ".conformance"
_HEAD = """# Conformance of the data path

The suite in `tests/datapath` compares PgBouncer with PostgreSQL itself: what a client gets directly is what it
must get through a pooler, and through a keeper and a pooler. `make conformance` runs it on the shipped image;
`make conformance IMAGE=path SERVER=15` runs it on another one: an archive of `docker save`, an unpacked file
system, or a pgbouncer program. `make conformance-table` writes this page.

| area | tests |
|---|---|
"""
_AREAS = {
    "startup_isolation": "start-up parameters are in force for their client alone, or refused by name",
    "session_state": "what a client leaves behind; isolation Strict leaks nothing, Fast exactly a list",
    "liveness": "hostile messages, cancels and disconnects leave every server connection usable",
    "copy_liveness": "COPY data that comes before the server asks for it",
    "truth": "answers are byte by byte the server's, also while the operator acts on the pooler",
    "survival": "known attacks, strange packets, reloads during logins and TLS handshakes",
    "python_clients": "psycopg and asyncpg",
}


def run(pooler: str | None, server: str | None, extra: list[str]) -> None:
    """One run of the whole suite, in parallel; its results go into STORE. A failed test is a result."""
    STORE.mkdir(exist_ok=True)
    target = STORE / "run.json"
    options = ["--results", str(target)]
    options += ["--pooler", pooler] if pooler else []
    options += ["--server-version", server] if server else []
    command = [sys.executable, "-m", "pytest", "tests/datapath", "-q", "-n", "2", "--dist", "worksteal"]
    subprocess.run([*command, *options, *extra], cwd=ROOT, check=False)
    result = json.loads(target.read_text())
    name = re.sub(r"\W+", "-", f"{result['engine']} {result['server']}").lower()
    target.rename(STORE / f"{name}.json")


def rendered(results: list[dict[str, Any]]) -> str:
    """The page: what passed, by engine, server and area, and the names of what failed."""
    lines = [_HEAD.rstrip()]
    lines += [f"| {area} | {text} |" for area, text in _AREAS.items()]
    areas = sorted({area for result in results for area in result["areas"]})
    lines += ["", "## Results", "", "Passed of all tests.", ""]
    lines += ["| PgBouncer | PostgreSQL | " + " | ".join(areas) + " |", "|---" * (len(areas) + 2) + "|"]
    for result in results:
        cells = []
        for area in areas:
            outcomes = list(result["areas"].get(area, {}).values())
            cells.append(f"{outcomes.count('passed')} of {len(outcomes)}")
        lines.append(f"| {result['engine']} | {result['server']} | " + " | ".join(cells) + " |")
    for result in results:
        failed = [
            f"- `{area}`: {_bare(name)}"
            for area, tests in sorted(result["areas"].items())
            for name, outcome in sorted(tests.items())
            if outcome != "passed"
        ]
        lines += ["", f"## Failed: {result['engine']}, PostgreSQL {result['server']}", ""]
        lines += failed or ["None."]
    return "\n".join(lines) + "\n"


def _bare(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pooler", action="append", default=[])
    parser.add_argument("--server-version", action="append", default=[])
    parser.add_argument("--keep", action="store_true")
    chosen, extra = parser.parse_known_args()
    if not chosen.keep:
        for old in STORE.glob("*.json"):
            old.unlink()
    for pooler in chosen.pooler or [None]:
        for server in chosen.server_version or [None]:
            run(pooler or None, server or None, extra)
    results = [json.loads(path.read_text()) for path in sorted(STORE.glob("*.json"))]
    DOCUMENT.write_text(rendered(results))


if __name__ == "__main__":
    main()
