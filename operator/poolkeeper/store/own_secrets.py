"""What the operator keeps in Secrets of its own: logins, the files that pods mount, and the stored budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from poolkeeper import names
from poolkeeper.budget import allotments
from poolkeeper.budget.allotments import Stored
from poolkeeper.credentials.logins import Logins, from_secret
from poolkeeper.grouped import Grouped
from poolkeeper.observed.refs import Key, Ref
from poolkeeper.pgbouncer.configuration import rules_of
from poolkeeper.store import reading
from poolkeeper.store.owned import Owned


class OwnSecrets:
    """The contents of these Secrets, by PooledDatabase."""

    def __init__(self) -> None:
        self._logins: dict[Key, Logins] = {}
        self._files: Owned[dict[str, str]] = Owned()
        self._stored: Grouped[Key, Stored] = Grouped(lambda stored: stored.server)

    def read(self, key: Key, ref: Ref, role: str, secret: Mapping[str, Any]) -> bool:
        """Take in a Secret of this PooledDatabase and role. True if that is news for a run: another budget."""
        if role == names.ROLE_LOGINS and ref == Ref("Secret", key.namespace, names.logins_name(key.name)):
            # Running poolers know the console's login, and keepers trust the authorities: if they were spoilt
            # by hand, the remembered ones go back into the Secret.
            found, known = from_secret(reading.data(secret)), self.logins(key)
            self._logins[key] = replace(
                found,
                console=found.console or known.console,
                authorities=found.authorities or known.authorities,
            )
        if role not in (names.ROLE_CONFIG, names.ROLE_KEEPER):
            return False
        files = reading.texts(secret)
        self._files.put(key, ref, files)
        if ref != _config(key) or role != names.ROLE_CONFIG:
            return False
        record, server = allotments.parse(files)
        metadata, rules, before = secret["metadata"], rules_of(files), self.stored(key)
        self._stored[key] = Stored(record, server, metadata["uid"], metadata["resourceVersion"], rules)
        return before is None or before.record != record

    def drop(self, ref: Ref) -> None:
        """Forget a Secret that is gone. Logins outlive theirs, which is created again with them."""
        for key in self._files.drop(ref):
            if ref == _config(key):
                self._stored.pop(key, None)

    def drop_logins(self, key: Key) -> None:
        """Forget the logins of a PooledDatabase that is gone."""
        self._logins.pop(key, None)

    def logins(self, key: Key) -> Logins:
        """The stored logins."""
        return self._logins.get(key, Logins())

    def files(self, key: Key) -> dict[Ref, dict[str, str]]:
        """The files in each Secret that pods mount."""
        return self._files.of(key)

    def pooler_files(self, key: Key) -> Mapping[str, str]:
        """The files in the Secret that the poolers mount."""
        return self._files.of(key).get(_config(key), {})

    def stored(self, key: Key) -> Stored | None:
        """The budget as stored, None as long as the poolers' Secret doesn't exist."""
        return self._stored.get(key)

    def stored_on(self, system: str) -> frozenset[Key]:
        """The PooledDatabases whose poolers' Secret says that they are on this database cluster."""
        return self._stored.within(system)


def _config(key: Key) -> Ref:
    """The Secret that the poolers mount."""
    return Ref("Secret", key.namespace, names.config_name(key.name))
