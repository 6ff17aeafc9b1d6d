"""`datapath`: a soak of half an hour. Eight client libraries and the protocol by hand are at work while the
poolers are reloaded, recapped, paused, scaled, rolled and deleted, and while the schema changes.

Whatever happens to the poolers is the installed operator's doing, after an edit of the PooledDatabase. Each
client checks every answer by itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from e2e.bench import soak_clients, soak_events
from e2e.bench.figures import Figure, percentile
from e2e.bench.site import site
from e2e.bench.soak_clients import Run
from e2e.bench.soak_stuck import stuck
from e2e.bench.soak_verdict import RECOVERY_SECONDS, Change, Verdict, changes, judge
from e2e.cluster.shell import ClusterError, say
from tests.datapath.clients.programs import Report, Wedged
from tests.e2e.kit import Place

SECONDS = 1800
LEAST_SECONDS = 60
KEEPER_POOL = 8
_READY_SECONDS = 180.0
_EXAMPLES = 4
_BEFORE_SECONDS = 30.0
"""How far back events are named for a finding: longer than a pooler takes to leave."""


def run(seconds: int = SECONDS) -> list[Figure]:
    """Everything; takes about two minutes more than the soak itself."""
    with site() as place:
        soak_clients.prepare(place)
        place.apply(_spec(place))
        place.wait_ready(_READY_SECONDS)
        place.wait_settled(_READY_SECONDS)
        clients = soak_clients.runs(soak_clients.deploy(place), seconds)
        events, pods = soak_events.Events(place), soak_events.Pods((place.data, place.web))
        say(f"{len(clients)} programs for {seconds} s")
        began = time.time()
        with pods.watched():
            with events.going_on():
                reports, failures = _reports(clients)
            if "recovery" not in reports:
                raise ClusterError("\n".join(failures))
            changed = changes(reports["recovery"])
            verdict = judge(reports, changed, began)
            verdict.unexplained += len(failures)
            _tell(events, pods, failures, verdict, began)
            _tell_slow(events, changed, began)
            place.wait_settled(_READY_SECONDS)
            left = stuck(place)
    ended_badly = list(pods.crashes.values())
    print("\n".join([*left, *ended_badly]))
    return figures(verdict, changed, left, ended_badly)


def _spec(place: Place) -> dict[str, object]:
    """Few server connections for many clients; no session endpoint, which takes no part in a rollout."""
    return {
        **place.spec(replicas=soak_events.REPLICAS[-1], drainSeconds=soak_events.DRAIN_SECONDS),
        "consumers": [{"namespace": place.web, "limits": {"sessionConnections": 0}}],
        "budget": {"maxConnections": soak_events.BUDGETS[-1]},
        "keeper": {"poolSize": KEEPER_POOL},
    }


def _reports(clients: Mapping[str, Run]) -> tuple[dict[str, Report], list[str]]:
    """What the programs reported, and why there is none of a program."""
    reports, failures = {}, []
    with ThreadPoolExecutor(len(clients)) as pool:
        running: dict[str, Future[Report]] = {name: pool.submit(start) for name, start in clients.items()}
        for name, future in running.items():
            try:
                reports[name] = future.result()
            except (Wedged, RuntimeError) as error:
                failures.append(f"{name}: {error}")
    return reports, failures


def _tell(
    events: soak_events.Events,
    pods: soak_events.Pods,
    failures: Sequence[str],
    verdict: Verdict,
    began: float,
) -> None:
    """What a figure doesn't say."""
    acts = ", ".join(f"{count} x {name}" for name, count in events.done.items())
    say(f"{acts}; {len(pods.poolers)} pooler pods came and went")
    print("\n".join([*failures, *events.errors]))
    for several in verdict.findings.values():
        print(f"{len(several)} x, the first of them:")
        for finding in sorted(several)[:_EXAMPLES]:
            at = finding.seconds
            print(f"{finding}; meanwhile {_meanwhile(events, began, at - _BEFORE_SECONDS, at)}")


def _tell_slow(events: soak_events.Events, changed: Sequence[Change], began: float) -> None:
    """Schema changes that were felt for too long, and what went on then."""
    for change in changed:
        if change.recovery > RECOVERY_SECONDS:
            at = change.committed - began
            meanwhile = _meanwhile(events, began, at - _BEFORE_SECONDS, at + change.recovery)
            print(
                f"{at:8.2f} s  schema change: {change.recovery:.1f} s, {change.failures} failures; {meanwhile}"
            )


def _meanwhile(events: soak_events.Events, began: float, since: float, until: float) -> str:
    """The events between two times, in seconds after the beginning."""
    return ", ".join(f"{name} at {at - began:.1f}" for at, name in events.log if since <= at - began <= until)


def figures(
    verdict: Verdict, changed: Sequence[Change], left: Sequence[str], ended_badly: Sequence[str]
) -> list[Figure]:
    """Those of the soak, and how long schema changes were felt."""
    recovered = [change.recovery for change in changed]
    return [
        Figure("wrong_answers", verdict.wrong, "answers", 0),
        Figure("stuck_connections", len(left), "server connections", 0),
        Figure("crashes", len(ended_badly), "processes", 0),
        Figure("unexplained_errors", verdict.unexplained, "errors", 0),
        Figure("statements", verdict.statements, "statements"),
        Figure("stale_plans", verdict.explained, "errors after a schema change"),
        Figure("stale_plans_repeated", verdict.repeated, "of them not the connection's first"),
        Figure("ddl_recovery_s", percentile(recovered, 99), "s, p99", RECOVERY_SECONDS),
        Figure("ddl_recovery_p50_s", percentile(recovered, 50), "s"),
        Figure("ddl_changes", len(recovered), "schema changes"),
    ]
