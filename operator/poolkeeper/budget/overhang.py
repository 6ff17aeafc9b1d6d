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
    divisions: Mapping[str, Division], shares: Mapping[str, int], records: Mapping[str, Record], usable: int
) -> dict[str, Division]:
    """The divisions by PooledDatabase, with one problem more for those whose pods find no connection, although
    their share is enough, because others exceed theirs. `usable` is View.usable."""
    free = usable - sum(record.bound for record in records.values())
    needed = {name: sum(sum(caps.values()) for caps in one.caps.values()) for name, one in divisions.items()}
    above = {name: max(0, amount - shares[name]) for name, amount in needed.items()}
    found = {}
    for name, one in divisions.items():
        known = records[name].allotments
        waiting = sum(len(caps) > free for uid, caps in one.caps.items() if uid not in known)
        others = sum(above.values()) - above[name]
        found[name] = replace(
            one, problems=(*one.problems, *problems.of_others(waiting, len(one.caps), others))
        )
    return found
