"""Builds the budget report: one BudgetSeen for each PooledDatabase, from what was worked out for its server.

Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from poolkeeper.budget.division import Division, Server
from poolkeeper.budget.protocol import Record, View, admissible
from poolkeeper.budget.seen import BudgetSeen
from poolkeeper.observed.poolers import Pod


@dataclass(frozen=True)
class Account:
    """A server as it was last worked out. `excess`: by how much the bounds lastingly exceed what is usable."""

    system: str
    problem: str
    server: Server | None
    """With the foreign connections that last; None: never measured."""
    reserve: int
    shares: Mapping[str, int]
    excess: int


def seen(
    account: Account,
    name: str,
    division: Division | None,
    view: View,
    pods: Sequence[Pod],
    before: BudgetSeen | None,
) -> BudgetSeen:
    """The report on one PooledDatabase; `pods` are its own. If there is no `division`, since the server could
    not be measured, it is the report `before` but for the pods."""
    record = view.records.get(name, Record(0))
    by_uid = {pod.uid: pod for pod in pods}
    mine = [pooler for pooler in view.poolers if pooler.database == name]
    known = replace(
        before if before is not None else BudgetSeen(),
        server=hashlib.sha256(account.system.encode()).hexdigest()[:8],
        problem=account.problem,
        held=record.bound,
        pods={by_uid[uid].name: item.bound for uid, item in sorted(record.allotments.items()) if uid in by_uid},
        waiting=tuple(sorted(pod.name for pod in pods if not pod.admitted and not pod.terminating)),
        excess=account.excess,
        admissible=frozenset(pooler.uid for pooler in mine if admissible(pooler, view)),
    )
    if account.server is None or division is None:
        return known
    return replace(
        known,
        share=account.shares[name],
        shared_with=len(account.shares) - 1,
        arithmetic=account.server.arithmetic(account.reserve),
        max_connections=account.server.max_connections,
        others=account.server.others,
        reserve=account.reserve,
        usable=account.server.usable(account.reserve),
        most_pods=division.pods,
        problems=division.problems,
        bottleneck=division.bottleneck,
        left_out=frozenset(division.left_out),
    )


def held_up(seen: BudgetSeen, mute: Sequence[Pod], pods: Sequence[Pod]) -> BudgetSeen:
    """The report while the consoles of some pods (`mute`) no longer answer; their login may have been lost.
    Nothing can be taken back from mute pods. So if other pods wait, there is no room for more pods than have
    connections: one has to go first."""
    admitted = sum(pod.admitted and not pod.terminating for pod in pods)
    if not mute or not seen.waiting or seen.most_pods is None:
        return seen
    return replace(seen, most_pods=max(1, min(seen.most_pods, admitted)))


def newsworthy(before: BudgetSeen | None, now: BudgetSeen, *, settled: bool) -> bool:
    """Whether to report `now`. While caps change hands, the only news are a problem, which pods may be
    admitted, which consumers fill their client slots, and what is wrong with the data path. Foreign
    connections, which come and go all the time, are no news unless they change something."""
    if before is None or before.admissible != now.admissible or before.problem != now.problem:
        return True
    if (before.at_limit, before.wedges, before.silent) != (now.at_limit, now.wedges, now.silent):
        return True
    if before.unwatched != now.unwatched:
        return True
    return settled and _quiet(before) != _quiet(now)


def _quiet(seen: BudgetSeen) -> BudgetSeen:
    return replace(seen, arithmetic="", others=0, usable=0)
