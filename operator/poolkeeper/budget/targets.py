"""The caps that each pod should have in the end, from the PooledDatabases of one server and their pods.

Pure. It joins the arithmetic (division.py) with what is stored (protocol.py): pods that leave are paid for
until they are gone, and pods that serve come before pods that wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from poolkeeper.budget.division import SERVER, Caps, Division, divide
from poolkeeper.budget.protocol import Pooler, Record
from poolkeeper.budget.shares import Pooled, shares


def target(
    pooled: Pooled, share: int, poolers: Iterable[Pooler], record: Record, bottleneck: str = SERVER
) -> Division:
    """The caps that the pods of one PooledDatabase should have. `poolers` are in order of admission."""
    mine = [item for item in poolers if item.database == pooled.name and not item.terminating]
    staying = {item.uid for item in mine}
    leaving = sum(item.bound for uid, item in record.allotments.items() if uid not in staying)
    serving = [item.uid for item in mine if item.admitted or item.uid in record.allotments]
    waiting = [item.uid for item in mine if item.uid not in serving and item.running]
    in_force = frozenset(
        entry for uid, item in record.allotments.items() if uid in staying for entry in item.caps
    )
    least = sum(item.floor for item in pooled.consumers)
    # The room for a successor is for one pod more than are present: a successor that is present uses it.
    present = max(1, len(serving) + len(waiting))
    free = least if pooled.replaceable and not leaving and share >= least * (present + 1) else 0
    divided = partial(divide, bottleneck=bottleneck, replicas=pooled.pods)
    division = divided(share - free, serving, waiting, pooled.consumers, in_force, leaving)
    # What only waits for leaving pods isn't left out, and no remedy would serve it sooner.
    lasting = divided(share, serving, waiting, pooled.consumers, in_force) if leaving else division
    return replace(
        division,
        left_out=tuple(entry for entry in division.left_out if entry in lasting.left_out),
        pods=max(1, share // least) if least else pooled.pods,
        problems=lasting.problems,
    )


def targets(
    usable: int, databases: Sequence[Pooled], poolers: Sequence[Pooler], records: Mapping[str, Record]
) -> dict[str, Caps]:
    """View.wanted of a server without shared limits."""
    given = shares(usable, databases)
    wanted: dict[str, Caps] = {}
    for item in databases:
        wanted |= target(item, given[item.name], poolers, records[item.name]).caps
    return wanted
