"""Kill the operator before and after each of its writes: every run ends like one that nobody disturbed.

Bad input: operator killed at any write; write timed out after it took effect: same end state, no duplicates.
Writes of the budget are not among them, since the server doesn't tell who is connected: those have a test of
their own, with poolers that answer (test_operator_budget.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from poolkeeper.consumers.consent import Consumer
from tests.apiserver.client import Refused
from tests.apiserver.operator.api_proxy import AFTER, BEFORE
from tests.apiserver.operator.operator_process import Operator
from tests.apiserver.operator.site import Lane, Site, eventually, try_cell
from tests.apiserver.operator.snapshot import Snapshot, difference, snapshot

QUIET_SECONDS = 30.0
AT_ONCE = 6
SETTLE_SECONDS = 40.0
"""Generous: six operators start at once on two cores."""
STARTED = time.monotonic()
POD = "shop-pooler-pod"


@dataclass(frozen=True)
class Scenario:
    """`prepare` ends in a settled state; `act` is what the operator is killed over; `settled` is its end."""

    name: str
    prepare: Callable[[Lane], None]
    act: Callable[[Lane], None]
    settled: Callable[[Lane], None]
    consumers: Callable[[Lane], tuple[Consumer, ...]]


def _create(lane: Lane) -> None:
    lane.apply()


def _created(lane: Lane) -> None:
    lane.synced(2, seconds=0)
    lane.expect("UpstreamReachable", "True", "Reachable", seconds=0)


def _prepare_created(lane: Lane) -> None:
    _create(lane)
    eventually(lambda: _created(lane), SETTLE_SECONDS)
    lane.make_pod(POD, gate=True)
    lane.expect("WithinBudget", "Unknown", "ServerNotMeasured", seconds=SETTLE_SECONDS)
    eventually(lambda: "permission denied" in lane.condition("WithinBudget")["message"], SETTLE_SECONDS)


def _change(lane: Lane) -> None:
    lane.apply(
        pooler={"replicas": 3, "mode": "session", "parameters": {"stats_period": 7}},
        consumers=[{"namespace": lane.web}, {"namespace": lane.data, "secretName": "own"}],
    )


def _changed(lane: Lane) -> None:
    _created(lane)
    assert "0 of 3 pooler pods are ready" in lane.condition("PoolerAvailable")["message"]
    lane.expect("ConfigApplied", "Unknown", "NoPodReady", seconds=0)


def _delete(lane: Lane) -> None:
    lane.delete()
    threading.Thread(target=_end_pod_with_deployment, args=(lane,), daemon=True).start()


def _end_pod_with_deployment(lane: Lane) -> None:
    """What the garbage collector and kubelet do, which are not here."""

    def gone() -> bool:
        try:
            lane.get("Deployment", "shop-pooler")
        except Refused as refusal:
            return refusal.code == 404
        return False

    eventually(gone, SETTLE_SECONDS)
    lane.remove_pod(POD)


def _deleted(lane: Lane) -> None:
    kinds = [obj["kind"] for obj in lane.objects()]
    assert kinds == ["Secret"], kinds


SCENARIOS = (
    Scenario(
        "create",
        lambda lane: None,
        _create,
        _created,
        lambda lane: (Consumer(lane.web, "database"), Consumer(lane.backend, "shop-db")),
    ),
    Scenario(
        "change",
        _prepare_created,
        _change,
        _changed,
        lambda lane: (Consumer(lane.web, "database"), Consumer(lane.data, "own")),
    ),
    Scenario("delete", _prepare_created, _delete, _deleted, lambda lane: ()),
)


@dataclass
class Cell:
    """One run: the operator is killed `phase` the `number`th write of `scenario`. None: undisturbed."""

    scenario: Scenario
    number: int | None
    phase: str
    writes: list[str] = field(default_factory=list)
    end: Snapshot = field(default_factory=dict)
    trouble: str = ""
    quiet: threading.Thread | None = None

    @property
    def title(self) -> str:
        how = f"killed {self.phase} write {self.number}" if self.number is not None else "undisturbed"
        return f"{self.scenario.name}, {how}"


def run(site: Site, cell: Cell, reference: Snapshot | None) -> None:
    try_cell(site, "kill", cell, lambda lane, operator: _attempt(lane, operator, cell, reference))


def _attempt(lane: Lane, operator: Operator, cell: Cell, reference: Snapshot | None) -> None:
    """One cell, up to its settled end; its quiet window goes on in a thread of its own."""
    scenario = cell.scenario
    operator.start()
    try:
        scenario.prepare(lane)
        if cell.number is not None:
            operator.gate.kill_at(cell.number, cell.phase, operator.kill)
        first = len(operator.gate.writes)
        scenario.act(lane)
        if cell.number is not None:
            if not operator.gate.killed.wait(SETTLE_SECONDS):
                cell.trouble = "the operator never came to this write"
                return
            operator.reap()
            operator.start()
        cell.end = eventually(lambda: _settled(lane, cell, operator, reference), SETTLE_SECONDS, every=0.3)
    except AssertionError as error:
        cell.trouble = f"{error}\n{operator.said()[-3000:]}"
        print(cell.title, cell.trouble, flush=True)
        return
    finally:
        if cell.trouble:
            operator.close()
    print(f"{time.monotonic() - STARTED:5.0f} s: {cell.title}", flush=True)
    if cell.number is None:
        time.sleep(2)
        cell.writes = [str(call).replace(lane.name, "lane") for call in operator.gate.writes[first:]]
    cell.quiet = threading.Thread(target=_stay_quiet, args=(cell, lane, operator))
    cell.quiet.start()


def _settled(lane: Lane, cell: Cell, operator: Operator, reference: Snapshot | None) -> Snapshot:
    operator.keep_running()
    cell.scenario.settled(lane)
    found = snapshot(lane, cell.scenario.consumers(lane))
    if reference is not None:
        assert found == reference, difference(reference, found)
    return found


def _stay_quiet(cell: Cell, lane: Lane, operator: Operator) -> None:
    """From the settled end on, nothing is written for 30 s, and nothing is different after them."""
    before = len(lane.writes())
    time.sleep(QUIET_SECONDS)
    try:
        operator.keep_running()
        late = lane.writes()[before:]
        assert not late, f"settled, and then wrote {late}"
        after = snapshot(lane, cell.scenario.consumers(lane))
        assert after == cell.end, difference(cell.end, after)
    except AssertionError as error:
        cell.trouble = str(error)
    finally:
        operator.close()


@pytest.fixture(autouse=True)
def unmeasured(site: Site) -> Iterator[None]:
    """When the budget has looked hangs on chance, and with it how many writes there are."""
    site.postgres.measurable = False
    yield
    site.postgres.measurable = True


@pytest.mark.timeout(900)
def test_operator_killed_at_any_write_ends_in_the_same_state_and_then_writes_nothing(site: Site) -> None:
    started = time.monotonic()
    undisturbed = [Cell(scenario, None, "") for scenario in SCENARIOS]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda cell: run(site, cell, None), undisturbed))
    assert not [cell.trouble for cell in undisturbed if cell.trouble]
    cells = [
        Cell(reference.scenario, number, phase)
        for reference in undisturbed
        for number in range(1, len(reference.writes) + 1)
        for phase in (BEFORE, AFTER)
    ]
    ends = {cell.scenario.name: cell.end for cell in undisturbed}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda cell: run(site, cell, ends[cell.scenario.name]), cells))
    for cell in undisturbed + cells:
        if cell.quiet is not None:
            cell.quiet.join()
    for reference in undisturbed:
        print(f"\n{reference.scenario.name}: {len(reference.writes)} writes")
        print("\n".join(f"  {write}" for write in reference.writes))
    took = time.monotonic() - started
    print(f"kill matrix: {len(cells)} runs beside {len(undisturbed)} undisturbed ones, {took:.0f} s")
    failed = [f"{cell.title}: {cell.trouble}" for cell in undisturbed + cells if cell.trouble]
    assert not failed, f"{len(failed)} of {len(cells)}\n" + "\n\n".join(failed)
