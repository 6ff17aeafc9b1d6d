"""node-postgres' own URL parser, as one node process that answers line by line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).parent / "node"


def modules() -> Path:
    """A directory outside the checkout with the packages of package-lock.json, installed once per lock file."""
    digest = hashlib.sha256()
    for name in ("package.json", "package-lock.json"):
        digest.update((SOURCES / name).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = cache / "poolkeeper" / f"npm-{digest.hexdigest()[:12]}"
    if not target.exists():
        building = target.with_name(f"{target.name}.{os.getpid()}")
        building.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCES / name, building)
        install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(install, cwd=building, check=True, timeout=240)
        building.rename(target)
    return target


class NodeParser:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def parse(self, url: str) -> dict[str, str | None]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(url) + "\n")
        self._process.stdin.flush()
        answer: dict[str, str | None] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def node_parser() -> Iterator[NodeParser]:
    environment = {**os.environ, "NODE_PATH": str(modules() / "node_modules")}
    command = ["node", str(SOURCES / "parse.js")]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield NodeParser(process)
        finally:
            process.kill()
