"""Which parts of the cluster the API server refuses to show: watched namespaces that were deleted, or in which
the operator has no rights any more.

A namespace counts as unserved once its refusal has lasted: while an API server starts, it refuses everything.
If only watches are refused, it is served all the same, from lists that are repeated.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from poolkeeper.settings import Settings

Place = str | None
"""A namespace, or None: the cluster as a whole."""

LASTING_SECONDS = 5.0
"""How long a refusal lasts until its namespace counts as unserved."""
WATCH_LASTING_SECONDS = 15.0
"""How long a watch is refused until that is reported: watches are retried every five seconds at most."""


@dataclass(frozen=True)
class Refusal:
    """The API server's words, and when it first refused, on the monotonic clock."""

    message: str
    since: float


@dataclass(frozen=True)
class LostWatches:
    """Kinds that can be listed and not watched in one place, and the API server's words about one of them."""

    kinds: tuple[str, ...]
    message: str


class Scope:
    """What of the watched namespaces is refused."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._refusals: dict[Place, Refusal] = {}
        self._lost_watches: dict[Place, dict[str, Refusal]] = {}

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the kinds with namespaces are listed and watched."""
        return self._settings.watch_namespaces or (None,)

    def refuse(self, place: Place, message: str) -> None:
        """Note that the API server refused a list in a place."""
        if place not in self._refusals:
            self._refusals[place] = Refusal(message, time.monotonic())

    def restore(self, place: Place) -> None:
        """Note that a place could be listed completely."""
        if self._refusals.pop(place, None) is not None:
            # Its watches are granted in a moment, or else are what is still lost.
            lost = self._lost_watches.get(place, {})
            lost.update({kind: Refusal(known.message, time.monotonic()) for kind, known in lost.items()})

    def lose_watch(self, place: Place, kind: str, message: str) -> bool:
        """Note that the API server refused the watch of a kind in a place. Returns whether that is new."""
        lost = self._lost_watches.setdefault(place, {})
        if kind in lost:
            return False
        lost[kind] = Refusal(message, time.monotonic())
        return True

    def regain_watch(self, place: Place, kind: str) -> None:
        """Note that the API server granted the watch of a kind in a place."""
        lost = self._lost_watches.get(place, {})
        lost.pop(kind, None)
        if not lost:
            self._lost_watches.pop(place, None)

    def lost_watches(self) -> Mapping[Place, frozenset[str]]:
        """The kinds whose watch is refused, since whenever, by place."""
        return {place: frozenset(kinds) for place, kinds in self._lost_watches.items()}

    def unwatched(self) -> Mapping[Place, LostWatches]:
        """The places where refusals of watches have lasted, and nothing else is refused."""
        now = time.monotonic()
        found = {}
        for place in self._lost_watches.keys() - self._refusals.keys():
            lasting = {
                kind: refusal.message
                for kind, refusal in sorted(self._lost_watches[place].items())
                if now - refusal.since >= WATCH_LASTING_SECONDS
            }
            if lasting:
                found[place] = LostWatches(tuple(lasting), next(iter(lasting.values())))
        return found

    def refused(self) -> frozenset[Place]:
        """Every place that is refused, since whenever."""
        return frozenset(self._refusals)

    def unserved(self) -> Mapping[Place, str]:
        """The places whose refusal has lasted, with the API server's words."""
        now = time.monotonic()
        return {
            place: refusal.message
            for place, refusal in self._refusals.items()
            if now - refusal.since >= LASTING_SECONDS
        }

    def serves(self, namespace: str) -> bool:
        """Whether a namespace is in the operator's scope, and not refused."""
        return self._settings.watches(namespace) and namespace not in self.unserved()
