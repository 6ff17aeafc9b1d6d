"""What Kubernetes' Deployment controller does next with a Deployment's pods, as far as the budget notices.

It is that of rolloutRolling() in kubernetes/pkg/controller/deployment/rolling.go: pods of the new template are
added up to maxSurge more than the replicas, and old ones go for as long as enough are available. Old pods that
are not available go first.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NamedTuple


class Turn(NamedTuple):
    """How many pods of the new template to make, and which pods to delete."""

    made: int = 0
    deleted: tuple[int, ...] = ()


def turn(live: Mapping[int, bool], old: Set[int], replicas: int, surge: int) -> Turn:
    """The controller's next turn. `live` says of each pod that does not terminate, by number, whether it is
    available; `old` are those of an older template. maxUnavailable is 1 - `surge`, as deployment.render() has
    it."""
    new = sorted(set(live) - old, key=lambda number: (live[number], -number))
    if len(new) > replicas:
        return Turn(deleted=tuple(new[: len(new) - replicas]))
    made = min(replicas - len(new), replicas + surge - len(live))
    if made > 0:
        return Turn(made=made)
    least = replicas - (1 - surge)
    unavailable = sum(not live[number] for number in new)
    may_go = max(0, len(live) - least - unavailable)
    broken = sorted(number for number in old & set(live) if not live[number])[:may_go]
    serving = sorted(number for number in old & set(live) if live[number])
    spare = min(may_go - len(broken), max(0, sum(live.values()) - least))
    return Turn(deleted=(*broken, *serving[:spare]))
