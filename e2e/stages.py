"""``python -m e2e.stages NAME COMMAND...``: a stage of `make test`, whose time is recorded.

The record, .bench/stages.json, has the seconds of each stage that ended well, in the order in which they ran.
The first stage begins it anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from e2e.cluster.paths import ROOT

FIRST = "lint"
NAME = "MAKE_TEST_STAGE"
"""The environment variable that tells a stage's command which one it is."""
RECORD = ROOT / ".bench" / "stages.json"


def read() -> dict[str, float]:
    """Seconds by stage; empty where no stage has run."""
    try:
        found: dict[str, float] = json.loads(RECORD.read_text())
    except FileNotFoundError:
        return {}
    return found


def run(name: str, command: Sequence[str]) -> int:
    """Run the command to its end and give its exit code. Its time is recorded if that is 0."""
    began = time.monotonic()
    code = subprocess.call(command, env=os.environ | {NAME: name})
    if code == 0:
        earlier = {} if name == FIRST else read()
        earlier.pop(name, None)
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(earlier | {name: round(time.monotonic() - began, 3)}, indent=1) + "\n")
    return code


def summary() -> str:
    """The record as one line, such as `lint 64 s, install 20 s; together 84 s`."""
    found = read()
    each = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found.items())
    return f"{each}; together {sum(found.values()):.0f} s"


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
