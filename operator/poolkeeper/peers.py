"""Which pooler pod has which peer_id.

A cancel request comes over a connection of its own, which a Service leads to any of the poolers. The key in it
holds the peer_id of the one that knows the query, and [peers] tells where that is.
https://www.pgbouncer.org/config.html#section-peers
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from poolkeeper.world import Pod

LARGEST = 16383
_LINE = re.compile(r"peer_id = ([1-9][0-9]{0,4})")


def line(peer: int) -> str:
    """The line of PgBouncer's configuration that a pod includes."""
    return f"peer_id = {peer}"


def parse(text: str) -> int | None:
    """The peer_id in such a line, None for any other text."""
    match = _LINE.fullmatch(text)
    return int(match[1]) if match and int(match[1]) <= LARGEST else None


def assign(pods: Iterable[Pod]) -> dict[str, int]:
    """peer_ids by UID, for every pod that has an address: who has one keeps it, the others get free ones.

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
