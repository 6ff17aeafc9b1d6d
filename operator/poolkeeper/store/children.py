"""Index of the objects that name a PooledDatabase as their owner: those that the operator made, and copies."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from poolkeeper import names
from poolkeeper.observed.origin import made_here, put_back
from poolkeeper.observed.poolers import Rollout
from poolkeeper.observed.refs import Key, Ref
from poolkeeper.plan.ownership import desired_digest, live_digest
from poolkeeper.plan.world import Child
from poolkeeper.store import reading
from poolkeeper.store.own_secrets import OwnSecrets
from poolkeeper.store.owned import Owned

log = logging.getLogger(__name__)

Object = Mapping[str, Any]

_UNREADABLE = b"unreadable"
"""The digest of an object whose contents can't be read: it differs from every desired one."""


class Children:
    """What the operator made, as digests, with the progress of Deployments; and the UIDs of copies, whose
    contents are of no interest. The contents of Secrets go to `secrets`."""

    def __init__(self, secrets: OwnSecrets) -> None:
        self._secrets = secrets
        self._made: Owned[Child] = Owned()
        self._rollouts: dict[Key, Rollout] = {}
        self._copies: Owned[str] = Owned()

    def observe(self, ref: Ref, obj: Object) -> frozenset[Key]:
        """Take in an object. Returns the keys that it concerns. Any exception means that it can't be read."""
        key, metadata = reading.owner(obj), obj["metadata"]
        if key is None:
            return self.drop(ref)
        labels = metadata.get("labels") or {}
        role = labels.get(names.ROLE_LABEL, "")
        if not made_here(obj):
            concerned = self._drop_made(ref)
            if role == names.ROLE_LOGINS and put_back(obj):
                # From a backup: consumers keep their passwords. The next run makes the record ours again.
                self._secrets.read(key, ref, role, obj)
            return concerned | self._copies.put(key, ref, metadata["uid"])
        concerned = self._copies.drop(ref)
        if self._made.owner(ref) != key:
            concerned |= self._drop_made(ref)
        child = Child(
            uid=metadata["uid"],
            owner_uid=labels.get(names.OWNER_UID_LABEL, ""),
            role=role,
            digest=live_digest(obj, names.MANAGER),
        )
        before = self._made.get(ref)
        if before is not None and before.digest == child.digest:
            child = replace(child, applied=before.applied)
        concerned |= self._made.put(key, ref, child)
        if ref.kind == "Deployment":
            rollout = reading.rollout(obj)
            if self._rollouts.get(key) != rollout:
                self._rollouts[key] = rollout
                concerned |= {key}
        if ref.kind == "Secret":
            try:
                if self._secrets.read(key, ref, role, obj):
                    concerned |= {key}
            except Exception:
                # Another client of the API server wrote it; the next run writes it again.
                log.exception("%s can't be read", ref)
                self._made.put(key, ref, replace(child, digest=_UNREADABLE))
                concerned |= {key}
        return concerned

    def applied(self, body: Object, answer: Object) -> None:
        """Note the answer to a write of `body`. What the API server made of it counts as applied, even if it
        differs from what was written: writing it again would never change anything."""
        ref, wanted = reading.ref(answer), desired_digest(body)
        key, child = self._made.owner(ref), self._made.get(ref)
        if key is None or child is None or child.digest == wanted:
            return
        if child.digest == live_digest(answer, names.MANAGER):
            self._made.put(key, ref, replace(child, applied=wanted))

    def drop(self, ref: Ref) -> frozenset[Key]:
        """Forget an object that is gone, or names no owner any more. Returns the key that it concerned."""
        return self._copies.drop(ref) | self._drop_made(ref)

    def _drop_made(self, ref: Ref) -> frozenset[Key]:
        concerned = self._made.drop(ref)
        if ref.kind == "Deployment":
            for key in concerned:
                self._rollouts.pop(key, None)
        self._secrets.drop(ref)
        return concerned

    def get(self, ref: Ref) -> Child | None:
        """An object that the operator made, as last seen."""
        return self._made.get(ref)

    def owner(self, ref: Ref) -> Key | None:
        """The PooledDatabase that the operator made an object for."""
        return self._made.owner(ref)

    def owners(self) -> frozenset[Key]:
        """Every PooledDatabase that the operator made an object for, whether or not it still exists."""
        return self._made.owners()

    def of(self, key: Key) -> dict[Ref, Child]:
        """What the operator made for a PooledDatabase."""
        return self._made.of(key)

    def consumers_secrets(self, key: Key) -> tuple[Ref, ...]:
        """The Secrets of its consumers among them."""
        return tuple(ref for ref, child in self.of(key).items() if child.role == names.ROLE_CONSUMER)

    def rollout(self, key: Key) -> Rollout | None:
        """The progress of its Deployment."""
        return self._rollouts.get(key)

    def copies(self, key: Key) -> dict[Ref, str]:
        """UIDs of the copies that name it."""
        return self._copies.of(key)
