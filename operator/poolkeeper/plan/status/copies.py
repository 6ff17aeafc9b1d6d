"""What the status says of objects that carry the operator's labels and were not made by it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from poolkeeper.kube.events import Event
from poolkeeper.observed.refs import Ref
from poolkeeper.plan.status.condition import Condition
from poolkeeper.plan.world import World

LISTED = 3
"""More are counted only: every user who may create a Secret can make one."""
_REMEDY = "neither kept up to date nor deleted; delete it, or remove its labels poolkeeper.io/..."


def with_copies(condition: Condition, world: World) -> Condition:
    """The condition with the copies at the end of its message; itself if there are none."""
    if not world.copies:
        return condition
    listed = "".join(_item(ref) for ref in _listed(world))
    more = len(world.copies) - LISTED
    counted = f" and {more} more" if more > 0 else ""
    message = f"{condition.message}; copies of Poolkeeper's objects:{listed}{counted}; a copy is {_REMEDY}"
    return replace(condition, message=message)


def found(condition: Condition, world: World) -> tuple[Event, ...]:
    """The Events of copies that the condition's message names, and that its message before did not.

    An Event's name follows from the copy's UID: after a crash before the status is written, the same Event is
    posted again, and already exists.
    """
    assert world.resource is not None
    before = _message(world.resource.status, condition.type)
    return tuple(
        Event(
            name=hashlib.sha256(f"copy/{world.copies[ref]}".encode()).hexdigest()[:16],
            type="Warning",
            reason="CopyLeftAlone",
            message=f"{ref} is a copy of an object of Poolkeeper's: it is {_REMEDY}",
        )
        for ref in _listed(world)
        if _item(ref) not in before
    )


def _listed(world: World) -> list[Ref]:
    return sorted(world.copies)[:LISTED]


def _item(ref: Ref) -> str:
    """An object in the message, so that no name is part of another one's."""
    return f" [{ref}]"


def _message(status: Mapping[str, Any], kind: str) -> str:
    return next((str(item["message"]) for item in status.get("conditions", ()) if item["type"] == kind), "")
