"""Index of the marked source Secrets and the PooledDatabases that read them, in both directions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from poolkeeper.observed.refs import Key, Ref


class Sources:
    """Data of the Secrets that carry the operator's mark, with the PooledDatabases that name them."""

    def __init__(self) -> None:
        self._data: dict[Ref, Mapping[str, bytes]] = {}
        self._readers: dict[Ref, set[Key]] = defaultdict(set)
        self._read: dict[Key, frozenset[str]] = {}
        self._unread: dict[str, set[Ref]] = defaultdict(set)
        """By namespace: marked Secrets that no PooledDatabase reads any more."""

    def put(self, ref: Ref, data: Mapping[str, bytes]) -> bool:
        """Take in a marked Secret; True if its data are new."""
        changed = self._data.get(ref) != data
        self._data[ref] = data
        if not self._readers.get(ref):
            self._unread[ref.namespace].add(ref)
        return changed

    def drop(self, ref: Ref) -> bool:
        """Forget a Secret that is gone or has lost its mark; True if it was known."""
        self._unread[ref.namespace].discard(ref)
        return self._data.pop(ref, None) is not None

    def get(self, ref: Ref) -> Mapping[str, bytes] | None:
        """Data of a marked Secret."""
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
                if ref in self._data:
                    self._unread[key.namespace].add(ref)
        for name in names:
            ref = Ref("Secret", key.namespace, name)
            self._readers[ref].add(key)
            self._unread[key.namespace].discard(ref)

    def readers(self, ref: Ref) -> frozenset[Key]:
        """The PooledDatabases that read a Secret."""
        return frozenset(self._readers.get(ref, ()))

    def marked(self, key: Key) -> frozenset[str]:
        """Marked Secrets that `key` answers for: those it reads, and those in its namespace without readers."""
        own = {name for name in self._read.get(key, ()) if Ref("Secret", key.namespace, name) in self._data}
        return frozenset(own | {ref.name for ref in self._unread.get(key.namespace, ())})
