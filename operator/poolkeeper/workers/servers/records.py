"""Reads and writes the Records, so that no two operators can give away the same connections.

budget/protocol.py decides what is in them, and says why they have to be written like this.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from poolkeeper import names
from poolkeeper.budget import allotments, problems
from poolkeeper.budget.allotments import Stored
from poolkeeper.budget.problems import Problem
from poolkeeper.budget.protocol import Record
from poolkeeper.kube.client import Cluster, Conflict, Refused, Retry
from poolkeeper.observed.refs import Key, Ref
from poolkeeper.queue import Queue
from poolkeeper.store.store import Store

log = logging.getLogger(__name__)

TERM_WRITES = 2**20
"""More than the writes of one leader that get no answer."""
FENCED_SECONDS = 70.0
"""How long a write is refused until no earlier operator's can be under way any more: the API server ends each
after 60 s."""
RETRY_SECONDS = 30.0
"""How often a write that was refused is tried again, if nothing has changed."""


class Leads(Protocol):
    """What is known of this operator's leadership: `term` rises with every change of leader; `renewed` is a
    time, on the monotonic clock, at which this operator certainly led."""

    @property
    def term(self) -> int: ...
    @property
    def renewed(self) -> float: ...


@dataclass(frozen=True)
class _Refusal:
    """Of a write in place of a Secret's `version`: the API server's words, and the first and last time."""

    version: str
    message: str
    since: float
    at: float


class Records:
    """The Records of this operator, in the Secrets that poolers mount."""

    def __init__(self, cluster: Cluster, store: Store, queue: Queue[Key], leads: Leads) -> None:
        self._cluster = cluster
        self._store = store
        self._queue = queue
        self._leads = leads
        self._unanswered = 0
        self._refusals: dict[Key, _Refusal] = {}
        self._ahead: dict[Key, tuple[str, float]] = {}
        """Records of later operators, it seems: their versions, and since when they are known."""

    def epoch(self) -> int:
        """The operator's epoch: higher than that of every earlier operator, and than its own epochs of which a
        write without an answer may still take effect."""
        return self._leads.term * TERM_WRITES + self._unanswered

    def of(self, key: Key) -> Record:
        """The Record stored for a PooledDatabase, as last seen.

        A Secret is in the hands of its namespace. If a Record claims to be a later operator's, but this one
        still led after it was there, it is forged. One that can't be written is as good as written by this
        operator, once no write of an earlier one can be under way.
        """
        stored = self._store.secrets.stored(key)
        if stored is None:
            return Record(0)
        refused = self._refused(key, stored)
        if refused is not None and refused.at - refused.since >= FENCED_SECONDS:
            return replace(stored.record, epoch=self.epoch())
        return replace(stored.record, epoch=0) if self._forged(key, stored) else stored.record

    def refusal(self, key: Key) -> tuple[Problem, ...]:
        """Why the Record of a PooledDatabase can't be stored. None if it can, as far as is known."""
        stored = self._store.secrets.stored(key)
        refused = None if stored is None else self._refused(key, stored)
        return () if refused is None else (problems.of_secret(names.config_name(key.name), refused.message),)

    def _refused(self, key: Key, stored: Stored) -> _Refusal | None:
        known = self._refusals.get(key)
        return known if known is not None and known.version == stored.version else None

    def _forged(self, key: Key, stored: Stored) -> bool:
        if stored.record.epoch <= self.epoch():
            self._ahead.pop(key, None)
            return False
        now = time.monotonic()
        version, since = self._ahead.get(key, ("", now))
        if version != stored.version:
            self._ahead[key] = (stored.version, now)
            return False
        return self._leads.renewed > since

    async def write(self, key: Key, stored: Stored, files: Mapping[str, str]) -> bool:
        """Store `files` (budget/allotments.py) in place of what is `stored`. False if the Secret was changed
        since, or if the write is refused; raises Retry if the outcome is unknown."""
        ref = Ref("Secret", key.namespace, names.config_name(key.name))
        now = time.monotonic()
        refused = self._refused(key, stored)
        if refused is not None and now - refused.at < RETRY_SECONDS:
            return False
        try:
            answer = await self._cluster.apply(
                allotments.body(ref.namespace, ref.name, stored, files), names.BUDGET_MANAGER
            )
        except Conflict:
            found = await self._cluster.get(ref)
            self._queue.add(self._store.forget(ref) if found is None else self._store.observe(found))
            return False
        except Refused as error:
            if refused is None or refused.message != error.message:
                log.error("%s: refused: %s", ref, error.message)
            since = now if refused is None else refused.since
            self._refusals[key] = _Refusal(stored.version, error.message, since, now)
            return False
        except Retry:
            self._unanswered += 1
            raise
        self._refusals.pop(key, None)
        self._queue.add(self._store.observe(answer))
        return True
