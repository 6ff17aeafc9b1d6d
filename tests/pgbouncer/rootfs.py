"""The unpacked file systems of the project's images: the tests run what the cluster runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

from e2e.cluster.paths import cache_dir, lock
from e2e.images.build import ensure

_OPAQUE = ".wh..wh..opq"


_substitutes: dict[str, Path] = {}


def substitute(image: str, root: Path) -> None:
    """From here on rootfs(image) is `root`: the tests run another build, or a program of this machine."""
    _substitutes[image] = root
    rootfs.cache_clear()


def unpacked(source: Path) -> Path:
    """The file system of a foreign image: a directory is one already, an archive is what `docker save` writes,
    anything else is a pgbouncer program of this machine, which gets a file system with its libraries."""
    if source.is_dir():
        return source
    name = f"foreign-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    root = cache_dir() / "rootfs" / name
    with lock("rootfs"):
        if not root.exists():
            root.parent.mkdir(exist_ok=True)
            if tarfile.is_tarfile(source):
                _unpack(source, root)
            else:
                _collect(source, root)
    return root


def _collect(program: Path, root: Path) -> None:
    linked = subprocess.run(["ldd", str(program)], check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        fresh = Path(scratch, "root")
        for directory in ("usr/bin", "etc", "tmp", "proc"):
            (fresh / directory).mkdir(parents=True)
        fresh.chmod(0o755)
        (fresh / "etc/passwd").write_text("pgbouncer:x:65532:65532::/:/usr/sbin/nologin\n")
        shutil.copy(program, fresh / "usr/bin/pgbouncer")
        for library in re.findall(r"(/\S+) \(0x", linked):
            (fresh / library[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, fresh / library[1:])
        fresh.rename(root)


@cache
def rootfs(image: str) -> Path:
    """The file system of one image, built and unpacked (into the user's cache) if need be. Needs root."""
    if image in _substitutes:
        return _substitutes[image]
    [built] = ensure([image])
    root = cache_dir() / "rootfs" / built.archive.stem
    with lock("rootfs"):
        if not root.exists():
            root.parent.mkdir(exist_ok=True)
            for older in root.parent.glob(f"{image}-r*"):
                shutil.rmtree(older)
            _unpack(built.archive, root)
    return root


def _unpack(archive: Path, root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        fresh = Path(scratch, "root")
        fresh.mkdir()
        fresh.chmod(0o755)
        with tarfile.open(archive) as image:
            manifest = image.extractfile("manifest.json")
            assert manifest is not None
            for layer in json.load(manifest)[0]["Layers"]:
                _add_layer(image, layer, fresh)
        fresh.rename(root)


def _add_layer(image: tarfile.TarFile, name: str, root: Path) -> None:
    layer = image.extractfile(name)
    assert layer is not None
    with tarfile.open(fileobj=layer) as entries:
        # A directory that the layer replaces begins empty; a new one is marked like that as well.
        for opaque in (entry for entry in entries.getnames() if entry.endswith(f"/{_OPAQUE}")):
            shutil.rmtree(root / opaque.removesuffix(_OPAQUE), ignore_errors=True)
    layer.seek(0)
    with subprocess.Popen(
        ["tar", "--extract", "--numeric-owner", "--preserve-permissions", "--directory", str(root)],
        stdin=subprocess.PIPE,
    ) as tar:
        assert tar.stdin is not None
        shutil.copyfileobj(layer, tar.stdin)
    if tar.returncode != 0:
        raise RuntimeError(f"a layer of {image.name!r} cannot be unpacked")
    for directory, _, files in os.walk(root):
        for marker in (Path(directory, file) for file in files if file.startswith(".wh.")):
            _remove(marker)


def _remove(marker: Path) -> None:
    """Carry out a whiteout: the layer deleted what is named after the prefix."""
    if marker.name != _OPAQUE:
        hidden = marker.with_name(marker.name.removeprefix(".wh."))
        if hidden.is_dir() and not hidden.is_symlink():
            shutil.rmtree(hidden)
        else:
            hidden.unlink(missing_ok=True)
    marker.unlink()
