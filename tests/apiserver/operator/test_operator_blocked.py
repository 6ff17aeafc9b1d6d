"""An operator whose event loop is blocked: it keeps its Lease for a while, and gives it up in the end."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.apiserver.operator.operator_process import OPERATOR_NAMESPACE, ROOT, Operator
from tests.apiserver.operator.site import Lane, Site, eventually

BLOCKED_SECONDS = 20.0
TAKEOVER_SECONDS = 10.0
SITE = """
import os, signal, time

def block(*_):
    # Runs in the main thread, as any step of the event loop does, and lets other threads run now and then.
    until = time.monotonic() + float(os.environ["TEST_BLOCK_SECONDS"])
    while time.monotonic() < until:
        pass

signal.signal(signal.SIGUSR1, block)
"""
_numbers = itertools.count(1)


@pytest.fixture
def blockable(site: Site, lane: Lane, tmp_path: Path) -> Callable[[str, float], Operator]:
    """Makes operators whose event loop SIGUSR1 blocks for so many seconds."""
    (tmp_path / "sitecustomize.py").write_text(SITE)

    def make(lease: str, seconds: float) -> Operator:
        path = os.pathsep.join((str(tmp_path), str(ROOT / "operator")))
        options: dict[str, Any] = {"PYTHONPATH": path, "TEST_BLOCK_SECONDS": str(seconds)}
        return site.operator(lane.namespaces, fresh=True, lease=lease, **options)

    return make


def leads(operator: Operator) -> bool:
    return f"{operator.identity} leads" in operator.said()


def test_an_operator_whose_event_loop_is_blocked_keeps_its_lease_and_goes_on(
    site: Site, lane: Lane, blockable: Callable[[str, float], Operator]
) -> None:
    lease = f"blocked-{next(_numbers)}"
    first = blockable(lease, BLOCKED_SECONDS).start()
    eventually(lambda: leads(first), 20)
    second = site.operator(lane.namespaces, lease=lease).start()
    lane.apply()
    lane.synced(2)
    first.signal(signal.SIGUSR1)
    until = time.monotonic() + BLOCKED_SECONDS
    while time.monotonic() < until:
        assert first.running, first.said()[-2000:]
        assert not leads(second)
        time.sleep(0.5)
    lane.apply(consumers=[{"namespace": lane.web}])
    lane.synced(1)
    assert first.running
    assert not leads(second)
    target = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases/{lease}"
    assert site.api.get(target)["spec"]["holderIdentity"] == first.identity
    assert first.terminate() == 0, first.said()[-2000:]
    eventually(lambda: leads(second), TAKEOVER_SECONDS)


def test_an_operator_whose_event_loop_stays_blocked_ends_and_is_replaced(
    site: Site, lane: Lane, blockable: Callable[[str, float], Operator]
) -> None:
    lease = f"blocked-{next(_numbers)}"
    first = blockable(lease, 120.0).start()
    eventually(lambda: leads(first), 20)
    second = site.operator(lane.namespaces, lease=lease).start()
    first.signal(signal.SIGUSR1)
    eventually(lambda: not first.running, 80, every=0.5)
    assert first.reap() == 1
    assert "event loop has been blocked" in first.said()
    eventually(lambda: leads(second), TAKEOVER_SECONDS)
