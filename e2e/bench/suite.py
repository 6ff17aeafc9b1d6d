"""How long `make test` took on this machine, by its stages' own records: nothing is run."""

from __future__ import annotations

from e2e import stages
from e2e.bench.figures import Figure
from e2e.cluster.shell import ClusterError

LAST = "e2e"


def run() -> list[Figure]:
    """Raises ClusterError where the last `make test` did not come to its end."""
    found = stages.read()
    if LAST not in found:
        raise ClusterError("there is no record of a whole `make test`: run it, and then this again")
    each = [
        Figure(f"{name}_s", seconds, "s", 60 if name == "fast" else None) for name, seconds in found.items()
    ]
    return [Figure("test_warm_s", sum(found.values()), "s", 1320), *each]
