"""What a cluster needs besides its own programs: the pause image and CoreDNS."""

from __future__ import annotations

from pathlib import Path
from string import Template

from e2e.cluster import binaries
from e2e.cluster.node import DNS_ADDRESS
from e2e.cluster.paths import cache_dir
from e2e.images.archive import write_program_image

_USER = "65532:65532"


def reference(program: str) -> str:
    """The image reference of one of our own programs, by what it is built from."""
    return f"poolkeeper/{program}:{binaries.module_key(program)}"


def archive(program: str) -> Path:
    """The image archive of ``program`` (pause or coredns), packed on first use."""
    path = cache_dir() / "images" / "addons" / f"{program}-{binaries.module_key(program)}.tar"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_program_image(path, reference(program), binaries.location(program), _USER)
    return path


def dns_manifest() -> str:
    """CoreDNS as YAML for kubectl."""
    template = Template((Path(__file__).parent / "coredns.yaml").read_text())
    return template.substitute(image=reference("coredns"), address=DNS_ADDRESS)
