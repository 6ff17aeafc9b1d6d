"""Layers and image archives in the format of ``docker save``, which every container runtime imports."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

_OPAQUE = "trusted.overlay.opaque"


@dataclass(frozen=True)
class Layer:
    """A layer's tar file and the SHA-256 of its bytes, in hex."""

    tar: Path
    digest: str


def pack_layer(directory: Path, tar: Path) -> Layer:
    """Write the overlay's upper ``directory`` as a layer: contents, and whiteouts for what was deleted."""
    with tar.open("wb") as raw:
        output = _Digesting(raw)
        with tarfile.open(fileobj=cast(IO[bytes], output), mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, path in _walk(directory):
                _add(archive, name, path)
        return Layer(tar, output.digest.hexdigest())


def write_archive(path: Path, reference: str, layers: Sequence[Layer], config: Mapping[str, Any]) -> None:
    """Write an image archive; ``config`` is the image's `config` object (Entrypoint, Env, User ...)."""
    image = {
        "architecture": _architecture(),
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.digest}" for layer in layers]},
        "history": [{"created_by": "poolkeeper"} for _ in layers],
    }
    encoded = json.dumps(image, sort_keys=True).encode()
    config_name = f"{hashlib.sha256(encoded).hexdigest()}.json"
    manifest = [
        {
            "Config": config_name,
            "RepoTags": [reference],
            "Layers": [f"{layer.digest}/layer.tar" for layer in layers],
        }
    ]
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with tarfile.open(fresh, "w") as archive:
        _add_bytes(archive, "manifest.json", json.dumps(manifest).encode())
        _add_bytes(archive, config_name, encoded)
        for digest, layer in {layer.digest: layer for layer in layers}.items():
            archive.add(layer.tar, arcname=f"{digest}/layer.tar")
    fresh.replace(path)


def write_program_image(path: Path, reference: str, program: Path, user: str) -> None:
    """Write the image of one static program and nothing else."""
    tar = path.with_suffix(".layer")
    data = program.read_bytes()
    with tarfile.open(tar, "w") as archive:
        entry = tarfile.TarInfo(program.name)
        entry.size, entry.mode = len(data), 0o755
        archive.addfile(entry, io.BytesIO(data))
    layer = Layer(tar, hashlib.sha256(tar.read_bytes()).hexdigest())
    write_archive(path, reference, [layer], {"Entrypoint": [f"/{program.name}"], "User": user})
    tar.unlink()


class _Digesting:
    """A file to write to that computes the SHA-256 of what passes through."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._raw.write(data)

    def tell(self) -> int:
        return self._raw.tell()


def _walk(directory: Path) -> Iterator[tuple[str, Path]]:
    """Everything below ``directory`` by name, parents first, always in the same order."""
    for parent, directories, files in os.walk(directory):
        directories.sort()
        base = Path(parent)
        for name in sorted(files + [d for d in directories if (base / d).is_symlink()]):
            yield str((base / name).relative_to(directory)), base / name
        for name in directories:
            if not (base / name).is_symlink():
                yield str((base / name).relative_to(directory)), base / name


def _add(archive: tarfile.TarFile, name: str, path: Path) -> None:
    status = path.lstat()
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:  # overlayfs: "this name was deleted"
        parent, _, base = name.rpartition("/")
        _add_bytes(archive, f"{parent}/.wh.{base}".lstrip("/"), b"")
        return
    if stat.S_ISSOCK(status.st_mode) or stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return  # a runtime makes its own /dev
    entry = archive.gettarinfo(str(path), arcname=name)
    entry.uname = entry.gname = ""
    entry.mtime = int(status.st_mtime)
    if entry.isreg():
        with path.open("rb") as content:
            archive.addfile(entry, content)
        return
    archive.addfile(entry)
    if entry.isdir() and _OPAQUE in os.listxattr(path) and os.getxattr(path, _OPAQUE) == b"y":
        _add_bytes(archive, f"{name}/.wh..wh..opq", b"")


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    archive.addfile(entry, io.BytesIO(data))


def _architecture() -> str:
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
