"""Index of the marked source Secrets and the PooledDatabases that read them, in both directions.

Data are kept of those Secrets alone that a PooledDatabase names: anyone can put the mark on a Secret.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from poolkeeper.observed.refs import Key, Ref

Data = Mapping[str, bytes]


class Sources:
    """The Secrets that carry the operator's mark, with the PooledDatabases that name them."""

    def __init__(self) -> None:
        self._marked: set[Ref] = set()
        self._data: dict[Ref, Data] = {}
        """Of those in `_marked` that have readers, as far as they were seen since the first of these came."""
        self._readers: dict[Ref, set[Key]] = defaultdict(set)
        self._read: dict[Key, frozenset[str]] = {}
        self._unread: dict[str, set[Ref]] = defaultdict(set)
        """By namespace: marked Secrets that no PooledDatabase reads any more."""

    def put(self, ref: Ref, data: Callable[[], Data]) -> frozenset[Key]:
        """Take in a marked Secret. Returns its readers if it is marked only now, or its data are new. `data` is
        not called for a Secret without readers."""
        news, readers = ref not in self._marked, frozenset(self._readers.get(ref, ()))
        self._marked.add(ref)
        if not readers:
            self._unread[ref.namespace].add(ref)
            return readers
        before, now = self._data.get(ref), data()
        self._data[ref] = now
        return readers if news or before != now else frozenset()

    def drop(self, ref: Ref) -> frozenset[Key]:
        """Forget a Secret that is gone or has lost its mark. Returns its readers if it was known."""
        self._take_off(ref)
        self._data.pop(ref, None)
        if ref not in self._marked:
            return frozenset()
        self._marked.remove(ref)
        return frozenset(self._readers.get(ref, ()))

    def get(self, ref: Ref) -> Data | None:
        """Data of a marked Secret; None if they are not known."""
        return self._data.get(ref)

    def reads(self, key: Key, names: frozenset[str]) -> None:
        """Set the Secrets of its namespace that `key` reads from now on; none while it is being deleted."""
        before = self._read.pop(key, frozenset())
        if names:
            self._read[key] = names
        for name in before - names:
            ref = Ref("Secret", key.namespace, name)
            self._readers[ref].discard(key)
            if not self._readers[ref]:
                del self._readers[ref]
                self._data.pop(ref, None)
                if ref in self._marked:
                    self._unread[key.namespace].add(ref)
        for name in names:
            ref = Ref("Secret", key.namespace, name)
            self._readers[ref].add(key)
            self._take_off(ref)

    def marked(self, key: Key) -> frozenset[str]:
        """Marked Secrets that `key` answers for: those it reads, and those in its namespace without readers."""
        own = {name for name in self._read.get(key, ()) if Ref("Secret", key.namespace, name) in self._marked}
        return frozenset(own | {ref.name for ref in self._unread.get(key.namespace, ())})

    def _take_off(self, ref: Ref) -> None:
        """Take a Secret off the list of those without readers."""
        unread = self._unread.get(ref.namespace)
        if unread is not None:
            unread.discard(ref)
            if not unread:
                del self._unread[ref.namespace]
