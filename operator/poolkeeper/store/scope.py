"""Which parts of the cluster the API server refuses to show: watched namespaces that were deleted, or in which
the operator has no rights any more.

A namespace counts as unserved once its refusal has lasted: while an API server starts, it refuses everything.
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


@dataclass(frozen=True)
class Refusal:
    """The API server's words, and when it first refused, on the monotonic clock."""

    message: str
    since: float


class Scope:
    """What of the watched namespaces is refused."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._refusals: dict[Place, Refusal] = {}

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the kinds with namespaces are listed and watched."""
        return self._settings.watch_namespaces or (None,)

    def refuse(self, place: Place, message: str) -> None:
        """Note that the API server refused a list or a watch in a place."""
        if place not in self._refusals:
            self._refusals[place] = Refusal(message, time.monotonic())

    def restore(self, place: Place) -> None:
        """Note that a place could be listed completely."""
        self._refusals.pop(place, None)

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
