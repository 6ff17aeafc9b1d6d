"""The budget on a real API server, with a real PostgreSQL and real PgBouncers in pods that wait to be let in.

Bad input: two writers of one Secret; a write planned on what is old; the Secret deleted by hand; the operator
killed at every write.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolkeeper import names
from poolkeeper.budget import allotments
from poolkeeper.budget.allotments import RECORD_FILE, Stored
from poolkeeper.budget.protocol import Record
from poolkeeper.consumers.consent import Consumer
from poolkeeper.consumers.entries import entry_name, session_entry_name
from tests.apiserver.client import Refused
from tests.apiserver.operator.api_proxy import AFTER, BEFORE, Answer, Call
from tests.apiserver.operator.operator_process import OPERATOR_NAMESPACE, Operator
from tests.apiserver.operator.pooler_pod import Network, WaitingPod, quiet
from tests.apiserver.operator.site import Lane, Site, eventually, history, path, try_cell
from tests.pgbouncer.processes import Postgres

USABLE = 60 - 3 - 5 - 1
"""max_connections, superuser_reserved_connections, spec.budget.reserve, and the operator's own connection."""
QUIET_SECONDS = 30.0
AT_ONCE = 6
SETTLE_SECONDS = 60.0
MOST_BYTES = 1 << 20
"""Of all values of a Secret."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Network.postgres(tmp_path_factory.mktemp("upstream")) as made:
        made.create_role("shop_owner", "password")
        yield made


class Place:
    """A PooledDatabase whose pods wait; a database of its own, so that lanes can be told apart."""

    def __init__(self, lane: Lane, operator: Operator, server: Postgres, directory: Path) -> None:
        self.lane, self.operator, self.server, self.directory = lane, operator, server, directory
        server.create_database("shop")
        lane.put_source(username="shop_owner", password="password")
        self.apply()
        lane.synced(1, seconds=SETTLE_SECONDS)

    def apply(self, **changes: Any) -> None:
        host = {"host": self.server.host, "port": self.server.port, "database": "shop"}
        upstream = {**host, "credentialsSecretRef": {"name": "shop-owner"}, "tls": {"mode": "disable"}}
        self.lane.apply(upstream=upstream, **{"consumers": [{"namespace": self.lane.web}], **changes})

    def pod(self, number: int = 1) -> WaitingPod:
        return WaitingPod(self.lane, number, self.directory / f"pod-{number}")

    @property
    def entries(self) -> set[str]:
        consumer = Consumer(self.lane.web, "database")
        return {entry_name("shop", consumer), session_entry_name("shop", consumer)}

    @property
    def secret_path(self) -> str:
        return path("Secret", self.lane.data, names.config_name("shop"))

    def files(self) -> dict[str, str]:
        return self.lane.secret(self.lane.data, names.config_name("shop")) or {}

    def record(self) -> Record:
        return allotments.parse(self.files())[0]

    def uid(self, pod: WaitingPod) -> str:
        return str(self.lane.get("Pod", pod.name)["metadata"]["uid"])

    def admitted(self, pod: WaitingPod) -> bool:
        conditions = {
            item["type"]: item["status"] for item in self.lane.get("Pod", pod.name)["status"]["conditions"]
        }
        return conditions.get(names.GATE) == "True" and conditions["Ready"] == "True"

    def shares(self, pods: list[WaitingPod], held: int) -> None:
        """Fails unless these pods have everything there is, all entries in their tables, and are let in."""
        record, files = self.record(), self.files()
        uids = {self.uid(pod) for pod in pods}
        assert record.allotments.keys() == uids, record
        for uid, item in record.allotments.items():
            assert item.caps.keys() == self.entries, item
            assert item.bound == sum(item.caps.values()), item
            table = files[allotments.table_file(uid)]
            assert table.startswith(f"syslog_ident = caps-{item.revision}\n")
            for entry, cap in item.caps.items():
                [line] = [line for line in table.splitlines() if line.startswith(f"{entry} = ")]
                assert f" max_db_connections={cap} " in line
        assert sum(item.bound for item in record.allotments.values()) == held, record
        assert all(self.admitted(pod) for pod in pods)


@pytest.fixture
def place(site: Site, lane: Lane, server: Postgres, tmp_path: Path) -> Place:
    return Place(lane, site.operator(lane.namespaces).start(), server, tmp_path)


def settled(place: Place, pods: list[WaitingPod], held: int = USABLE) -> None:
    eventually(lambda: place.shares(pods, held), SETTLE_SECONDS)
    place.lane.expect("WithinBudget", "True", "WithinBudget", seconds=20)


def still(lane: Lane) -> bool:
    """Whether nothing is written for a while: the status follows the budget."""
    before = len(lane.writes())
    time.sleep(4)
    return len(lane.writes()) == before


def test_a_pod_gets_its_table_then_clients_then_nothing_is_written(place: Place) -> None:
    pod = place.pod()
    with pod.pgbouncer():
        settled(place, [pod])
        with pod.connect() as client:
            assert client.execute("SELECT 1").fetchone() == (1,)
        eventually(lambda: still(place.lane), SETTLE_SECONDS)
        quiet(place.lane, 10)
    assert place.lane.resource()["status"]["budget"]["held"] == USABLE


def test_c6_a_consumer_that_fills_its_client_slots_is_named_once_and_ready_stays(place: Place) -> None:
    place.apply(pooler={"parameters": {"max_client_conn": 12}})
    pod = place.pod()
    with pod.pgbouncer(), contextlib.ExitStack() as clients:
        settled(place, [pod])
        place.lane.expect("ClientSlots", "True", "Available", seconds=20)
        for _ in range(5):
            clients.enter_context(pod.connect())
        last = clients.enter_context(pod.connect())
        with pytest.raises(psycopg.OperationalError, match="client connections exceeded"):
            pod.connect()
        place.lane.expect("ClientSlots", "False", "ConsumerAtLimit", seconds=10)
        words = {item["type"]: item["message"] for item in place.lane.resource()["status"]["conditions"]}
        assert f"consumer {place.lane.web}/database has 6 clients at pod {pod.name}" in words["ClientSlots"]
        last.close()
        quiet(place.lane, 5)
        place.lane.expect("Ready", "True", "Ready", seconds=1)


def test_a_second_pod_gets_its_part_and_there_is_never_more_than_there_is(place: Place) -> None:
    first = place.pod(1)
    since = place.lane.get("Secret", names.config_name("shop"))["metadata"]["resourceVersion"]
    place.apply(pooler={"replicas": 2})
    with first.pgbouncer():
        settled(place, [first])
        second = place.pod(2)
        with second.pgbouncer(), first.connect() as client:
            settled(place, [first, second])
            assert client.execute("SELECT 1").fetchone() == (1,)
            smaller, larger = sorted(item.bound for item in place.record().allotments.values())
            assert larger - smaller <= len(place.entries)
    sums = [
        sum(item.bound for item in allotments.parse(data)[0].allotments.values())
        for state in history(place.lane.api, path("Secret", place.lane.data), since)
        if state["metadata"]["name"] == names.config_name("shop")
        for data in [{key: base64.b64decode(value).decode() for key, value in state["data"].items()}]
    ]
    assert len(sums) >= 4
    assert max(sums) == USABLE


def test_reconcile_and_the_budget_own_different_keys_of_the_secret(place: Place) -> None:
    pod = place.pod()
    with pod.pgbouncer():
        settled(place, [pod])
        live = place.lane.get("Secret", names.config_name("shop"))
        owned = {
            item["manager"]: {key.removeprefix("f:") for key in item["fieldsV1"].get("f:data", {})}
            for item in live["metadata"]["managedFields"]
        }
        budget = {key for key in live["data"] if key == RECORD_FILE or key.startswith("caps-")}
        assert owned[names.BUDGET_MANAGER] - {"."} == budget
        assert owned[names.MANAGER] - {"."} == live["data"].keys() - budget
        # What a reconcile run writes that saw the Secret before there was a Record.
        metadata = {key: live["metadata"][key] for key in ("name", "uid", "labels", "annotations")}
        old = {key: value for key, value in live["data"].items() if key not in budget}
        place.operator.kill()
        place.operator.reap()
        answer = place.lane.api.apply(
            place.secret_path,
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": old},
            names.MANAGER,
        )
        assert answer["data"] == live["data"]


def test_a_record_written_on_what_is_old_is_refused_by_the_api_server(place: Place) -> None:
    pod = place.pod()
    with pod.pgbouncer():
        settled(place, [pod])
        place.operator.kill()
        place.operator.reap()
        live = place.lane.get("Secret", names.config_name("shop"))
        record, found = allotments.parse(place.files())
        stored = Stored(record, found, live["metadata"]["uid"], live["metadata"]["resourceVersion"])
        place.lane.api.merge(place.secret_path, {"metadata": {"annotations": {"somebody": "was-here"}}})
        body = allotments.body(
            place.lane.data, names.config_name("shop"), stored, allotments.files(Record(0), found, {}, {})
        )
        with pytest.raises(Refused) as caught:
            place.lane.api.apply(place.secret_path, body, names.BUDGET_MANAGER)
        assert caught.value.code == 409
        assert place.record() == record


def test_a_record_that_is_refused_is_worked_out_anew(place: Place) -> None:
    """Somebody writes the Secret between the operator's look and its write, three times."""
    refused: list[str] = []

    def interfere(call: Call) -> Answer | None:
        if f"fieldManager={names.BUDGET_MANAGER}" in call.query and len(refused) < 3:
            refused.append(call.path)
            annotations = {"somebody": f"was-here-{len(refused)}"}
            place.lane.api.merge(place.secret_path, {"metadata": {"annotations": annotations}})
        return None

    place.operator.gate.fault = interfere
    pod = place.pod()
    with pod.pgbouncer():
        settled(place, [pod])
    assert len(refused) == 3
    assert "Traceback" not in place.operator.said()


def test_a_record_that_claims_to_be_a_later_operators_holds_nothing_up(place: Place) -> None:
    """Attack 8: `epoch: 10**15` in the Secret of one's own PooledDatabase."""
    first = place.pod(1)
    with first.pgbouncer():
        settled(place, [first])
        forged = json.loads(place.files()[RECORD_FILE]) | {"epoch": 10**15}
        text = base64.b64encode(json.dumps(forged).encode()).decode()
        place.lane.api.merge(place.secret_path, {"data": {RECORD_FILE: text}})
        second = place.pod(2)
        with second.pgbouncer():
            settled(place, [first, second])
    assert place.record().epoch < 10**15


def test_a_secret_that_is_full_is_told_and_its_deletion_mends_it(place: Place) -> None:
    """(One that is made immutable is replaced.)"""
    first = place.pod(1)
    with first.pgbouncer():
        settled(place, [first])
        size = sum(len(value.encode()) for value in place.files().values())
        junk = base64.b64encode(b"x" * (MOST_BYTES - size)).decode()
        place.lane.api.merge(place.secret_path, {"data": {"junk": junk}})
        second = place.pod(2)
        with second.pgbouncer():
            message = place.lane.expect("WithinBudget", "False", "NotStored", seconds=20)
            assert f"Secret {names.config_name('shop')}" in message
            place.lane.api.delete(place.secret_path)
            settled(place, [first, second])


def test_after_a_write_without_an_answer_a_restarted_operator_goes_on(
    site: Site, lane: Lane, server: Postgres, tmp_path: Path
) -> None:
    """Its identity is the same as before, as that of a container is; the Lease may have been deleted, too."""
    lost: list[str] = []

    def loses(call: Call) -> bool:
        if f"fieldManager={names.BUDGET_MANAGER}" in call.query and not lost:
            lost.append(call.path)
            return True
        return False

    operator = site.operator(lane.namespaces, lease=lane.name).start()
    place = Place(lane, operator, server, tmp_path)
    operator.gate.loses = loses
    pod = place.pod()
    with pod.pgbouncer():
        settled(place, [pod])
        assert lost
        lease = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases/{lane.name}"
        for consumers in ([lane.web, lane.backend], [lane.web]):
            before = place.record().epoch
            operator.kill()
            operator.reap()
            if len(consumers) == 1:
                lane.api.delete(lease)
            operator.start()
            place.apply(consumers=[{"namespace": item} for item in consumers])
            eventually(lambda before=before: place.record().epoch > before, SETTLE_SECONDS)
        settled(place, [pod])


def test_a_secret_deleted_by_hand_comes_back_with_what_the_console_shows(place: Place) -> None:
    pod = place.pod()
    with pod.pgbouncer():
        settled(place, [pod])
        before = place.record().allotments[place.uid(pod)]
        with pod.connect() as client, client.transaction():
            client.execute("SELECT 1")
            place.lane.api.delete(place.secret_path)
            settled(place, [pod])
            assert client.execute("SELECT 1").fetchone() == (1,)
        after = place.record().allotments[place.uid(pod)]
        assert after.caps == before.caps
        assert after.revision >= before.revision
        with pod.connect() as client:
            assert client.execute("SELECT 1").fetchone() == (1,)


def test_of_a_pod_that_is_gone_nothing_stays(place: Place) -> None:
    first, second = place.pod(1), place.pod(2)
    place.apply(pooler={"replicas": 2})
    with first.pgbouncer():
        with second.pgbouncer():
            settled(place, [first, second])
            stopped = {"terminated": {"exitCode": 0}}
            container = {
                "name": "pgbouncer",
                "image": "i",
                "imageID": "",
                "ready": False,
                "restartCount": 0,
                "state": stopped,
            }
            status = {"phase": "Succeeded", "containerStatuses": [container]}
        place.lane.api.merge(path("Pod", place.lane.data, second.name, "status"), {"status": status})
        place.lane.remove_pod(second.name)
        settled(place, [first])
        assert len([name for name in place.files() if name.startswith("caps-")]) == 1


# Killed at every write


@dataclass
class Cell:
    """A run in which a pod comes: the operator is killed `phase` the `number`th write. None: undisturbed."""

    number: int | None
    phase: str
    writes: list[str] = field(default_factory=list)
    trouble: str = ""

    @property
    def title(self) -> str:
        return f"killed {self.phase} write {self.number}" if self.number is not None else "undisturbed"


def run(site: Site, server: Postgres, directory: Path, cell: Cell) -> None:
    try_cell(site, "budget", cell, lambda lane, operator: attempt(lane, operator, server, directory, cell))


def attempt(lane: Lane, operator: Operator, server: Postgres, directory: Path, cell: Cell) -> None:
    """Each takes few connections of the server, since several run at once."""
    operator.start()
    try:
        place = Place(lane, operator, server, directory / lane.name)
        place.directory.mkdir()
        place.apply(budget={"maxConnections": 6})
        lane.expect("SpecValid", "True", "Valid", seconds=SETTLE_SECONDS)
        time.sleep(2)
        if cell.number is not None:
            operator.gate.kill_at(cell.number, cell.phase, operator.kill)
        first = len(operator.gate.writes)
        pod = place.pod()
        with pod.pgbouncer():
            if cell.number is not None:
                assert operator.gate.killed.wait(SETTLE_SECONDS), "the operator never came to this write"
                operator.reap()
                operator.start()
            settled(place, [pod], 6)
            eventually(lambda: still(lane), SETTLE_SECONDS)
            cell.writes = [str(call).replace(lane.name, "lane") for call in operator.gate.writes[first:]]
            record = place.record()
            quiet(lane, QUIET_SECONDS)
            assert place.record() == record
            with pod.connect() as client:
                assert client.execute("SELECT 1").fetchone() == (1,)
    except Exception as error:
        cell.trouble = f"{error!r}\n{operator.said()[-3000:]}"
    finally:
        operator.close()


@pytest.mark.timeout(900)
def test_operator_killed_at_any_write_of_the_budget_ends_in_the_same_state(
    site: Site, server: Postgres, tmp_path: Path
) -> None:
    undisturbed = Cell(None, "")
    run(site, server, tmp_path, undisturbed)
    assert not undisturbed.trouble, undisturbed.trouble
    print("\n".join(undisturbed.writes))
    assert [write for write in undisturbed.writes if write.endswith("secrets/shop-pooler-config")]
    assert [write for write in undisturbed.writes if write.endswith("pods/pooler-1/status")]
    cells = [
        Cell(number, phase)
        for number, write in enumerate(undisturbed.writes, 1)
        if write.endswith(("secrets/shop-pooler-config", "pods/pooler-1/status"))
        for phase in (BEFORE, AFTER)
    ]
    assert len(cells) > 8
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda cell: run(site, server, tmp_path, cell), cells))
    failed = [f"{cell.title}: {cell.trouble}" for cell in cells if cell.trouble]
    assert not failed, f"{len(failed)} of {len(cells)}\n" + "\n\n".join(failed)
