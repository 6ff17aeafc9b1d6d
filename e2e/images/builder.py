"""Builds a Dockerfile without a Docker engine: debootstrap for Debian, an overlay and chroot per step.

Needs root on Linux. Every layer is kept in the cache under a hash of all that led to it, so a change
rebuilds from the changed step on, and images with the same beginning share it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from e2e.cluster import packages
from e2e.cluster.paths import ROOT, cache_dir
from e2e.cluster.shell import ClusterError, run, run_long, say
from e2e.images.archive import Layer, pack_layer, write_archive
from e2e.images.catalog import Recipe, context_digest, context_files
from e2e.images.dockerfile import Copy, Run, Stage

_UNUSED_DAYS = 7
_TIMEOUT_S = 1200.0
# The slim Debian images leave these out too; licences stay.
_LEFT_OUT = ("doc/*", "man/*", "groff/*", "info/*", "lintian/*", "linda/*", "locale/*")


class ContextChangedError(ClusterError):
    """Somebody edited a file that the image is made from while the image was made."""


@dataclass(frozen=True)
class _Built:
    """A layer in the cache: its key and its directory, with the files in ``fs``."""

    key: str
    directory: Path

    @property
    def files(self) -> str:
        return str(self.directory / "fs")


def build(recipe: Recipe, archive: Path) -> None:
    """Build the image and write its archive."""
    packages.use_system_path()
    packages.ensure(packages.IMAGE_PACKAGES)
    stages: dict[str, list[_Built]] = {}
    chain: list[_Built] = []
    for stage in recipe.stages:
        chain = _build_stage(recipe, stage, stages)
        stages[stage.name] = chain
    layers = [_packed(layer) for layer in chain]
    write_archive(archive, recipe.reference, layers, recipe.stages[-1].image_config())


def remove_unused() -> None:
    """Drop layers that no build has used for a week; building one again takes a minute at most."""
    oldest = time.time() - _UNUSED_DAYS * 86400
    for directory in _layers_dir().iterdir():
        if directory.stat().st_mtime < oldest:
            shutil.rmtree(directory)


def _build_stage(recipe: Recipe, stage: Stage, stages: dict[str, list[_Built]]) -> list[_Built]:
    if stage.suite is not None:
        chain = [_debian(stage.suite)]
    else:
        chain = list(stages[stage.parent]) if stage.parent is not None else []
    for step in stage.steps:
        chain.append(_build_step(recipe, step, chain, stages))
    return chain


def _build_step(
    recipe: Recipe, step: Run | Copy, chain: list[_Built], stages: dict[str, list[_Built]]
) -> _Built:
    """One layer: from the cache or, if what leads to it changed, made in the sandbox."""
    key_parts = [chain[-1].key if chain else "scratch", json.dumps(asdict(step))]
    task: dict[str, Any] = {"lowers": [layer.files for layer in chain]}
    if isinstance(step, Run):
        title = f"{recipe.name}: {_short(step.command)}"
        task |= {"kind": "run", "command": step.command, "env": step.env, "workdir": step.workdir}
    elif step.stage is not None:
        title = f"{recipe.name}: copying {' '.join(step.sources)} from {step.stage}"
        key_parts.append(stages[step.stage][-1].key)
        task |= {"kind": "copy-stage", "sources": step.sources, "destination": step.destination}
        task["stage_lowers"] = [layer.files for layer in stages[step.stage]]
    else:
        title = f"{recipe.name}: copying {' '.join(step.sources)}"
        key_parts.append(context_digest(step.sources))
        task |= {"kind": "copy-context", "files": _destinations(step)}
    layer = _at(key_parts)
    if not _usable(layer):
        _in_sandbox(layer, task, title)
        if isinstance(step, Copy) and step.stage is None and context_digest(step.sources) != key_parts[-1]:
            shutil.rmtree(layer.directory)  # its key promises other contents
            raise ContextChangedError(f"{title}: files changed while they were copied")
    return layer


def _destinations(step: Copy) -> list[tuple[str, str]]:
    """Where in the image each file goes, and the file. Of a directory, its contents are copied."""
    to_directory = step.destination.endswith("/") or len(step.sources) > 1
    base = step.destination.rstrip("/")
    return [
        (f"{base}/{name}" if name else (f"{base}/{path.name}" if to_directory else base), str(path))
        for source in step.sources
        for name, path in context_files(source)
    ]


def _in_sandbox(layer: _Built, task: dict[str, Any], title: str) -> None:
    scratch = _scratch(layer)
    for name in ("fs", "work", "root", "other"):
        (scratch / name).mkdir()
    (scratch / "fs").chmod(0o755)
    paths = {"upper": "fs", "work": "work", "root": "root", "other": "other"}
    task |= {key: str(scratch / name) for key, name in paths.items()}
    step = scratch / "step.json"
    step.write_text(json.dumps(task))
    isolated = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    began = time.monotonic()
    run_long(
        [*isolated, "sh", "-c", 'exec "$0" -m e2e.images.sandbox <"$1"', sys.executable, step],
        what=title,
        log=cache_dir() / "logs" / f"image-{layer.key}.log",
        cwd=ROOT,
        timeout=_TIMEOUT_S,
    )
    say(f"{title} ({time.monotonic() - began:.1f} s)")
    _finish(layer, scratch)


def _debian(suite: str) -> _Built:
    """The smallest Debian of a suite, without documentation, as the base of other layers."""
    layer = _at(["debian", suite, json.dumps(_LEFT_OUT)])
    if _usable(layer):
        return layer
    scratch = _scratch(layer)
    root = scratch / "fs"
    run_long(
        ["debootstrap", "--variant=minbase", suite, root, *mirror()],
        what=f"debootstrap {suite}",
        log=cache_dir() / "logs" / f"debootstrap-{suite}.log",
        timeout=_TIMEOUT_S,
    )
    patterns = [f"/usr/share/{pattern}" for pattern in _LEFT_OUT]
    rules = "".join(f"path-exclude {p}\n" for p in patterns) + "path-include /usr/share/doc/*/copyright\n"
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(rules)
    for path in (p for pattern in _LEFT_OUT for p in list(root.glob(f"usr/share/{pattern}"))):
        if path.is_dir() and not path.is_symlink():
            _strip(path)
        elif path.name != "copyright":
            path.unlink()
    for directory in ("var/lib/apt/lists", "var/cache/apt", "var/log"):
        for path in list((root / directory).rglob("*")):
            if path.is_file():
                path.unlink()
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    for name in ("etc/resolv.conf", "etc/hostname"):  # debootstrap copies the host's
        (root / name).unlink(missing_ok=True)
        (root / name).touch()
    say(f"debootstrap {suite} done")
    _finish(layer, scratch)
    return layer


def _strip(directory: Path) -> None:
    """Empty a directory of documentation, except for copyright files."""
    for parent, directories, files in os.walk(directory, topdown=False):
        for name in files + [d for d in directories if (Path(parent) / d).is_symlink()]:
            if name != "copyright":
                (Path(parent) / name).unlink()
        if not any(Path(parent).iterdir()):
            Path(parent).rmdir()


def mirror() -> list[str]:
    """The Debian mirror that this machine itself uses; without one debootstrap takes its own default."""
    if shutil.which("apt-get") is None:
        return []
    form = "$(ORIGIN) $(LABEL) $(REPO_URI)"
    lines = run(["apt-get", "indextargets", "--format", form, "Identifier: Packages"]).splitlines()
    found = [line.split()[2] for line in lines if line.startswith("Debian Debian ")]
    return found[:1]


def _packed(layer: _Built) -> Layer:
    tar, digest = layer.directory / "layer.tar", layer.directory / "digest"
    if not digest.exists():
        packed = pack_layer(layer.directory / "fs", tar)
        digest.write_text(packed.digest)
    return Layer(tar, digest.read_text())


def _layers_dir() -> Path:
    directory = cache_dir() / "images" / "layers"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _at(parts: list[str]) -> _Built:
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return _Built(key, _layers_dir() / key)


def _usable(layer: _Built) -> bool:
    if not layer.directory.exists():
        return False
    os.utime(layer.directory)  # used today; see remove_unused
    return True


def _scratch(layer: _Built) -> Path:
    scratch = layer.directory.with_name(f"{layer.key}.building")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return scratch


def _finish(layer: _Built, scratch: Path) -> None:
    for name in ("work", "root", "other"):
        shutil.rmtree(scratch / name, ignore_errors=True)
    scratch.rename(layer.directory)


def _short(command: str) -> str:
    words = " ".join(command.split())
    return words if len(words) <= 60 else f"{words[:57]}..."
