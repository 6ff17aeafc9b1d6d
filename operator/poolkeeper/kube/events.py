"""Events as objects, for people: what happened to which object, and why. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any

from poolkeeper.names import fit
from poolkeeper.printable import printable

Object = dict[str, Any]

MESSAGE_LIMIT = 1024
"""Maximum length of an Event's text, in characters: that of the API server (events.k8s.io/v1, note)."""
_FIELD_LIMIT = 253
"""Maximum length of what names the object concerned, in characters."""


@dataclass(frozen=True)
class Event:
    """An Event to post. `name` follows from what happened, so that posting it twice makes one."""

    name: str
    type: str
    reason: str
    message: str


def body(event: Event, about: Mapping[str, str], now: datetime) -> Object:
    """The Event's object, its text on one line; `about` names the object concerned: apiVersion, kind,
    namespace, name and uid."""
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": about["namespace"], "name": f"{fit(about['name'], 200)}.{event.name}"},
        "involvedObject": {key: printable(value, _FIELD_LIMIT) for key, value in about.items()},
        "type": event.type,
        "reason": event.reason,
        "message": printable(event.message, MESSAGE_LIMIT),
        "source": {"component": "poolkeeper"},
        "reportingComponent": "poolkeeper",
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }


class Allowance:
    """How many Events each namespace gets: `most` different ones in `seconds`, and each of them once."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._admitted: dict[tuple[str, str], float] = {}
        """When each Event was admitted, by namespace and name; the oldest comes first."""
        self._counts: Counter[str] = Counter()

    def admits(self, event: Mapping[str, Any], now: float) -> bool:
        """Whether to post this Event at `now`, in seconds of a clock that never goes back; if so, it counts."""
        for key in list(takewhile(lambda key: now - self._admitted[key] >= self._seconds, self._admitted)):
            del self._admitted[key]
            self._counts[key[0]] -= 1
        self._counts += Counter()  # drops the namespaces that have none left
        namespace, name = event["metadata"]["namespace"], event["metadata"]["name"]
        if (namespace, name) in self._admitted or self._counts[namespace] >= self._most:
            return False
        self._admitted[namespace, name] = now
        self._counts[namespace] += 1
        return True
