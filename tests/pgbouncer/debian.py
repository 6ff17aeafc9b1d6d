"""File systems out of Debian's packages: its PgBouncer as it is, and servers that this machine lacks.

Packages are fetched and unpacked, and nothing of theirs is run, so that any suite's come here.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from e2e.cluster import packages
from e2e.cluster.paths import cache_dir, lock
from e2e.images.builder import mirror

SERVER_SUITES = {"13": "bullseye", "15": "bookworm", "17": "trixie", "18": "forky"}
"""Which suite has which PostgreSQL. No suite of now has 14 or 16."""
_TIMEOUT_SECONDS = 900


def pgbouncer(suite: str) -> Path:
    """The suite's PgBouncer with all that it needs, its program at usr/bin as in the images."""
    return _system(suite, "pgbouncer", "usr/sbin/pgbouncer", "usr/bin/pgbouncer")


def postgresql(version: str) -> Path:
    """PostgreSQL of that major version, out of the suite that has it."""
    if version not in SERVER_SUITES:
        known = ", ".join(SERVER_SUITES)
        raise RuntimeError(f"no suite of Debian has postgresql-{version}; there are {known}")
    program = f"usr/lib/postgresql/{version}/bin/postgres"
    return _system(SERVER_SUITES[version], f"postgresql-{version}", program, program)


def _system(suite: str, package: str, program: str, wanted: str) -> Path:
    root = cache_dir() / "rootfs" / f"debian-{suite}-{package}"
    with lock("rootfs"):
        if not root.exists():
            root.parent.mkdir(exist_ok=True)
            packages.use_system_path()
            packages.ensure(packages.IMAGE_PACKAGES)
            with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
                fresh = Path(scratch, "root")
                _unpack(suite, package, fresh)
                if program != wanted:
                    shutil.copy(fresh / program, fresh / wanted)
                # initdb insists on a name for its user.
                with (fresh / "etc/passwd").open("a") as passwd:
                    passwd.write("conformance:x:65532:65532::/:/usr/sbin/nologin\n")
                fresh.chmod(0o755)
                fresh.rename(root)
    return root


def _unpack(suite: str, package: str, root: Path) -> None:
    """`--foreign` ends once everything is there and has been verified. The script `sid` fits every suite."""
    command = ["debootstrap", "--foreign", "--variant=minbase", f"--include={package}", suite, str(root)]
    subprocess.run(
        [*command, *(mirror() or ["http://deb.debian.org/debian"]), "sid"],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=_TIMEOUT_SECONDS,
    )
    for archive in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", str(archive), str(root)], check=True)
        archive.unlink()
    (root / "etc/passwd").touch()
