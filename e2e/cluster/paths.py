"""Where things are: state inside the repository (thrown away by ``down``), results of builds in the cache."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLUSTER_DIR = ROOT / ".cluster"
BIN_DIR = CLUSTER_DIR / "bin"  # kubectl and helm, for the Makefile, the tests and the reader
KUBECONFIG = CLUSTER_DIR / "kubeconfig"


def cache_dir() -> Path:
    """The user's cache directory for this project, made on demand. A fresh clone finds its builds there."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    directory = Path(base) / "poolkeeper"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the machine-wide lock ``name``: two commands at once wait for each other, and a crash frees it."""
    directory = cache_dir() / "locks"
    directory.mkdir(exist_ok=True)
    with (directory / name).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
