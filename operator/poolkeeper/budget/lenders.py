"""The PooledDatabases that can lend connections to another one on their server.

Pure. If a limit holds a PooledDatabase back, be it spec.budget.maxConnections or a CONNECTION LIMIT of its role
or database, it can't take a connection that is lent from outside that limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from poolkeeper.budget.division import Limit
from poolkeeper.budget.shares import Pooled


def lenders(
    borrower: Pooled,
    databases: Sequence[Pooled],
    caps: Mapping[str, Mapping[str, int]],
    limits: Iterable[Limit] = (),
) -> frozenset[str]:
    """Names of the PooledDatabases whose consumers can lend to those of the `borrower`: all or, if the
    borrower has reached limits, only those under the same limits. `caps` are those of main entries, over all
    pods.
    """
    by_name = {item.name: item for item in databases}
    taken = {item.name: _taken(item, caps.get(item.name, {})) for item in databases}
    own = [] if borrower.most is None else [Limit(frozenset((borrower.name,)), borrower.most)]
    found = frozenset(by_name)
    for limit in (*own, *limits):
        members = limit.members & by_name.keys()
        if borrower.name in members and sum(taken[name] for name in members) >= limit.connections:
            found &= members
    return found


def _taken(pooled: Pooled, caps: Mapping[str, int]) -> int:
    """What a PooledDatabase has, and what it keeps free for the successor of its only pod."""
    least = sum(item.floor for item in pooled.consumers)
    free = least if pooled.replaceable else 0
    return sum(caps.values()) + pooled.pods * sum(item.sessions for item in pooled.consumers) + free
