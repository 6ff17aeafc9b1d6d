"""Notices schema changes in the databases of PooledDatabases.

PgBouncer keeps prepared statements on its server connections. After a change of a table's columns, PostgreSQL
refuses to run statements that return them until they are prepared again, which a client can't make PgBouncer
do. So the poolers renew their server connections (plan/renewal.py); this module says when.

Each PooledDatabase has one standing connection, as the upstream's own role, which needs no right beyond those
that every role has.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

from poolkeeper.data_path.schema import Schema
from poolkeeper.observed.refs import Key
from poolkeeper.queue import Queue
from poolkeeper.store.store import Store
from poolkeeper.workers.boundary import Trouble, unexpected
from poolkeeper.workers.upstream import Meter, Unmeasured

log = logging.getLogger(__name__)

POLL_SECONDS = 0.9
"""How often a database is polled at most."""
COST = 20
"""Reading a schema takes at most one part in this many of the time."""
LATEST = 5
"""How many readings show the cost of one: the fastest counts, since a busy machine slows some of them."""
RETRY_SECONDS = 3.0
_UNREAD = (
    "until it is read, poolers don't renew their server connections after a migration, and clients may get the"
    ' error "cached plan must not change result type": let the role read the system catalogs, as every role may'
    " by default"
)


@dataclass
class _Seen:
    """What is known of one database. While PostgreSQL's `snapshot` stays the same, nothing was committed.

    A different `meter` may lead to another server."""

    meter: Meter | None = None
    snapshot: str = ""
    fingerprint: str = ""
    schema: Schema = field(default_factory=Schema)
    took: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))
    """Seconds that the latest readings took."""
    trouble: Trouble = field(default_factory=Trouble)
    """Why it can't be read."""
    due: float = 0.0
    task: asyncio.Task[None] | None = None


class SchemaWatch:
    """The databases of the PooledDatabases on one database cluster. To be closed in the end, by keep()."""

    def __init__(self, store: Store, queue: Queue[Key]) -> None:
        self._store = store
        self._queue = queue
        self._seen: dict[Key, _Seen] = {}

    def keep(self, keys: Collection[Key]) -> None:
        """Forget all PooledDatabases but these."""
        for key in self._seen.keys() - set(keys):
            task = self._seen.pop(key).task
            if task is not None:
                task.cancel()

    def poll(self, key: Key, connected: Callable[[], Awaitable[Meter]]) -> None:
        """Start checking whether a database's schema has changed, if it is its turn. Waits for nothing: a
        change goes to the store. `connected` returns the connection, or raises Unmeasured."""
        seen = self._seen.setdefault(key, _Seen())
        if asyncio.get_running_loop().time() >= seen.due and (seen.task is None or seen.task.done()):
            seen.task = asyncio.create_task(self._poll(key, seen, connected))

    def problem(self, key: Key) -> str:
        """Why a database's schema can't be read, and what follows; empty if it can, or not for long."""
        known = self._seen.get(key)
        said = known.trouble.lasting(asyncio.get_running_loop().time()) if known is not None else ""
        return f"the schema can't be read: {said}; {_UNREAD}" if said else ""

    async def _poll(self, key: Key, seen: _Seen, connected: Callable[[], Awaitable[Meter]]) -> None:
        loop = asyncio.get_running_loop()
        began, pause, problem = loop.time(), RETRY_SECONDS, ""
        try:
            pause = max(POLL_SECONDS, await self._read(seen, await connected()) * COST)
        except Unmeasured as error:
            pause = max(RETRY_SECONDS, (loop.time() - began) * COST)
            problem = str(error)
        except Exception as error:
            problem = unexpected("reading the schema", error)
        if problem and problem != seen.trouble.said:
            log.info("%s/%s: reading the schema: %s", key.namespace, key.name, problem)
        seen.trouble.note(problem, loop.time())
        seen.due = loop.time() + pause
        if seen.fingerprint:
            seen.schema = seen.schema.see(seen.fingerprint, loop.time())
            self._queue.add(self._store.upstreams.put_schema(key, seen.schema.fingerprint))

    async def _read(self, seen: _Seen, meter: Meter) -> float:
        """Read the schema if anything was committed since the last time; returns the seconds that it takes."""
        snapshot = await meter.snapshot()
        if (meter, snapshot) == (seen.meter, seen.snapshot):
            return 0.0
        began = asyncio.get_running_loop().time()
        seen.fingerprint = await meter.schema()
        seen.meter, seen.snapshot = meter, snapshot
        seen.took.append(asyncio.get_running_loop().time() - began)
        return min(seen.took)
