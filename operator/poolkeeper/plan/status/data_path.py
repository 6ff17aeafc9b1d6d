"""The condition DataPath: whether statements get through every pooler, and what was done where they did not.

Pure. Not part of Ready: the other connections and pods continue as before.
"""

from __future__ import annotations

from poolkeeper.data_path.findings import CLIENTS_WAIT, PROBE, STUCK
from poolkeeper.observed.data_path import Wedge
from poolkeeper.plan.status.condition import FALSE, TRUE, UNKNOWN, Condition, last_known
from poolkeeper.plan.wanted import Wanted
from poolkeeper.plan.world import World

KIND = "DataPath"


def data_path_condition(wanted: Wanted, world: World) -> Condition:
    """Whether no wedge was seen in the last minute."""
    if wanted.configuration is None:
        return last_known(world, KIND) or Condition(
            KIND, UNKNOWN, "NoUpstream", "poolers are watched once the upstream's Secret is complete"
        )
    if world.budget is None:
        return last_known(world, KIND) or Condition(KIND, UNKNOWN, "NotMeasured", "no pooler was watched yet")
    if world.budget.wedges:
        first, *others = world.budget.wedges
        more = f"; {len(others)} more faults are known" if others else ""
        return Condition(KIND, FALSE, first.kind, f"{_WORDS[first.kind](first)}{more}")
    if world.budget.problem:
        return Condition(
            KIND,
            UNKNOWN,
            "NotMeasured",
            "without a view of the server a wedge can't be told from a server that is slow; see WithinBudget",
        )
    if world.budget.unwatched:
        return Condition(KIND, UNKNOWN, "NotWatched", world.budget.unwatched)
    return Condition(
        KIND, TRUE, "Working", "no server connection, client or probe was stuck in the last minute"
    )


def _stuck(wedge: Wedge) -> str:
    return (
        f"pod {wedge.pod}: {wedge.number} server connection(s) of consumer {wedge.consumer} waited for an"
        " answer while their backends were idle, and were ended: their clients got an error and connect again,"
        " other clients are not affected; if this recurs, check what lies between poolers and server (proxies,"
        " firewalls, service meshes), and compare the condition PoolerImage"
    )


def _waiting(wedge: Wedge) -> str:
    return (
        f"pod {wedge.pod}: clients of consumer {wedge.consumer} wait although {wedge.said}, and the server"
        " answers the operator; the pod's log says why PgBouncer can't use or open connections; if it says"
        " nothing, delete the pod: it is drained, and another takes its place"
    )


def _unanswered(wedge: Wedge) -> str:
    return (
        f"pod {wedge.pod}: its console answers, but SELECT 1 as consumer {wedge.consumer} does not get through:"
        f" {wedge.said}; if that lasts while another pod answers, the operator evicts this one: it is drained,"
        " and another takes its place; otherwise check the pod's log and NetworkPolicies between pod and"
        " server, and delete the pod if they show no cause"
    )


_WORDS = {STUCK: _stuck, CLIENTS_WAIT: _waiting, PROBE: _unanswered}
