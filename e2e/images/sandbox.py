"""One step of an image build, inside mount and process namespaces that vanish with it.

``builder`` runs it as ``unshare ... python -m e2e.images.sandbox`` with the step as JSON on standard input.
The image so far is an overlay mount: what the step changes ends up in ``upper``, which becomes the layer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

# Passed into the build where the host has them, so that its package caches and proxies are used.
_PASSED = ("PIP_", "NPM_CONFIG_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HOST_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# A mirror of a frozen state is fine to build from; its signatures still count.
_APT = 'Acquire::Check-Valid-Until "false";\n'


def main(step: dict[str, Any]) -> int:
    """Mount, do the step, return its exit code; the mounts go with this process."""
    root = Path(step["root"])
    _mount_image(root, step["lowers"], step["upper"], step["work"])
    match step["kind"]:
        case "run":
            return _run(root, step)
        case "copy-stage":
            _copy_stage(root, step)
        case "copy-context":
            _copy_context(root, step)
    return 0


def _mount_image(root: Path, lowers: list[str], upper: str, work: str) -> None:
    if not lowers:  # an image from scratch
        _mount("--bind", upper, str(root))
        return
    options = f"lowerdir={':'.join(reversed(lowers))},upperdir={upper},workdir={work}"
    _mount("-t", "overlay", "overlay", "-o", options, str(root))


def _run(root: Path, step: dict[str, Any]) -> int:
    """Run a shell command in the image. /run, and with it the resolver's file, belongs to the build alone."""
    _mount("-t", "proc", "proc", str(root / "proc"))
    _mount("--rbind", "/dev", str(root / "dev"))
    _mount("-t", "tmpfs", "tmpfs", str(root / "run"))
    _mount("--bind", os.path.realpath("/etc/resolv.conf"), str(root / "etc/resolv.conf"))
    environment = {"PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"}
    environment |= {k: v for k, v in os.environ.items() if k.upper().startswith(_PASSED)}
    if _HOST_CERTIFICATES.exists():
        # What the host trusts (a company's proxy, say) the build must trust too; the image must not.
        shutil.copy(_HOST_CERTIFICATES, root / "run/host-certificates.crt")
        for name in ("PIP_CERT", "NODE_EXTRA_CA_CERTS"):
            environment[name] = "/run/host-certificates.crt"
    (root / "run/apt.conf").write_text(_APT)
    environment["APT_CONFIG"] = "/run/apt.conf"
    environment |= dict(pair.split("=", 1) for pair in step["env"])
    os.chroot(root)
    os.chdir(step["workdir"])
    return subprocess.run(["/bin/sh", "-c", step["command"]], env=environment).returncode


def _copy_context(root: Path, step: dict[str, Any]) -> None:
    """Copy listed files: ordinary modes and root as the owner, whatever the checkout's umask was."""
    for destination, source in step["files"]:
        target = _inside(root, destination)
        _make_directories(root, target.parent)
        shutil.copyfile(source, target)
        target.chmod(0o755 if Path(source).stat().st_mode & 0o100 else 0o644)


def _copy_stage(root: Path, step: dict[str, Any]) -> None:
    """Copy from another stage as it is: owners, modes, links."""
    other = Path(step["other"])
    lowers = step["stage_lowers"]
    if len(lowers) == 1:
        _mount("--bind", "-o", "ro", lowers[0], str(other))
    else:
        _mount("-t", "overlay", "overlay", "-o", f"ro,lowerdir={':'.join(reversed(lowers))}", str(other))
    destination = step["destination"]
    for source in step["sources"]:
        path = _inside(other, source)
        target = _inside(root, destination)
        if path.is_dir():
            _make_directories(root, target)
            subprocess.run(["cp", "-a", f"{path}/.", str(target)], check=True)
        else:
            named = target / path.name if destination.endswith("/") else target
            _make_directories(root, named.parent)
            subprocess.run(["cp", "-a", str(path), str(named)], check=True)


def _inside(root: Path, path: str) -> Path:
    """``path`` below ``root``; refuses one that a link in the image would lead out of it."""
    found = root / path.lstrip("/")
    if found != root and not Path(os.path.realpath(found.parent)).is_relative_to(os.path.realpath(root)):
        raise SystemExit(f"{path} leads out of the image by an absolute link")
    return found


def _make_directories(root: Path, path: Path) -> None:
    missing = [p for p in (path, *path.parents) if p.is_relative_to(root) and not p.exists()]
    for directory in reversed(missing):
        directory.mkdir()
        directory.chmod(0o755)


def _mount(*argv: str) -> None:
    subprocess.run(["mount", *argv], check=True)


if __name__ == "__main__":
    sys.exit(main(json.load(sys.stdin)))
