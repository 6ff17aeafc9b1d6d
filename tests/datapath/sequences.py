"""Makes sequences of protocol messages out of a seed: the same seed, the same bytes.

A lawful sequence is one that a correct client program may send, errors of SQL included, and its answer is
determined: a route has to give the direct connection's answer. A hostile one stops at nothing.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tests.datapath import wire
from tests.datapath.wire import COPY_DONE, FLUSH, SYNC

Chunk = tuple[bytes, int]
"""Bytes to send in one go, and how many ReadyForQuery they bring."""


@dataclass(frozen=True)
class Sequence:
    """`chunks` are sent one after the other; where `waits`, each after the answer to the one before. `pace` is
    whether the bytes leave as a whole, message by message, or cut anywhere."""

    name: str
    chunks: tuple[Chunk, ...]
    waits: bool
    pace: str = "whole"

    @property
    def ready(self) -> int:
        return sum(count for _, count in self.chunks)


STATEMENTS = (
    "SELECT 1",
    "SELECT 'a' AS a, NULL::int AS b, '' AS c",
    "SELECT n, repeat('x', n) FROM generate_series(1, 40) n",
    "SELECT repeat('x', 70000)",
    "SELECT 1 / 0",
    "SELECT n / (n - 20) FROM generate_series(15, 25) n",
    "SELECT nothing FROM nowhere",
    "SELEC",
    "",
    "DO $$ BEGIN RAISE NOTICE 'a notice'; END $$",
    "VALUES (1), (2), (3)",
    "SELECT pg_sleep(0.005)",
    "CREATE TEMP TABLE passing (a int) ON COMMIT DROP",
)
SCRIPTS = (
    "SELECT 1; SELECT 2; SELECT 3",
    "SELECT 1; SELECT 1/0; SELECT 3",
    "BEGIN; SELECT 1; COMMIT",
    "BEGIN; SELECT 1/0; COMMIT",
    "BEGIN; SAVEPOINT a; SELECT 1; ROLLBACK TO a; COMMIT",
    ";;",
)
COPY_IN = "COPY copied FROM STDIN"
COPY_OUT = "COPY (SELECT n, repeat('y', n * 20) FROM generate_series(1, 60) n) TO STDOUT"
COPY_NOWHERE = "COPY nowhere FROM STDIN"


def _line(rng: random.Random, good: bool) -> bytes:
    return b"%d\t%d\tnote\n" % (rng.randrange(9), rng.randrange(999)) if good else b"not a number\t\n"


def _data(rng: random.Random, good: bool = True) -> bytes:
    """CopyData, cut anywhere: lines don't have to end where messages do."""
    whole = b"".join(_line(rng, True) for _ in range(rng.randrange(1, 80)))
    whole += b"" if good else _line(rng, False)
    pieces, start = [], 0
    while start < len(whole):
        end = start + rng.randrange(1, 200)
        pieces.append(wire.copy_data(whole[start:end]))
        start = end
    return b"".join(pieces)


def _copy_end(rng: random.Random) -> bytes:
    return rng.choice((COPY_DONE, COPY_DONE, wire.copy_fail("changed its mind")))


def simple(rng: random.Random) -> Iterator[Chunk]:
    for _ in range(rng.randrange(1, 5)):
        yield wire.query(rng.choice(STATEMENTS + SCRIPTS)), 1


def transaction(rng: random.Random) -> Iterator[Chunk]:
    yield wire.query("BEGIN"), 1
    yield from simple(rng)
    yield wire.query(rng.choice(("COMMIT", "ROLLBACK"))), 1


def _one_extended(rng: random.Random, statement: str, suffix: str) -> bytes:
    name, portal = rng.choice(("", f"s{suffix}")), rng.choice(("", f"p{suffix}"))
    parts = [wire.parse(name, statement)]
    if rng.random() < 0.4:
        parts.append(wire.describe("S", name))
    parts.append(wire.bind(portal, name))
    if rng.random() < 0.5:
        parts.append(wire.describe("P", portal))
    limit = rng.choice((0, 0, 1, 7))
    parts.append(wire.execute(portal, limit))
    if limit and rng.random() < 0.7:
        parts.append(wire.execute(portal, rng.choice((0, 3))))
    if rng.random() < 0.3:
        parts.append(wire.close("P", portal))
    if name:
        # Names are the client's own affair; here each is free again for the next sequence.
        parts.append(wire.close("S", name))
    for index in range(len(parts) - 1, 0, -1):
        if rng.random() < 0.15:
            parts.insert(index, FLUSH)
    return b"".join(parts)


def _forget(names: Iterable[str]) -> Chunk:
    """Close statements whose own Close an error may have skipped: the next sequence uses the names again."""
    return b"".join(wire.close("S", name) for name in names) + SYNC, 1


def extended(rng: random.Random) -> Iterator[Chunk]:
    count = rng.randrange(1, 4)
    for index in range(count):
        yield _one_extended(rng, rng.choice(STATEMENTS), str(index)) + SYNC, 1
    yield _forget(f"s{index}" for index in range(count))


def pipeline(rng: random.Random) -> Iterator[Chunk]:
    """Several statements before one Sync, and several Syncs in one go."""
    whole, count = b"", 0
    for batch in range(rng.randrange(1, 6)):
        for index in range(rng.randrange(1, 5)):
            whole += _one_extended(rng, rng.choice(STATEMENTS), f"{batch}_{index}")
        whole += SYNC
        count += 1
        if rng.random() < 0.2:
            whole += SYNC
            count += 1
    yield whole, count
    yield _forget(f"s{batch}_{index}" for batch in range(5) for index in range(4))


def copy_in(rng: random.Random) -> Iterator[Chunk]:
    """The data leaves before the server agrees to take it."""
    statement = rng.choice((COPY_IN, COPY_IN, COPY_NOWHERE))
    yield wire.query(statement) + _data(rng, rng.random() < 0.7) + _copy_end(rng), 1


def copy_in_patient(rng: random.Random) -> Iterator[Chunk]:
    yield wire.query("BEGIN"), 1
    yield wire.query(COPY_IN) + _data(rng) + _copy_end(rng), 1
    yield wire.query("ROLLBACK"), 1


def copy_in_extended(rng: random.Random) -> Iterator[Chunk]:
    """With the Sync that libpq sends before the data, which a server in copy mode passes over, and without.

    (A refused COPY would make that early Sync count, so that only one that works comes with it.)
    """
    early = rng.random() < 0.5
    begin = wire.parse("", COPY_IN) + wire.bind("", "") + wire.execute()
    yield begin + (SYNC if early else b"") + _data(rng) + COPY_DONE + SYNC, 1


def copy_in_failing_pipeline(rng: random.Random) -> Iterator[Chunk]:
    """What precedes COPY fails, so that nobody wants the data."""
    before = _one_extended(rng, "SELECT 1 / 0", "failing")
    copy = wire.parse("", COPY_IN) + wire.bind("", "") + wire.execute()
    yield before + copy + _data(rng) + COPY_DONE + SYNC, 1
    yield _forget(["sfailing"])


def copy_in_script(rng: random.Random) -> Iterator[Chunk]:
    yield wire.query(f"SELECT 1; {COPY_IN}; SELECT 2") + _data(rng) + COPY_DONE, 1


def copy_out(rng: random.Random) -> Iterator[Chunk]:
    if rng.random() < 0.5:
        yield wire.query(COPY_OUT), 1
    else:
        yield wire.parse("", COPY_OUT) + wire.bind("", "") + wire.describe("P", "") + wire.execute() + SYNC, 1


def prepared(rng: random.Random) -> Iterator[Chunk]:
    """Prepared once, run in several transactions, which may be on several server connections."""
    names = [f"kept{number}" for number in range(rng.randrange(1, 12))]
    yield b"".join(wire.parse(name, f"SELECT $1::text || '{name}'", (25,)) for name in names) + SYNC, 1
    for _ in range(rng.randrange(2, 10)):
        name = rng.choice(names)
        value = rng.choice((None, b"", b"value", b"x" * 9000))
        yield wire.bind("", name, [value]) + wire.describe("P", "") + wire.execute() + SYNC, 1
        if rng.random() < 0.3:
            yield wire.describe("S", name) + SYNC, 1
    yield b"".join(wire.close("S", name) for name in names) + SYNC, 1


_FAILURES = (wire.parse("", "SELECT 1 / 0") + wire.bind("", "") + wire.execute(), wire.parse("", "SELEC"))


def renewed(rng: random.Random) -> Iterator[Chunk]:
    """Statements that are closed and prepared again under their names, in batches that an error may cut short
    anywhere: what the server skipped did not happen."""
    kept: dict[str, int | None] = {f"again{number}": 0 for number in range(rng.randrange(1, 6))}
    yield b"".join(wire.parse(name, _version(0)) for name in kept) + SYNC, 1
    for _ in range(rng.randrange(2, 7)):
        steps: list[tuple[str, int | None]] = []
        for name in rng.sample(sorted(kept), rng.randrange(1, len(kept) + 1)):
            steps += [(name, None), (name, rng.randrange(1, 4))]
        end = rng.randrange(len(steps) + 1) if rng.random() < 0.6 else len(steps)
        batch = [wire.close("S", n) if v is None else wire.parse(n, _version(v)) for n, v in steps]
        if end < len(steps):
            batch.insert(end, rng.choice(_FAILURES))
        yield b"".join(batch) + SYNC, 1
        kept.update(steps[:end])
        for name in (name for name, version in kept.items() if version is not None):
            yield wire.bind("", name) + wire.execute() + SYNC, 1
    yield _forget(kept)


def _version(number: int) -> str:
    return f"SELECT 'version {number}'"


def portals(rng: random.Random) -> Iterator[Chunk]:
    """A portal read in portions over several Syncs, inside a transaction."""
    yield wire.query("BEGIN"), 1
    yield wire.parse("", "SELECT generate_series(1, 50)") + wire.bind("c", "") + wire.execute("c", 7) + SYNC, 1
    for _ in range(rng.randrange(1, 5)):
        yield wire.execute("c", rng.randrange(1, 20)) + SYNC, 1
    yield wire.close("P", "c") + SYNC, 1
    yield wire.query("COMMIT"), 1


def huge(rng: random.Random) -> Iterator[Chunk]:
    size = rng.choice((4000, 4096, 8192, 70_000, 1_000_000))
    yield wire.query(f"SELECT length('{'z' * size}')"), 1
    yield (
        wire.parse("", "SELECT length($1)", (25,)) + wire.bind("", "", [b"z" * size]) + wire.execute() + SYNC,
        1,
    )


def storm(rng: random.Random) -> Iterator[Chunk]:
    """Describe and close, over and over, of statements that exist and of portals and statements that don't."""
    parts = [wire.parse("stormy", "SELECT 1")]
    for _ in range(rng.randrange(20, 200)):
        parts.append(
            rng.choice((wire.describe("S", "stormy"), wire.close("P", "none"), wire.close("S", "none"), FLUSH))
        )
    yield b"".join(parts) + wire.close("S", "stormy") + SYNC, 1


LAWFUL: tuple[Callable[[random.Random], Iterator[Chunk]], ...] = (
    simple,
    transaction,
    extended,
    pipeline,
    copy_in,
    copy_in_patient,
    copy_in_extended,
    copy_in_failing_pipeline,
    copy_in_script,
    copy_out,
    prepared,
    renewed,
    portals,
    huge,
    storm,
)


def lawful(seed: int, kind: Callable[[random.Random], Iterator[Chunk]]) -> Sequence:
    """A sequence of this kind; every other seed has it sent without waiting for answers, unless these decide
    over what may come next."""
    rng = random.Random(f"{kind.__name__} {seed}")  # noqa: S311 (a generator of tests)
    chunks = tuple(kind(rng))
    waits = seed % 2 == 0 or kind is renewed
    return Sequence(f"{kind.__name__} {seed}", chunks, waits, PACES[seed // 2 % len(PACES)])


PACES = ("messages", "whole", "anywhere")


def copy_in_disorder(rng: random.Random) -> Iterator[Chunk]:
    """Data that fail, with other messages between them: the server ignores some, and answers others."""
    begin = _one_extended(rng, COPY_IN, "disorder") if rng.random() < 0.7 else wire.query(COPY_IN)
    others = (
        SYNC,
        COPY_DONE,
        wire.copy_fail("given up"),
        wire.copy_data(b"1\t2\tthree\n"),
        wire.copy_data(b"not three columns\n"),
        wire.query("SELECT 1 / 0"),
        _one_extended(rng, "SELECT 1 / 0", "failing"),
        _one_extended(rng, "SELECT pg_sleep(0.05)", "late"),
    )
    yield begin + b"".join(rng.choices(others, k=rng.randrange(2, 10))) + SYNC, 1


_UNLAWFUL = (*LAWFUL, copy_in_disorder, copy_in_disorder)
"""What hostile sequences are made of."""


@dataclass(frozen=True)
class Hostile:
    """`pieces` are sent one by one, each followed by a pause in seconds; then the client may cancel, may read
    for a while, and leaves: `politely` or in the middle of everything."""

    name: str
    pieces: tuple[tuple[bytes, float], ...]
    cancels: bool
    reads: float
    politely: bool


_STRAY: tuple[bytes, ...] = (
    SYNC,
    FLUSH,
    COPY_DONE,
    wire.copy_fail("stray"),
    wire.copy_data(b"stray\n"),
    wire.copy_data(b""),
    wire.execute("unknown"),
    wire.bind("", "unknown"),
    wire.describe("S", "unknown"),
    wire.query(COPY_IN),
    wire.query(COPY_OUT),
    wire.query("BEGIN"),
    wire.query("SELECT pg_sleep(0.03)"),
    wire.parse("twice", "SELECT 1"),
    wire.parse("twice", "SELECT 2"),
    wire.message("F", b"\0\0\0\0\0\0\0\0\0\0"),
    wire.message("p", b"not asked for"),
    wire.message("?"),
    wire.message("Q"),
    wire.message("Q", b"no end"),
    wire.message("P", b"\0"),
    b"Q" + struct.pack("!I", 0),
    b"Q" + struct.pack("!I", 3),
    b"P" + struct.pack("!I", 0x7FFFFFFF),
    b"d" + struct.pack("!I", 0x40000000) + b"never so much",
    b"\0" * 9,
)


def hostile(seed: int) -> Hostile:
    """Messages of lawful sequences, shuffled, dropped and mixed with stray ones; then cut anywhere."""
    rng = random.Random(seed)  # noqa: S311 (a generator of tests)
    messages: list[bytes] = []
    for _ in range(rng.randrange(1, 4)):
        for chunk, _count in rng.choice(_UNLAWFUL)(rng):
            messages += split(chunk)
    messages = messages[: rng.randrange(1, 120)]
    style = rng.random()
    if style < 0.3:
        rng.shuffle(messages)
    elif style < 0.6:
        messages = [one for one in messages if rng.random() < 0.8]
    for _ in range(rng.choice((0, 0, 1, 3))):
        messages.insert(rng.randrange(len(messages) + 1), rng.choice(_STRAY))
    whole = b"".join(messages)
    if rng.random() < 0.4:
        whole = whole[: rng.randrange(len(whole) + 1)]
    pieces: list[tuple[bytes, float]] = []
    start = 0
    while start < len(whole):
        end = start + rng.choice((1, 5, 60, 2000, 100_000))
        if len(pieces) > 40:
            end = len(whole)
        pieces.append((whole[start:end], rng.choice((0, 0, 0, 0, 0.001, 0.004))))
        start = end
    return Hostile(
        f"hostile {seed}",
        tuple(pieces),
        cancels=rng.random() < 0.25,
        reads=rng.choice((0, 0, 0.01, 0.05, 0.2)),
        politely=rng.random() < 0.5,
    )


def disorderly(seed: int) -> Hostile:
    """Copies in disorder, from a client that stays and reads its answers."""
    rng = random.Random(seed)  # noqa: S311 (a generator of tests)
    whole = b"".join(chunk for _ in range(2) for chunk, _count in copy_in_disorder(rng))
    return Hostile(f"disorderly {seed}", ((whole, 0.0),), cancels=False, reads=0.4, politely=True)


def split(stream: bytes) -> list[bytes]:
    """The messages in a stream."""
    found, start = [], 0
    while start < len(stream):
        (size,) = struct.unpack_from("!I", stream, start + 1)
        found.append(stream[start : start + 1 + size])
        start += 1 + size
    return found
