"""One PooledDatabase that selects very many namespaces: no step blocks the event loop, and a restart goes on.

On a control plane of its own, since its operators watch the whole cluster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolkeeper.workers.offload import AT_ONCE
from tests.apiserver.operator.api_proxy import Answer, Call
from tests.apiserver.operator.operator_process import ROOT
from tests.apiserver.operator.site import Lane, Site, eventually

COUNT = AT_ONCE + 150
STEP_SECONDS = 0.25
"""Of processor time, since the machine may be busy with something else. Without batches and a thread, one took
0.96 s."""
SITE = """
import asyncio, time

run = asyncio.Handle._run

def timed(handle):
    started = time.thread_time()
    run(handle)
    took = time.thread_time() - started
    if took > {limit}:
        print(f"a step took {{took:.3f}} s: {{handle!r}}", flush=True)

asyncio.Handle._run = timed
"""


@pytest.fixture
def own_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site.opened(tmp_path_factory.mktemp("many-site")) as made:
        yield made


def consumers(logins: dict[str, str] | None) -> dict[str, str]:
    return {key: value for key, value in (logins or {}).items() if key.startswith("consumer.")}


def test_very_many_consumers_at_once(own_site: Site, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE.format(limit=STEP_SECONDS))
    lane = Lane(own_site)
    for number in range(COUNT):
        name = f"{lane.name}-{number:04}"
        own_site.create_namespace(name, accept_from=lane.data, labels={"lane": lane.name})
    options: dict[str, Any] = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT / "operator")))}
    operator = own_site.operator(fresh=True, **options)
    stored: list[Call] = []

    def second_store(call: Call) -> Answer | None:
        if call.is_write and call.path.endswith("/secrets/shop-pooler-logins"):
            stored.append(call)
            return Answer(503, "ServiceUnavailable", "not now") if len(stored) > 1 else None
        return None

    operator.gate.fault = second_store
    operator.start()
    lane.apply(consumers=[{"namespaceSelector": {"matchLabels": {"lane": lane.name}}}])
    eventually(lambda: len(stored) > 1, 60)
    before = consumers(lane.secret(lane.data, "shop-pooler-logins"))
    assert len(before) == AT_ONCE
    operator.kill()
    operator.reap()
    operator.gate.fault = lambda call: None
    operator.start()
    lane.synced(COUNT, seconds=120)
    after = consumers(lane.secret(lane.data, "shop-pooler-logins"))
    assert len(after) == COUNT
    assert before.items() <= after.items()
    assert "a step took" not in operator.said(), operator.said()
    assert "Traceback" not in operator.said()
