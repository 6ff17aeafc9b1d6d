"""The answer to a sequence as a value that two routes can be compared by."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress

from tests.datapath import wire
from tests.datapath.sequences import Hostile, Sequence, split
from tests.datapath.stack import Route
from tests.datapath.wire import TERMINATE, Connection, Message, Silence, cancel_request

_ASYNCHRONOUS = "SA"
"""ParameterStatus and NotificationResponse, which come when they come. What they carry is tested elsewhere."""

Transcript = tuple[tuple[str, bytes], ...]


def play(connection: Connection, sequence: Sequence, timeout: float = 10.0) -> Transcript:
    """Send the sequence while its answer is being read, and return the answer.

    Ends with ("silence", ...) where the answer doesn't end in time, ("closed", ...) where the stream does.
    """
    got: list[Message] = []
    ready = 0
    sender: threading.Thread | None = None
    if not sequence.waits:
        # In a thread: a server may stop reading until its answer is read.
        whole = b"".join(chunk for chunk, _ in sequence.chunks)
        connection.socket.settimeout(timeout)
        sender = threading.Thread(target=_send, args=(connection.socket, whole, sequence.pace))
        sender.start()
    end = time.monotonic() + timeout
    try:
        for chunk, count in sequence.chunks if sequence.waits else ((b"", sequence.ready),):
            if chunk:
                _send(connection.socket, chunk, sequence.pace)
            for _ in range(count):
                answer = connection.until_ready(timeout=end - time.monotonic())
                got += answer
                if not answer or answer[-1].kind != "Z":
                    return (*_comparable(got), ("closed", b""))
                ready += 1
    except Silence:
        return (*_comparable(got), ("silence", b"after %d ReadyForQuery" % ready))
    finally:
        if sender is not None:
            sender.join()
    return _comparable(got)


def _send(to: socket.socket, data: bytes, pace: str) -> None:
    """Up to 40 pieces leave one by one, so that the peer reads them so."""
    pieces = [data]
    if pace == "messages":
        pieces = split(data)
    elif pace == "anywhere":
        size = max(len(data) // 40, 3)
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
    with suppress(OSError):
        for piece in pieces[:40]:
            to.sendall(piece)
            if len(pieces) > 1:
                time.sleep(0.0003)
        to.sendall(b"".join(pieces[40:]))


def _comparable(messages: list[Message]) -> Transcript:
    return tuple((one.kind, one.body) for one in messages if one.kind not in _ASYNCHRONOUS)


def difference(expected: Transcript, got: Transcript) -> str:
    """The first place where two answers part; empty if they are the same."""
    for index in range(max(len(expected), len(got))):
        right = expected[index] if index < len(expected) else ("nothing", b"")
        left = got[index] if index < len(got) else ("nothing", b"")
        if right != left:
            shown, wanted = (f"{kind} {body[:200]!r}" for kind, body in (left, right))
            return f"message {index} of {len(expected)} is {shown}, not {wanted}"
    return ""


@contextmanager
def witnesses(route: Route, count: int) -> Iterator[list[str]]:
    """So many clients that ask for texts of their own during the block; what they got instead, at its end."""
    found: list[str] = []
    over = threading.Event()
    with ThreadPoolExecutor(max(count, 1)) as pool:
        asking = [pool.submit(_witness, route, over) for _ in range(count)]
        try:
            yield found
        finally:
            over.set()
    found += [text for one in asking for text in one.result()]


def _witness(route: Route, over: threading.Event) -> list[str]:
    """Server connections are told its application_name first, which is not the attackers'."""
    found: list[str] = []
    while not over.is_set():
        text = f"own {secrets.token_hex(8)}"
        prepared = wire.parse("kept", "SELECT $1::text", (25,)) + wire.bind("", "kept", [text.encode()])
        try:
            with closing(route.connect({"application_name": "witness"}, timeout=20)) as client:
                for query in (wire.query(f"SELECT '{text}'"), prepared + wire.execute() + wire.SYNC):
                    client.send(query)
                    answer = wire.rows(client.until_ready(timeout=20))
                    found += [] if answer == [(text,)] else [f"{answer} instead of {text}"]
        except Exception as error:  # a connection lost, an error of another client
            found.append(repr(error))
    return found


def attack(route: Route, hostile: Hostile) -> None:
    """Play a hostile sequence to its end. What it is answered doesn't matter."""
    with suppress(OSError, Silence), route.connect() as connection:
        for piece, pause in hostile.pieces:
            connection.socket.settimeout(1)
            connection.socket.sendall(piece)
            if pause:
                time.sleep(pause)
        if hostile.cancels:
            with Connection(route.host, route.port, 2) as another:
                another.send(cancel_request(connection.key))
        end = time.monotonic() + hostile.reads
        while (left := end - time.monotonic()) > 0 and connection.receive(left) is not None:
            pass
        if hostile.politely:
            connection.send(TERMINATE)
