"""A condition as a value, and the one that the status had before. (metav1.Condition)"""

from __future__ import annotations

from dataclasses import dataclass

from poolkeeper.plan.world import World

TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"


@dataclass(frozen=True)
class Condition:
    """One condition, before it has a transition time."""

    type: str
    status: str
    reason: str
    message: str


def last_known(world: World, kind: str) -> Condition | None:
    """The condition reported for this generation before the operator started: an answer is on its way."""
    assert world.resource is not None
    for item in world.resource.status.get("conditions", ()):
        if item["type"] == kind and item["observedGeneration"] == world.resource.generation:
            return Condition(kind, item["status"], item["reason"], item["message"])
    return None
