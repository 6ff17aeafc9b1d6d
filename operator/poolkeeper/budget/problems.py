"""What doesn't fit when connections are divided: the reason of the condition WithinBudget, and the remedy.

Pure. The reasons are part of the API (docs/concepts.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OVERCOMMITTED, PODS_WAIT, NOT_STORED = "Overcommitted", "PodsWait", "NotStored"
ENTRIES_LEFT_OUT, LIMIT_TOO_SMALL = "EntriesLeftOut", "LimitTooSmall"
GRAVITY = (NOT_STORED, OVERCOMMITTED, PODS_WAIT, ENTRIES_LEFT_OUT, LIMIT_TOO_SMALL)
"""Gravest first."""
_NAMED = 3
"""Maximum number of names in a message."""
_FEWER_CONSUMERS = "remove consumers, set limits.sessionConnections to 0 for those that use no session"


@dataclass(frozen=True)
class Problem:
    """`reason` is one of GRAVITY; `message` names what doesn't fit, and what to change."""

    reason: str
    message: str


def of_pods(
    share: int, least: int, admitted: int, present: int, bottleneck: str, replicas: int = 1
) -> tuple[Problem, ...]:
    """Of `present` pods, each of which needs `least` connections, those that are not `admitted`; or of the
    admitted ones, if they need more than the share.

    Lower `replicas` are a remedy only if there are more than can be admitted. A pod above the replicas is that
    of a rollout, and admitted pods above what fits are not kept (desired/deployment.py).
    """
    needed = admitted * least
    if needed > share:
        return (
            Problem(
                OVERCOMMITTED,
                f"{admitted} pooler pods need {needed} connections, since each entry keeps its least on each"
                f" pod, and the share is {share}: {needed - share} more are held than there should be; "
                f"{_FEWER_CONSUMERS}, or raise {bottleneck}",
            ),
        )
    if present > admitted and least:
        fewer = f", lower spec.pooler.replicas to {admitted}" if 0 < admitted < replicas else ""
        return (
            Problem(
                PODS_WAIT,
                f"{present - admitted} of {present} pooler pods wait: a share of {share} connections is enough"
                f" for {admitted}, with at least {least} on each; {_FEWER_CONSUMERS}{fewer}, or raise"
                f" {bottleneck}",
            ),
        )
    return ()


def of_secret(name: str, refusal: str) -> Problem:
    """Of the Secret that the API server lets nothing be stored in."""
    return Problem(
        NOT_STORED,
        f"what pooler pods may open can't be stored in Secret {name}, so they keep what they have: {refusal}; "
        "delete the Secret, and the operator makes it again",
    )


def of_others(waiting: int, present: int, above: int) -> tuple[Problem, ...]:
    """Of `present` pods with room in their share, those `waiting` for connections: other PooledDatabases on the
    server hold so many `above` their shares."""
    if not waiting or not above:
        return ()
    message = (
        f"{waiting} of {present} pooler pods wait: other PooledDatabases on the server exceed their shares by"
        f" {_connections(above)}, since each of their entries keeps its least; remove consumers there, or raise"
        f" max_connections of the server by {above}"
    )
    return (Problem(PODS_WAIT, message),)


def _connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections"


def of_entries(left_out: Sequence[str], bottleneck: str) -> tuple[Problem, ...]:
    """Of the entries that no connection is left for. They would not fit on a single pod: fewer replicas are no
    remedy."""
    if not left_out:
        return ()
    more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    named = ", ".join(left_out[:_NAMED])
    message = f"no connection is left for the entries {named}{more}; {_FEWER_CONSUMERS}, or raise {bottleneck}"
    return (Problem(ENTRIES_LEFT_OUT, message),)


def of_limits(limits: Sequence[tuple[str, int, int]], pods: int) -> tuple[Problem, ...]:
    """Of `limits`, (entry, limits.maxConnections, least on all pods), those below the least."""
    broken = [item for item in limits if item[1] < item[2]]
    if not broken:
        return ()
    entry, limit, least = broken[0]
    more = f", and {len(broken) - 1} more are like it" if len(broken) > 1 else ""
    return (
        Problem(
            LIMIT_TOO_SMALL,
            f"limits.maxConnections is {limit} for the consumer with the entry {entry}{more}, and the"
            f" least on {pods} pods is {least}; raise it to {least}, or lower spec.pooler.replicas",
        ),
    )
