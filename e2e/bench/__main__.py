"""``python -m e2e.bench reconcile | reload | keeper | budget | datapath | suite | all``"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

from e2e.bench import admission, budget, datapath, figures, moving, ratios, reconcile, reload, rollouts, suite
from e2e.bench.figures import Figure
from e2e.cluster.shell import ClusterError, say


def keeper(rounds: int = rollouts.ROUNDS) -> list[Figure]:
    """Everything about keepers: what no cluster is needed for comes first. Each part is shown when it is done:
    the last takes long, and may fail."""
    found: list[Figure] = []
    for part in (ratios.run, moving.run, admission.run, partial(rollouts.run, rounds)):
        made = part()
        print(f"\n{figures.table(made)}\n", flush=True)
        found += made
    return found


BENCHES: dict[str, Callable[[], list[Figure]]] = {
    "reconcile": reconcile.run,
    "reload": reload.run,
    "keeper": keeper,
    "budget": budget.run,
    "datapath": datapath.run,
    "suite": suite.run,
}


def main(arguments: list[str]) -> int:
    """Run benchmarks. A missed target is printed and no failure: the exit code tells whether they ran."""
    parser = argparse.ArgumentParser(prog="python -m e2e.bench", description="Benchmarks with targets.")
    parser.add_argument("name", choices=[*BENCHES, "all"])
    parser.add_argument(
        "--seconds",
        type=int,
        choices=range(datapath.LEAST_SECONDS, 2 * datapath.SECONDS + 1),
        default=datapath.SECONDS,
        metavar="N",
        help=f"length of the soak of datapath, at least {datapath.LEAST_SECONDS} (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        choices=range(1, 21),
        default=rollouts.ROUNDS,
        metavar="N",
        help="of keeper: how often each event happens to programs with keepers (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    benches: dict[str, Callable[[], list[Figure]]] = {
        **BENCHES,
        "keeper": partial(keeper, given.rounds),
        "datapath": partial(datapath.run, given.seconds),
    }
    measuring = [name for name in benches if name != "suite"]
    try:
        for chosen in measuring if given.name == "all" else [given.name]:
            say(f"bench {chosen}")
            found = benches[chosen]()
            path = figures.write(chosen, found)
            print(f"\n{chosen} on {figures.machine()}\n{figures.table(found)}\n")
            say(f"written to {path.relative_to(path.parents[1])}")
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
