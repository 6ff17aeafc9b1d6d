"""Real client libraries of other languages as programs: how each is built, and how a scenario is run with one.

A program reads one job, a JSON document with the scenario's name and URLs, from its standard input, and prints
one report. Builds go to the user's cache, named after their sources; npm, Go modules, Maven Central, crates.io
and Debian are where the libraries come from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from e2e.cluster import packages
from e2e.cluster.paths import cache_dir, lock

SOURCES = Path(__file__).parent
_BUILD_SECONDS = 480


class Wedged(Exception):
    """A program did not end in time."""


@dataclass(frozen=True)
class Report:
    """What a program saw: `wrong` answers, unexpected `errors` by text, and a `detail` per connection, which
    does not depend on what the program is connected to."""

    statements: int
    wrong: int
    errors: Mapping[str, int] = field(default_factory=dict)
    detail: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Address:
    """A database as a client finds it."""

    host: str
    port: int
    user: str
    password: str
    database: str


@dataclass(frozen=True)
class Program:
    """`build` turns a directory of sources into a program, in place; `command` runs it there.

    A `slow` build is for the whole conformance suite alone. `url` makes an address and parameters of libpq's
    kind into what the library reads, `schema` asks for a search path as its users do.
    """

    name: str
    sources: str
    build: Callable[[Path], None]
    command: tuple[str, ...]
    url: Callable[[Address, Mapping[str, str]], str]
    schema: Callable[[str], Mapping[str, str]]
    slow: bool = False

    def run(self, job: Mapping[str, Any], seconds: float, within: Sequence[str] = ()) -> Report:
        """As asked(); `within` is a command line that runs the program elsewhere."""
        directory = built(self.sources, self.build)
        return asked(f"{self.name}: {job['scenario']}", [*within, *self.command], directory, job, seconds)


def asked(what: str, command: Sequence[str], directory: Path, job: Mapping[str, Any], seconds: float) -> Report:
    """Run a program with this job. Raises Wedged past so many seconds, and RuntimeError with the program's own
    words if it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as late:
        raise Wedged(f"{what} did not end in {seconds} s") from late
    if done.returncode != 0:
        raise RuntimeError(f"{what} failed:\n{done.stderr[-4000:]}")
    return Report(**json.loads(done.stdout))


def built(sources: str, build: Callable[[Path], None]) -> Path:
    """The directory of a program that is ready to run."""
    source = SOURCES / sources
    digest = hashlib.sha256()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(source)}\0".encode() + path.read_bytes() + b"\0")
    target = cache_dir() / "conformance" / f"{sources}-{digest.hexdigest()[:12]}"
    with lock(f"conformance-{sources}"):
        if not target.exists():
            building = target.with_name(f"{target.name}.building")
            shutil.rmtree(building, ignore_errors=True)
            shutil.copytree(source, building)
            build(building)
            building.rename(target)
    return target


def _make(directory: Path, *command: str, **environment: str) -> None:
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_BUILD_SECONDS,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")


def _node(directory: Path) -> None:
    _make(directory, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")


def _go(directory: Path) -> None:
    _make(directory, "go", "build", "-o", "program", ".", CGO_ENABLED="0")


def _java(directory: Path) -> None:
    _make(
        directory,
        *("mvn", "--batch-mode", "--quiet", "dependency:copy-dependencies"),
        *("-DoutputDirectory=lib", "-DincludeScope=runtime"),
    )
    sources = [str(path.relative_to(directory)) for path in sorted(directory.glob("*.java"))]
    _make(directory, "javac", "-encoding", "UTF-8", "-cp", "lib/*", "-d", "classes", *sources)


def _rust(directory: Path) -> None:
    _make(directory, "cargo", "build", "--release", "--locked", CARGO_TARGET_DIR=str(directory / "target"))


def _ruby(directory: Path) -> None:
    packages.ensure({"/usr/share/doc/ruby-pg": "ruby-pg"})


def uri(address: Address, parameters: Mapping[str, str]) -> str:
    """As libpq reads it. Node's libraries read sslmode in ways of their own, hence only what is asked for."""
    user, password = quote(address.user, safe=""), quote(address.password, safe="")
    login = f"{user}:{password}" if password else user
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
    return f"postgresql://{login}@{address.host}:{address.port}/{address.database}" + (query and f"?{query}")


def _plain(address: Address, parameters: Mapping[str, str]) -> str:
    return uri(address, {"sslmode": "disable", **parameters})


def _jdbc(address: Address, parameters: Mapping[str, str]) -> str:
    login = {"user": address.user, "password": address.password, "sslmode": "disable"}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in {**login, **parameters}.items())
    return f"jdbc:postgresql://{address.host}:{address.port}/{address.database}?{query}"


def _search_path(name: str) -> dict[str, str]:
    return {"options": f"-c search_path={name}"}


def _current_schema(name: str) -> dict[str, str]:
    return {"currentSchema": name}


PROGRAMS: Mapping[str, Program] = {
    program.name: program
    for program in (
        Program("node-postgres", "node", _node, ("node", "main.js", "pg"), uri, _search_path),
        Program("postgres.js", "node", _node, ("node", "main.js", "postgres"), uri, _search_path),
        Program("pgx", "go", _go, ("./program",), _plain, _search_path),
        Program(
            "pgjdbc", "java", _java, ("java", "-cp", "classes:lib/*", "Main"), _jdbc, _current_schema, slow=True
        ),
        Program("sqlx", "rust", _rust, ("target/release/conformance",), _plain, _search_path, slow=True),
        Program("ruby-pg", "ruby", _ruby, ("ruby", "main.rb"), _plain, _search_path, slow=True),
    )
}
