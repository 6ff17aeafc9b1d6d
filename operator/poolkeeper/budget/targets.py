"""The caps that each pod should have in the end, from the PooledDatabases of one server and their pods.

Pure. It joins the arithmetic (division.py) with what is stored (protocol.py): pods that leave are paid for
until they are gone, and pods that serve come before pods that wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from poolkeeper.budget.division import SERVER, Caps, Consumer, Division, Limit, apportion, divide, party
from poolkeeper.budget.protocol import Pooler, Record


@dataclass(frozen=True)
class Pooled:
    """A PooledDatabase as one of those on a server. `most` is spec.budget.maxConnections, None for `auto`;
    `pods` are the wanted replicas; the consumers are in order of precedence."""

    name: str
    weight: int
    most: int | None
    pods: int
    consumers: tuple[Consumer, ...]
    replaceable: bool = False
    """Whether the floor of one more pod is kept free. A pod that has to go keeps all it has to its end. If it
    was the only one, its successor would otherwise have to wait for that."""


def shares(usable: int, databases: Sequence[Pooled], limits: Iterable[Limit] = ()) -> dict[str, int]:
    """What each PooledDatabase may hold, by name. If not even the floors fit, the first ones come first, and
    one gets what is left for some of its entries. `limits` are CONNECTION LIMITs of roles and databases that
    they share.

    `usable` is what lasts: backends that poolers left behind are no reason to shrink, or each shrink would
    cause the next one. (In View.usable they count, so that nothing grows before they have ended.)
    """
    left = usable
    parties = []
    for item in databases:
        one = party(item.name, item.weight, item.most, item.pods, item.consumers)
        floor = min(one.floor, left)
        parties.append(replace(one, floor=floor))
        left -= floor
    return apportion(usable, parties, limits)


def bottleneck(pooled: Pooled, given: Mapping[str, int], limits: Iterable[Limit] = ()) -> str:
    """What would have to be larger for a PooledDatabase to get more than the share that shares() has `given`
    it, in the words of a remedy: "raise ..."."""
    share = given[pooled.name]
    if pooled.most is not None and share >= pooled.most:
        return f"spec.budget.maxConnections (now {pooled.most})"
    ceiling = party(pooled.name, pooled.weight, None, pooled.pods, pooled.consumers).ceiling
    if ceiling is not None and share >= ceiling:
        return "limits.maxConnections of the consumers"
    for limit in limits:
        if pooled.name in limit.members and sum(given[name] for name in limit.members) >= limit.connections:
            return "the CONNECTION LIMIT of the upstream's role or database"
    return SERVER


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
    free = least if pooled.replaceable and not leaving and share >= 2 * least else 0
    division = divide(share - free, serving, waiting, pooled.consumers, in_force, leaving, bottleneck)
    left_out = division.left_out
    if left_out:  # an entry that only waits for leaving pods isn't left out
        lasting = divide(share, serving, waiting, pooled.consumers, in_force)
        left_out = tuple(entry for entry in left_out if entry in lasting.left_out)
    return replace(division, left_out=left_out, pods=max(1, share // least) if least else pooled.pods)


def targets(
    usable: int, databases: Sequence[Pooled], poolers: Sequence[Pooler], records: Mapping[str, Record]
) -> dict[str, Caps]:
    """View.wanted of a server without shared limits."""
    given = shares(usable, databases)
    wanted: dict[str, Caps] = {}
    for item in databases:
        wanted |= target(item, given[item.name], poolers, records[item.name]).caps
    return wanted
