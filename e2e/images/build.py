"""Makes sure that images are built: with the Docker engine where one answers, else by ``builder``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.adapters import docker_engine_answers
from e2e.cluster.paths import ROOT, cache_dir, lock
from e2e.cluster.shell import ClusterError, run, run_long, say
from e2e.images import builder
from e2e.images.catalog import NAMES, Recipe, recipe

_ATTEMPTS = 5


@dataclass(frozen=True)
class Built:
    """An image's reference and the archive that holds it."""

    reference: str
    archive: Path


def ensure(names: Sequence[str] = ()) -> list[Built]:
    """Build what is missing of ``names`` (none named: every image); quick when nothing changed."""
    with lock("images"):
        return [_ensure(name) for name in names or NAMES]


def archive_path(one: Recipe) -> Path:
    """Where the archive of this recipe's image is, or will be."""
    return cache_dir() / "images" / f"{one.name}-{one.reference.rpartition(':')[2]}.tar"


def docker_argv(one: Recipe, archive: Path) -> list[list[str]]:
    """What a Docker engine is asked to do for the same result."""
    dockerfile = str(one.dockerfile.relative_to(ROOT))
    arguments = [f"--build-arg={name}={value}" for name, value in one.arguments]
    return [
        ["docker", "build", *arguments, "--file", dockerfile, "--tag", one.reference, "."],
        ["docker", "save", "--output", str(archive), one.reference],
    ]


def _ensure(name: str) -> Built:
    """One image, built again from the start should the sources change meanwhile."""
    for _ in range(_ATTEMPTS):
        one = recipe(name)
        archive = archive_path(one)
        if archive.exists():
            return Built(one.reference, archive)
        fresh = archive.with_suffix(".building")
        try:
            _build(one, fresh)
        except builder.ContextChangedError:
            continue
        if recipe(name).reference == one.reference:
            for older in archive.parent.glob(f"{name}-r*.tar"):
                older.unlink()
            fresh.replace(archive)
            return Built(one.reference, archive)
    raise ClusterError(f"the sources of {name} changed during {_ATTEMPTS} builds; build again once they rest")


def _build(one: Recipe, archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    say(f"building {one.reference}")
    if docker_engine_answers():
        build, save = docker_argv(one, archive)
        log = cache_dir() / "logs" / f"docker-{one.name}.log"
        run_long(build, what=f"docker build {one.name}", log=log, cwd=ROOT)
        run(save, timeout=300)
    elif sys.platform == "linux" and os.geteuid() == 0:
        builder.build(one, archive)
        builder.remove_unused()
    else:
        raise ClusterError(
            "images are built by a Docker engine, or by root on Linux, and here is neither: start one"
        )
    say(f"built {one.reference} ({archive.stat().st_size / 1e6:.0f} MB, {time.monotonic() - began:.1f} s)")
