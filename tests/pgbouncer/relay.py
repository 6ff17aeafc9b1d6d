"""A way between pooler and server with the faults of a bad middlebox: it loses an answer or the end of a
connection, or passes nothing on any more."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

LOSE_ANSWER = b"lose the answer"
"""What is sent by a server first after this was asked is lost, with all of that read."""
LOSE_END = b"lose the end"
"""Once this was asked, nothing the server sends arrives, nor that it closes the connection."""


@dataclass
class Relay:
    """Passes bytes of plain connections on to the server, each connection in a thread of its own."""

    server: tuple[str, int]
    port: int = 0
    dead: threading.Event = field(default_factory=threading.Event)
    """Set: nothing is passed on, and nothing is closed."""
    dead_from: set[str] = field(default_factory=set)
    """Likewise for connections from these addresses."""
    over: threading.Event = field(default_factory=threading.Event)

    def pass_on(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self.server) as server:
            loses, address = b"", client.getpeername()[0]
            while not self.over.is_set():
                if self.dead.is_set() or address in self.dead_from:
                    self.over.wait(0.05)
                    continue
                for ready in select.select([client, server], [], [], 0.05)[0]:
                    data = ready.recv(65536)
                    if ready is server and loses == LOSE_END:
                        self.over.wait(0.05)
                        continue
                    if not data:
                        return
                    if ready is server and loses == LOSE_ANSWER:
                        loses = b""
                        continue
                    loses = next((mark for mark in (LOSE_ANSWER, LOSE_END) if mark in data), loses)
                    (server if ready is client else client).sendall(data)


@contextlib.contextmanager
def relay(host: str, port: int, address: str = "127.0.0.1") -> Iterator[Relay]:
    """A relay to the server while the block runs."""
    made = Relay((host, port))
    with socket.create_server((address, 0)) as listener:
        made.port = listener.getsockname()[1]
        listener.settimeout(0.1)
        threads: list[threading.Thread] = []

        def accept() -> None:
            while not made.over.is_set():
                with contextlib.suppress(TimeoutError):
                    client, _ = listener.accept()
                    threads.append(threading.Thread(target=made.pass_on, args=(client,)))
                    threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield made
        finally:
            made.over.set()
            for thread in (accepting, *threads):
                thread.join()
