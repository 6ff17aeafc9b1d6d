"""Reads and writes the Records, so that no two operators can give away the same connections.

budget/protocol.py decides what is in them, and says why they have to be written like this.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from poolkeeper import names
from poolkeeper.budget import allotments
from poolkeeper.budget.allotments import Stored
from poolkeeper.budget.protocol import Record
from poolkeeper.kube.client import Cluster, Conflict, Refused, Retry
from poolkeeper.observed.refs import Key, Ref
from poolkeeper.queue import Queue
from poolkeeper.store.store import Store

log = logging.getLogger(__name__)

TERM_WRITES = 2**20
"""More than the writes of one leader that get no answer."""


class Records:
    """The Records of this operator, in the Secrets that poolers mount."""

    def __init__(self, cluster: Cluster, store: Store, queue: Queue[Key], term: Callable[[], int]) -> None:
        """`term` rises with every change of leader."""
        self._cluster = cluster
        self._store = store
        self._queue = queue
        self._term = term
        self._unanswered = 0

    def epoch(self) -> int:
        """The operator's epoch: higher than that of every earlier operator, and than its own epochs of which a
        write without an answer may still take effect."""
        return self._term() * TERM_WRITES + self._unanswered

    def of(self, key: Key) -> Record:
        """The Record stored for a PooledDatabase, as last seen."""
        stored = self._store.stored(key)
        return Record(0) if stored is None else stored.record

    async def write(self, key: Key, stored: Stored, files: Mapping[str, str]) -> bool:
        """Store `files` (budget/allotments.py) in place of what is `stored`. False if the Secret was changed
        since, or if the write is refused; raises Retry if the outcome is unknown."""
        ref = Ref("Secret", key.namespace, names.config_name(key.name))
        try:
            answer = await self._cluster.apply(
                allotments.body(ref.namespace, ref.name, stored, files), names.BUDGET_MANAGER
            )
        except Conflict:
            found = await self._cluster.get(ref)
            self._queue.add(self._store.forget(ref) if found is None else self._store.observe(found))
            return False
        except Refused as error:
            log.error("%s: refused: %s", ref, error.message)
            return False
        except Retry:
            self._unanswered += 1
            raise
        self._queue.add(self._store.observe(answer))
        return True
