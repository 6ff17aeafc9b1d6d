"""Which images there are, what each is made from, and the reference that its recipe gives it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.paths import ROOT
from e2e.cluster.shell import ClusterError
from e2e.images.dockerfile import Copy, Stage, parse

NAMES = ("operator", "pgbouncer", "postgres", "demo-app", "clients", "nextjs-app")
SANITIZED = "pgbouncer-sanitized"
"""PgBouncer with checks of its memory and against undefined behaviour: for tests, and built on request only."""
_VARIANTS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    SANITIZED: ("pgbouncer", {"SANITIZE": "address,undefined"}),
}
# Made by tools that run on the sources, and no part of them.
_IGNORED = {"__pycache__", "node_modules", ".next", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


@dataclass(frozen=True)
class Recipe:
    """An image: its Dockerfile, the stages in it, its reference, and values of the Dockerfile's ARGs. The build
    context is the repository."""

    name: str
    dockerfile: Path
    stages: tuple[Stage, ...]
    reference: str
    arguments: tuple[tuple[str, str], ...] = ()


def recipe(name: str) -> Recipe:
    """The recipe of the image ``name``, as this checkout is now. Raises ClusterError for an unknown one.

    The reference's tag is a hash of everything that the Dockerfile reads from the checkout. The letter in
    front keeps YAML from taking a tag for a number.
    """
    known = (*NAMES, *_VARIANTS)
    if name not in known:
        raise ClusterError(f"there is no image {name!r}; the images are {', '.join(known)}")
    directory, arguments = _VARIANTS.get(name, (name, {}))
    dockerfile = ROOT / "e2e" / "images" / directory / "Dockerfile"
    text = dockerfile.read_text()
    stages = tuple(parse(text, arguments))
    digest = hashlib.sha256("".join([text, *sorted(arguments.values())]).encode())
    for step in (step for stage in stages for step in stage.steps):
        if isinstance(step, Copy) and step.stage is None:
            digest.update(context_digest(step.sources).encode())
    reference = f"poolkeeper/{name}:r{digest.hexdigest()[:12]}"
    return Recipe(name, dockerfile, stages, reference, tuple(arguments.items()))


def context_files(source: str) -> Iterator[tuple[str, Path]]:
    """The files below a COPY source, with their names relative to it ('' for a source that is a file)."""
    path = ROOT / source
    if path.is_file():
        yield "", path
    elif path.is_dir():
        for entry in sorted(path.rglob("*")):
            relative = entry.relative_to(path)
            if entry.is_file() and not _IGNORED.intersection(relative.parts):
                yield str(relative), entry
    else:
        raise ClusterError(f"{path} is missing, and an image's Dockerfile copies it")


def context_digest(sources: tuple[str, ...]) -> str:
    """A hash of names, contents and executable bits of everything that a COPY takes from the context."""
    digest = hashlib.sha256()
    for source in sources:
        for name, path in context_files(source):
            mode = "x" if path.stat().st_mode & 0o100 else "-"
            digest.update(f"{source}\0{name}\0{mode}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
