"""Failed transactions of real clients while something happens to their poolers, on the current cluster.

The events and the load programs are those of the e2e tests. The same events are run for programs with keepers,
for programs that connect to the same poolers directly, and (those that there are) for programs in front of a
PgBouncer that was set up by hand, with two ways of ending it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from e2e.bench.figures import Figure
from e2e.bench.site import site
from e2e.bench.stock import Stock
from e2e.cluster.shell import say
from tests.e2e.keeper_events import EVENTS
from tests.e2e.keeper_kit import Fleet, Outcome, Tally, make_table

RATE = 40
"""Transactions per second of each of the six programs."""
REPLICAS = 2
ROUNDS = 3
"""Of the events for programs with keepers: a zero says the more the more transactions it is of."""
ENDINGS = ("SIGTERM", "SIGINT")
KEEPER, DIRECT = "keeper", "direct"
_READY_SECONDS = 120.0


def run(rounds: int = ROUNDS) -> list[Figure]:
    """Everything; takes about twelve minutes once the images are loaded."""
    columns: dict[str, dict[str, list[Outcome]]] = {}
    with site() as place:
        make_table(place)
        # First what has the database's password in its own files, since one of the events changes that.
        for ending in ENDINGS:
            stock = Stock(place, ending)
            stock.deploy()
            columns[stock.name] = outcomes(
                Fleet(place.web, stock.name, RATE, keeper=False, secret=stock.name), stock.events
            )
        place.apply(place.spec(replicas=REPLICAS, drainSeconds=30))
        place.wait_ready(_READY_SECONDS)
        place.wait_settled(_READY_SECONDS)
        events = {name: partial(event, place) for name, event in EVENTS.items()}
        columns[DIRECT] = outcomes(Fleet(place.web, DIRECT, RATE, keeper=False, secret="database"), events)
        columns[KEEPER] = outcomes(Fleet(place.web, KEEPER, RATE), events, rounds)
    print(f"\n{table(columns)}\n")
    return figures(columns)


def outcomes(
    fleet: Fleet, events: Mapping[str, Callable[[], None]], rounds: int = 1
) -> dict[str, list[Outcome]]:
    """What each event did to the fleet, round by round; the fleet is there for that time only.

    After lost transactions, its programs start again: postgres.js keeps a transaction open for good where its
    connection was cut off at the wrong moment, and no pause outlasts that.
    """
    say(f"{fleet.name}: {len(fleet.programs)} programs, {fleet.rate} transactions per second each")
    fleet.deploy()
    found: dict[str, list[Outcome]] = {name: [] for name in events}
    try:
        for name, event in [*events.items()] * rounds:
            with fleet.during(name) as outcome:
                event()
            fleet.check_busy(outcome)
            found[name].append(outcome)
            if outcome.total.failed:
                fleet.remove()
                fleet.deploy()
    finally:
        fleet.remove()
    return found


def figures(columns: Mapping[str, Mapping[str, Sequence[Outcome]]]) -> list[Figure]:
    """The totals through keepers, which have a target, and those of the others beside them."""
    found: list[Figure] = []
    for column, by_event in reversed(list(columns.items())):
        tallies = [outcome.total for several in by_event.values() for outcome in several]
        failed = sum(tally.failed for tally in tallies)
        uncaught = sum(tally.uncaught for tally in tallies)
        total = failed + sum(tally.committed for tally in tallies)
        suffix, target = ("", 0) if column == KEEPER else (f"_{column.replace('-', '_')}", None)
        found += [
            Figure(f"failed_tx{suffix}", failed, "transactions", target),
            Figure(f"uncaught{suffix}", uncaught, "uncaught exceptions", target),
            Figure(f"total_tx{suffix}", total, "transactions"),
        ]
    return found


def table(columns: Mapping[str, Mapping[str, Sequence[Outcome]]]) -> str:
    """Failed transactions, uncaught exceptions and all transactions by event, as a Markdown table."""
    names = [KEEPER, DIRECT, *(name for name in columns if name not in (KEEPER, DIRECT))]
    lines = [f"| event | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for event in columns[KEEPER]:
        cells = [_cell(columns[name].get(event, ())) for name in names]
        lines.append(f"| {event} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(several: Sequence[Outcome]) -> str:
    if not several:
        return "-"
    total = sum((outcome.total for outcome in several), Tally())
    return f"{total.failed} + {total.uncaught} of {total.failed + total.committed:,}"
