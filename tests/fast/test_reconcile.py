"""Which of two failed logins is reported: the operator's own, or the one through a pooler."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from poolkeeper.observed.refs import Key
from poolkeeper.reconcile import Reconciler
from poolkeeper.settings import Settings
from poolkeeper.store.store import Store
from poolkeeper.store.upstreams import Upstreams
from poolkeeper.upstream import faults
from poolkeeper.upstream.target import Target
from poolkeeper.workers import upstream
from poolkeeper.workers.upstream import POOLER_REFUSED, REACHABLE, UNEXPECTED, Observation

KEY = Key("data", "shop")
TARGET = Target("pg", 5432, "shop", "owner", "wrong", "disable", None)


@pytest.mark.parametrize(
    ("own", "through", "shown"),
    [
        (faults.DNS_FAILED, faults.AUTHENTICATION_FAILED, faults.AUTHENTICATION_FAILED),
        (faults.TIMEOUT, faults.DATABASE_MISSING, faults.DATABASE_MISSING),
        (faults.CONNECTION_REFUSED, faults.TOO_MANY_CONNECTIONS, faults.TOO_MANY_CONNECTIONS),
        (faults.UNAVAILABLE, faults.AUTHENTICATION_FAILED, faults.AUTHENTICATION_FAILED),
        (UNEXPECTED, faults.AUTHENTICATION_FAILED, faults.AUTHENTICATION_FAILED),
        (faults.DNS_FAILED, faults.TIMEOUT, faults.DNS_FAILED),
        (faults.DNS_FAILED, faults.TLS_FAILED, faults.DNS_FAILED),
        (faults.DNS_FAILED, POOLER_REFUSED, faults.DNS_FAILED),
        (faults.DNS_FAILED, UNEXPECTED, faults.DNS_FAILED),
        (faults.DNS_FAILED, REACHABLE, "ReachableThroughPooler"),
        (faults.AUTHENTICATION_FAILED, REACHABLE, faults.AUTHENTICATION_FAILED),
    ],
)
async def test_of_two_failures_the_more_telling_one_is_reported_f8(
    own: str, through: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def probe(*_: object) -> Observation:
        return Observation(False, own, "the operator's own")

    async def trial_login(*_: object) -> Observation:
        return Observation(through == REACHABLE, through, "the pooler's")

    monkeypatch.setattr(upstream, "probe", probe)
    monkeypatch.setattr(upstream, "trial_login", trial_login)
    settings = Settings(namespace="poolkeeper", identity="test")
    store = Store(settings)
    cluster: Any = None
    trial = SimpleNamespace(pod=SimpleNamespace(ip="10.0.0.1"), access=None, login=None, entry="shop--web")
    steps: Any = SimpleNamespace(trial=trial)
    found: list[Any] = []
    monkeypatch.setattr(Upstreams, "probed", lambda _, key, seen: found.append(seen))
    await Reconciler(cluster, store, settings, SimpleNamespace(term=1, renewed=0.0))._probe_upstream(
        KEY, TARGET, steps
    )
    [seen] = found
    assert seen.reason == shown
    assert seen.reachable == (shown == "ReachableThroughPooler")
    assert seen.message == ("the operator's own" if shown == own else "the pooler's")
