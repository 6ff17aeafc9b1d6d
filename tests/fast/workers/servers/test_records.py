"""Records in Secrets that are in the hands of their namespace: forged ones, and ones that can't be written."""

from __future__ import annotations

import contextlib
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from poolkeeper import names
from poolkeeper.budget import allotments
from poolkeeper.budget.allotments import Stored
from poolkeeper.budget.problems import NOT_STORED
from poolkeeper.budget.protocol import Allotment, Record
from poolkeeper.kube.client import Conflict, Refused, Retry
from poolkeeper.observed.refs import Key
from poolkeeper.queue import Queue
from poolkeeper.settings import Settings
from poolkeeper.store.own_secrets import OwnSecrets
from poolkeeper.store.store import Store
from poolkeeper.workers.servers.records import FENCED_SECONDS, RETRY_SECONDS, TERM_WRITES, Records

KEY = Key("data", "shop")
TERM = 7
OWN = TERM * TERM_WRITES
ALLOTTED = {"pod": Allotment(5, 1, {"shop": 5})}


class Scene:
    """A PooledDatabase's Secret, an API server that answers as told, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def work(_: Key) -> None:
            raise AssertionError("nothing works here")

        self.now = 1000.0
        self.answer: Exception | None = None
        self.writes = 0
        self.leads = SimpleNamespace(term=TERM, renewed=self.now)
        self.stored: Stored | None = None
        self.store = Store(Settings(namespace="poolkeeper", identity="test"))
        monkeypatch.setattr(OwnSecrets, "stored", lambda _, key: self.stored)
        monkeypatch.setattr(Store, "observe", lambda _, obj: frozenset())
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        cluster: Any = self
        self.records = Records(cluster, self.store, Queue(work, 1), self.leads)

    async def apply(self, body: Any, manager: str) -> Any:
        self.writes += 1
        assert manager == names.BUDGET_MANAGER
        if self.answer is not None:
            raise self.answer
        return body

    async def get(self, _: object) -> Any:
        return {}

    def seen(self, epoch: int, version: str = "1") -> None:
        self.stored = Stored(Record(epoch, ALLOTTED), "system", "uid", version)

    async def write(self) -> bool:
        assert self.stored is not None
        return await self.records.write(KEY, self.stored, {"a": "b"})


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


@pytest.mark.parametrize("epoch", [OWN + 1, (TERM + 1) * TERM_WRITES, 10**15, 10**300])
async def test_a_later_operators_record_is_believed_until_this_one_still_leads(
    scene: Scene, epoch: int
) -> None:
    """Attack 8: `epoch: 10**15` in its own Secret."""
    scene.seen(epoch)
    for _ in range(3):
        assert scene.records.of(KEY) == Record(epoch, ALLOTTED)
        scene.now += 1.0
    scene.leads.renewed = scene.now - 3.0  # the renewal was sent when the Record became known
    assert scene.records.of(KEY).epoch == epoch
    scene.leads.renewed = scene.now - 0.5
    assert scene.records.of(KEY) == Record(0, ALLOTTED), "what its pods may hold still counts"


async def test_each_version_of_a_record_is_believed_anew(scene: Scene) -> None:
    scene.seen(10**15)
    scene.records.of(KEY)
    scene.now += 1.0
    scene.leads.renewed = scene.now
    assert scene.records.of(KEY).epoch == 0
    scene.seen(10**15, version="2")
    assert scene.records.of(KEY).epoch == 10**15
    scene.now += 1.0
    assert scene.records.of(KEY).epoch == 10**15
    scene.leads.renewed = scene.now
    assert scene.records.of(KEY).epoch == 0


@pytest.mark.parametrize("epoch", [0, 1, OWN - 1, OWN])
async def test_earlier_records_are_what_they_are(scene: Scene, epoch: int) -> None:
    scene.seen(epoch)
    for _ in range(3):
        assert scene.records.of(KEY).epoch == epoch
        scene.now += 10.0
        scene.leads.renewed = scene.now


async def test_a_record_that_cannot_be_written_is_told_and_tried_again_now_and_then(scene: Scene) -> None:
    """Attack 8: the Secret is immutable, or full."""
    scene.seen(OWN - TERM_WRITES)
    scene.answer = Refused("Invalid", "Secret is immutable")
    for _ in range(100):
        assert not await scene.write()
        scene.now += RETRY_SECONDS / 100
    assert scene.writes == 1
    [problem] = scene.records.refusal(KEY)
    assert problem.reason == NOT_STORED
    assert "Secret shop-pooler-config" in problem.message
    assert "Secret is immutable; delete the Secret" in problem.message
    scene.now += RETRY_SECONDS
    assert not await scene.write()
    assert scene.writes == 2
    scene.now += RETRY_SECONDS
    scene.answer = None
    assert await scene.write()
    assert scene.records.refusal(KEY) == ()


async def test_another_version_of_the_secret_is_another_chance(scene: Scene) -> None:
    scene.seen(OWN)
    scene.answer = Refused("Invalid", "Secret is immutable")
    assert not await scene.write()
    scene.seen(OWN, version="2")
    assert scene.records.refusal(KEY) == ()
    scene.answer = None
    assert await scene.write()


async def test_it_fences_once_no_write_of_an_earlier_operator_can_be_under_way(scene: Scene) -> None:
    earlier = OWN - TERM_WRITES
    scene.seen(earlier)
    scene.answer = Refused("Invalid", "Secret is immutable")
    await scene.write()
    began = scene.now
    while scene.now < began + FENCED_SECONDS:
        assert scene.records.of(KEY).epoch == earlier
        scene.now += RETRY_SECONDS
        await scene.write()
    assert scene.records.of(KEY) == Record(OWN, ALLOTTED)
    scene.seen(earlier, version="2")
    assert scene.records.of(KEY).epoch == earlier


@pytest.mark.parametrize("answer", [Conflict("Conflict", "changed"), Retry("no answer")])
async def test_what_is_no_refusal_is_tried_again_at_once(scene: Scene, answer: Exception) -> None:
    scene.seen(OWN)
    scene.answer = answer
    for _ in range(3):
        with contextlib.suppress(Retry):
            assert not await scene.write()
    assert scene.writes == 3
    assert scene.records.refusal(KEY) == ()


def test_a_record_with_a_huge_epoch_is_read() -> None:
    text = json.dumps({"epoch": 10**300, "server": "a", "pods": {}})
    record, _ = allotments.parse({allotments.RECORD_FILE: text})
    assert record.epoch == 10**300
