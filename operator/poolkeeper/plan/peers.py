"""The peer_id of each pooler pod, and the lines of PgBouncer's configuration that each pod has of its own.

A cancel request comes over a connection of its own, which a Service leads to any of the poolers. The key in it
holds the peer_id of the pooler that knows the query, and [peers] has that pooler's address.
https://www.pgbouncer.org/config.html#section-peers
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from poolkeeper.budget.allotments import table_file
from poolkeeper.names import CONFIG_DIRECTORY
from poolkeeper.observed.poolers import Pod

LARGEST = 16383
_LINES = re.compile(r"peer_id = ([1-9][0-9]{0,4})(\n%include \S+\n)?")


def lines(peer: int, table: str | None) -> str:
    """The text that a pod includes: its peer_id and, if it has a `table` of caps, that table's path."""
    return f"peer_id = {peer}" + (f"\n%include {table}\n" if table else "")


def table_path(uid: str) -> str:
    """The path of a pod's table of caps."""
    return f"{CONFIG_DIRECTORY}/{table_file(uid)}"


def parse(text: str) -> tuple[int | None, bool]:
    """The peer_id in such lines, None in any other text; and whether a table is included."""
    match = _LINES.fullmatch(text)
    return (int(match[1]), bool(match[2])) if match and int(match[1]) <= LARGEST else (None, False)


def assign(pods: Iterable[Pod]) -> dict[str, int]:
    """peer_ids by UID, for every pod with an address: a pod keeps the one that it has, or gets a free one.

    Terminating pods keep theirs: their queries can be cancelled to the end.
    """
    assigned: dict[str, int] = {}
    taken: set[int] = set()
    reachable = sorted((pod for pod in pods if pod.ip), key=lambda pod: (pod.name, pod.uid))
    for pod in reachable:
        if pod.peer is not None and pod.peer not in taken:
            assigned[pod.uid] = pod.peer
            taken.add(pod.peer)
    free = (peer for peer in range(1, LARGEST + 1) if peer not in taken)
    for pod in reachable:
        if pod.uid not in assigned:
            assigned[pod.uid] = next(free)
    return assigned
