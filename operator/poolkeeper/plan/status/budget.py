"""The condition WithinBudget and status.budget: the outcome of the budget, in words.

Pure, and without arithmetic of its own: budget/division.py decides what is divided, and what doesn't fit. Not
part of Ready: what was given keeps serving.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poolkeeper.budget.problems import GRAVITY, OVERCOMMITTED, PODS_WAIT, Problem
from poolkeeper.budget.seen import BudgetSeen
from poolkeeper.consumers import entries
from poolkeeper.consumers.consent import Consumer, Consumers
from poolkeeper.plan.status.condition import FALSE, TRUE, UNKNOWN, Condition, last_known
from poolkeeper.plan.world import World
from poolkeeper.spec.parse import PooledDatabase

KIND = "WithinBudget"
FIELD = "budget"
PODS_LISTED = 10


def left_out(consumer: Consumer, upstream_database: str, seen: BudgetSeen | None) -> bool:
    """Whether no connection is left for the consumer's main entry, which then no pooler has."""
    return seen is not None and entries.entry_name(upstream_database, consumer) in seen.left_out


def no_connection_left(consumer: Consumer) -> dict[str, str]:
    """The item of such a consumer in status.consumers.failing."""
    return {
        "namespace": consumer.namespace,
        "secretName": consumer.secret_name,
        "reason": "NoConnectionLeft",
        "message": "the server has no connection left for this consumer; the condition WithinBudget says how "
        "many there are and what to change",
    }


def within_budget(database: PooledDatabase, consumers: Consumers, world: World) -> Condition:
    """Whether every entry has its least, and the poolers hold no more than there is."""
    seen = world.budget
    if database.pooler.replicas == 0 and (seen is None or not seen.held):
        return Condition(KIND, TRUE, "ScaledToZero", "spec.pooler.replicas is 0: no pooler holds a connection")
    if seen is None:
        return last_known(world, KIND) or Condition(
            KIND, UNKNOWN, "ServerNotMeasured", "the server's connections have not been measured yet"
        )
    if seen.problem:
        return Condition(
            KIND,
            UNKNOWN,
            "ServerNotMeasured",
            f"{seen.problem}; until then pods keep what they were given, and nothing new is given. If the"
            " operator can't reach the server but the poolers can, say in spec.budget.maxConnections how many"
            " connections they may open",
        )
    faults = _faults(database, consumers, seen)
    if faults:
        reason = min((fault.reason for fault in faults), key=GRAVITY.index)
        words = "; ".join(fault.message for fault in faults)
        return Condition(KIND, FALSE, reason, f"{words}. {_shares(seen)}")
    return Condition(KIND, TRUE, "WithinBudget", f"{_shares(seen)}{_rollouts(database, consumers, seen)}")


def record(world: World) -> dict[str, Any]:
    """The budget in the status; while the server is unknown, as the status had it before."""
    seen = world.budget
    if seen is None or not seen.server:
        assert world.resource is not None
        before: Mapping[str, Any] = world.resource.status
        return {FIELD: before[FIELD]} if FIELD in before else {}
    return {
        FIELD: {
            "summary": f"{seen.held}/{seen.share}",
            "server": seen.server,
            "maxConnections": seen.max_connections,
            "others": seen.others,
            "reserve": seen.reserve,
            "usable": seen.usable,
            "arithmetic": seen.arithmetic,
            "sharedWith": seen.shared_with,
            "share": seen.share,
            "held": seen.held,
            "pods": [
                {"name": name, "connections": seen.pods[name]} for name in sorted(seen.pods)[:PODS_LISTED]
            ],
            "waitingPods": len(seen.waiting),
        }
    }


def _faults(database: PooledDatabase, consumers: Consumers, seen: BudgetSeen) -> list[Problem]:
    """Everything that does not fit."""
    faults = []
    if seen.excess > 0:
        faults.append(
            Problem(
                OVERCOMMITTED,
                f"by {_counted(seen.excess, 'connection')} poolers hold more than is there for them now: "
                "nothing new is given, and connections go as their transactions and sessions end; if it lasts, "
                "end connections of others on the server, or raise its max_connections",
            )
        )
    faults += seen.problems
    told = {fault.reason for fault in faults}
    replicas = database.pooler.replicas
    most = replicas if seen.most_pods is None else seen.most_pods
    if PODS_WAIT not in told and consumers.granted and most < replicas:
        faults.append(
            Problem(
                PODS_WAIT,
                f"spec.pooler.replicas is {replicas}, and a share of {seen.share} connections is enough for "
                f"{_counted(most, 'pod')}, since each entry keeps its least on each: so many run; "
                f"lower the replicas to {most}, remove consumers, lower limits.sessionConnections, or raise "
                f"{seen.bottleneck}",
            )
        )
    return faults


def _shares(seen: BudgetSeen) -> str:
    others = f", shared with {_counted(seen.shared_with, 'other PooledDatabase')}" if seen.shared_with else ""
    return (
        f"connections for poolers: {seen.arithmetic}{others}; the share of this PooledDatabase is "
        f"{seen.share}, and its pods may hold {seen.held}"
    )


def _rollouts(database: PooledDatabase, consumers: Consumers, seen: BudgetSeen) -> str:
    """A note if there is no room for the least of one pod more, which a rollout has while it lasts."""
    replicas = database.pooler.replicas
    if not consumers.granted or seen.most_pods is None or seen.most_pods > replicas:
        return ""
    if replicas == 1:
        return "; there is no room for a second pod, so that a rollout interrupts the service for a moment"
    return f"; there is no room for one pod more than {replicas}, so that a rollout goes on with one less"


def _counted(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"
