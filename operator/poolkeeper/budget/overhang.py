"""PooledDatabases that hold more than their share, and the pods of others that wait for it. Pure.

If not even the least of all entries fits on a server, a PooledDatabase's share may fall below what its pods
have, since their entries keep their least. A pod of another PooledDatabase then finds no connection, although
its own share is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from poolkeeper.budget import problems
from poolkeeper.budget.division import Division
from poolkeeper.budget.protocol import Record


def explained(
    divisions: Mapping[str, Division], shares: Mapping[str, int], records: Mapping[str, Record]
) -> dict[str, Division]:
    """The divisions by PooledDatabase. Those with pods that have no connection, although their share is enough,
    have one problem more if others hold more than their shares."""
    held = {name: sum(sum(caps.values()) for caps in one.caps.values()) for name, one in divisions.items()}
    above = {name: max(0, amount - shares[name]) for name, amount in held.items()}
    return {
        name: replace(
            one, problems=(*one.problems, *problems.of_others(waiting, len(one.caps), sum(above.values())))
        )
        for name, one in divisions.items()
        for waiting in [
            sum(bool(caps) for uid, caps in one.caps.items() if uid not in records[name].allotments)
        ]
    }
