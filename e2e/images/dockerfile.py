"""Reads the part of the Dockerfile language that our images use, and refuses the rest by line.

Accepted: FROM (``debian:SUITE-slim``, ``scratch`` or an earlier stage), RUN and COPY in their plain forms,
ARG with a default, ENV, WORKDIR, USER, LABEL, EXPOSE, STOPSIGNAL, and ENTRYPOINT and CMD in JSON form.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

_METADATA = ("ENV", "WORKDIR", "USER", "LABEL", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD")
_DEBIAN = re.compile(r"debian:([a-z]+)-slim")


class DockerfileError(ValueError):
    """The file uses something that the build without a Docker engine does not know."""


@dataclass(frozen=True)
class Run:
    """A shell command, with the environment and directory it runs in."""

    command: str
    env: tuple[str, ...]
    workdir: str


@dataclass(frozen=True)
class Copy:
    """Files from the build context or, with ``stage``, from an earlier stage."""

    sources: tuple[str, ...]
    destination: str
    stage: str | None


@dataclass(frozen=True)
class Stage:
    """One FROM: what it starts from, its steps in order, and the configuration it ends with."""

    name: str
    suite: str | None  # the Debian suite it starts from; None: empty, or `parent`
    parent: str | None  # the earlier stage it starts from
    steps: tuple[Run | Copy, ...]
    env: tuple[str, ...]
    workdir: str
    config: tuple[tuple[str, Any], ...]

    def image_config(self) -> dict[str, Any]:
        """The `config` object of an image made from this stage."""
        config = dict(self.config)
        if self.env:
            config["Env"] = list(self.env)
        if self.workdir != "/":
            config["WorkingDir"] = self.workdir
        return config


def parse(text: str, arguments: Mapping[str, str] | None = None) -> list[Stage]:
    """Parse a Dockerfile into its stages; the last one is the image. `arguments` replace defaults of ARG.

    Raises DockerfileError.
    """
    stages: list[Stage] = []
    for line, keyword, value in _instructions(text):
        try:
            if keyword == "FROM":
                stages.append(_from(value, stages))
            elif not stages:
                raise DockerfileError("comes before any FROM")
            else:
                if keyword == "ARG":
                    value = _argument(value, arguments or {})
                stages[-1] = _apply(stages[-1], keyword, value, [stage.name for stage in stages[:-1]])
        except DockerfileError as error:
            raise DockerfileError(f"line {line}: {keyword} {error}") from None
    if not stages:
        raise DockerfileError("there is no FROM")
    return stages


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, keyword and value of each instruction, continued lines joined, comments left out."""
    pending: list[str] = []
    first = 0
    for number, raw in enumerate(text.splitlines(), start=1):
        if raw.lstrip().startswith("#") or (not pending and not raw.strip()):
            continue
        if not pending:
            first = number
        pending.append(raw.strip().removesuffix("\\").rstrip())
        if raw.rstrip().endswith("\\"):
            continue
        keyword, _, value = " ".join(pending).partition(" ")
        yield first, keyword.upper(), value.strip()
        pending = []
    if pending:
        raise DockerfileError(f"line {first}: the last instruction ends with a backslash")


def _from(value: str, stages: list[Stage]) -> Stage:
    words = value.split()
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
        raise DockerfileError(f"{value!r} is not `IMAGE [AS NAME]`")
    base, name = words[0], words[-1] if len(words) == 3 else ""
    for stage in stages:
        if stage.name == base:
            return replace(stage, name=name, parent=base, suite=None, steps=())
    debian = _DEBIAN.fullmatch(base)
    if debian is None and base != "scratch":
        raise DockerfileError(f"{base!r} is neither debian:SUITE-slim nor scratch nor an earlier stage")
    return Stage(name, debian[1] if debian else None, None, (), (), "/", ())


def _apply(stage: Stage, keyword: str, value: str, earlier: list[str]) -> Stage:
    config = dict(stage.config)
    if keyword == "RUN":
        if value.startswith(("[", "-", "<")):
            raise DockerfileError("takes a plain shell command here")
        if "User" in config:
            raise DockerfileError("after USER is not supported: move it before")
        return replace(stage, steps=(*stage.steps, Run(value, stage.env, stage.workdir)))
    if keyword == "COPY":
        return replace(stage, steps=(*stage.steps, _copy(value, stage, earlier)))
    if keyword not in ("ARG", *_METADATA):
        raise DockerfileError(f"is not supported; use RUN, COPY or one of {', '.join(_METADATA)}")
    if keyword in ("ARG", "ENV"):
        names = {pair.partition("=")[0] for pair in _pairs(value)}
        kept = (pair for pair in stage.env if pair.partition("=")[0] not in names)
        return replace(stage, env=(*kept, *_pairs(value)))
    if keyword == "WORKDIR":
        if not value.startswith("/"):
            raise DockerfileError("takes an absolute path here")
        return replace(stage, workdir=value)
    if keyword in ("ENTRYPOINT", "CMD"):
        config[keyword.capitalize()] = _words(value)
    elif keyword == "LABEL":
        config["Labels"] = {**config.get("Labels", {}), **dict(p.split("=", 1) for p in _pairs(value))}
    elif keyword == "EXPOSE":
        config["ExposedPorts"] = {f"{port}/tcp": {} for port in value.split()}
    else:
        config["User" if keyword == "USER" else "StopSignal"] = value
    return replace(stage, config=tuple(config.items()))


def _argument(value: str, arguments: Mapping[str, str]) -> str:
    """NAME=VALUE of an ARG."""
    name, equals, default = value.partition("=")
    if not equals:
        raise DockerfileError(f"{value!r} has no default")
    return f"{name}={arguments.get(name, default)}"


def _copy(value: str, stage: Stage, earlier: list[str]) -> Copy:
    words = value.split()
    source_stage = None
    while words and words[0].startswith("--"):
        option, _, argument = words.pop(0).partition("=")
        if option != "--from" or argument not in earlier:
            raise DockerfileError(f"{option}={argument} is not `--from=` an earlier stage")
        source_stage = argument
    if len(words) < 2 or any("*" in word or word.startswith(("[", "<")) for word in words):
        raise DockerfileError("takes plain names: one or more sources, then the destination")
    destination = words[-1] if words[-1].startswith("/") else f"{stage.workdir.rstrip('/')}/{words[-1]}"
    return Copy(tuple(words[:-1]), destination, source_stage)


def _pairs(value: str) -> list[str]:
    pairs = shlex.split(value)
    if not pairs or any("=" not in pair for pair in pairs):
        raise DockerfileError(f"{value!r} is not NAME=VALUE ...")
    return pairs


def _words(value: str) -> list[str]:
    try:
        words = json.loads(value)
    except json.JSONDecodeError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DockerfileError("takes the JSON form here, so that no shell stands before the program")
    return words
