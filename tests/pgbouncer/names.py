"""A DNS server whose answers a test changes, and the /etc that leads a process to it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.pgbouncer.rootfs import rootfs

ADDRESS = f"127.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}.53"
"""Of this run's own, on the one port that resolvers ask."""

RESOLV_CONF = f"nameserver {ADDRESS}\noptions timeout:1 attempts:1\n"


def of_pod(namespace: str, domain: str = "cluster.local", node: str = "") -> str:
    """The resolv.conf that kubelet writes for a pod; `node` is a domain that the node has itself."""
    search = f"{namespace}.svc.{domain} svc.{domain} {domain} {node}".rstrip()
    return f"search {search}\nnameserver {ADDRESS}\noptions ndots:5 timeout:1 attempts:1\n"


@dataclass
class Names:
    """What the server answers, by name; anything else does not exist."""

    addresses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seconds_to_live: int = 1

    def resolve(self, name: str) -> frozenset[str]:
        """What a resolver comes to, without asking one."""
        return frozenset(self.addresses.get(name, ()))

    def etc(self, directory: Path, resolv_conf: str = RESOLV_CONF) -> None:
        """Give the process that will have `directory` as its /tmp an /etc that asks this server."""
        target = directory / "etc"
        shutil.copytree(rootfs("pgbouncer") / "etc", target, symlinks=True)
        (target / "resolv.conf").write_text(resolv_conf)
        (target / "hosts").write_text("127.0.0.1 localhost\n")


@contextmanager
def serving(**addresses: str) -> Iterator[Names]:
    """Serve these names (an underscore stands for a dot) while the block runs."""
    names = Names({name.replace("_", "."): (address,) for name, address in addresses.items()})

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            question, answering = self.request
            with contextlib.suppress(OSError):
                answering.sendto(_answer(names, question), self.client_address)

    with socketserver.UDPServer((ADDRESS, 53), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield names
        finally:
            server.shutdown()
            thread.join()


def _answer(names: Names, question: bytes) -> bytes:
    end = question.index(b"\0", 12) + 5
    labels, at = [], 12
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode())
        at += 1 + question[at]
    (kind,) = struct.unpack("!H", question[end - 4 : end - 2])
    known = names.addresses.get(".".join(labels).lower())
    records = b"".join(
        struct.pack("!HHHIH", 0xC00C, 1, 1, names.seconds_to_live, 4) + socket.inet_aton(address)
        for address in (known or ())
        if kind == 1
    )
    flags = 0x8180 if known is not None else 0x8183
    head = question[:2] + struct.pack("!HHHHH", flags, 1, len(records) // 16, 0, 0)
    return head + question[12:end] + records
