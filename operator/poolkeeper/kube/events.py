"""Events as objects, for people: what happened to which object, and why. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from poolkeeper.names import fit

Object = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """An Event to post. `name` follows from what happened, so that posting it twice makes one."""

    name: str
    type: str
    reason: str
    message: str


def body(event: Event, about: Mapping[str, str], now: datetime) -> Object:
    """The Event's object; `about` names the object concerned: apiVersion, kind, namespace, name and uid."""
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": about["namespace"], "name": f"{fit(about['name'], 200)}.{event.name}"},
        "involvedObject": dict(about),
        "type": event.type,
        "reason": event.reason,
        "message": event.message,
        "source": {"component": "poolkeeper"},
        "reportingComponent": "poolkeeper",
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
