"""Free ports of this machine, for servers that are about to start."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from secrets import randbelow

_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port that no process listens on, and that the kernel gives to no outgoing connection before a server
    listens there: clients beside it may be many."""
    first = int(_OUTGOING.read_text().split()[0])
    while True:
        port = 10_000 + randbelow(max(1_000, min(first, 30_000) - 10_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))  # noqa: S104
            return port
