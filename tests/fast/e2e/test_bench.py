"""The benchmarks' arithmetic: figures, the audit log, the fleet, and when a fleet counts as complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from e2e.bench import fleet
from e2e.bench.audit import AuditLog, Write
from e2e.bench.figures import Figure, document, median, percentile, table
from e2e.bench.reconcile import incomplete, latencies
from poolkeeper.spec import parse

UPSTREAM = fleet.Upstream("127.0.0.1", 5432, "shop", "shop_owner", "a password")


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99
    assert percentile([3.0, 1.0], 99) == 3
    assert percentile([7.0], 50) == 7
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_median_of_an_even_number_is_between() -> None:
    assert median([4.0, 1.0, 3.0]) == 3
    assert median([4.0, 1.0]) == 2.5


def test_a_target_is_the_most_that_is_accepted() -> None:
    assert Figure("writes", 0, "writes", 0).ok
    assert Figure("writes", 1, "writes", 0).ok is False
    assert Figure("told", 1, "s").ok is None


def test_a_target_may_be_the_least_that_is_accepted() -> None:
    assert Figure("ratio", 15, "x", 15, at_least=True).ok
    assert Figure("ratio", 14.9, "x", 15, at_least=True).ok is False
    assert ">= 15" in table([Figure("ratio", 16, "x", 15, at_least=True)])


def test_table_and_document_tell_what_is_missed() -> None:
    figures = [
        Figure("edit_p50_s", 0.05, "s", 0.15),
        Figure("edit_p99_s", 2.0, "s", 1.0),
        Figure("told", 3, "s"),
    ]
    lines = table(figures).splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["met", "MISSED", "s"]
    written: dict[str, Any] = json.loads(json.dumps(document(figures, "a machine", "abc")))
    assert written["machine"] == "a machine"
    assert written["commit"] == "abc"
    assert written["figures"][1] == {
        "name": "edit_p99_s",
        "value": 2.0,
        "unit": "s",
        "target": 1.0,
        "at_least": False,
        "ok": False,
    }


def test_every_pooled_database_of_the_fleet_is_valid_and_has_its_secret() -> None:
    bodies = list(fleet.pooled_databases(0, 50, UPSTREAM))
    secrets = {
        (body["metadata"]["namespace"], body["metadata"]["name"]) for body in fleet.secrets(0, 50, UPSTREAM)
    }
    willing = {
        body["metadata"]["name"]: body["metadata"]["annotations"].get("poolkeeper.io/accept-from")
        for body in fleet.namespaces()
    }
    for number, body in enumerate(bodies):
        body["metadata"] |= {"uid": str(number), "generation": 1}
        parsed = parse.parse(body)
        assert (parsed.namespace, parsed.name) == fleet.location(number)
        assert {(parsed.namespace, name) for name in parsed.upstream.secret_names()} <= secrets
        assert willing[str(parsed.consumers[0].namespace)] == parsed.namespace
    assert len({(body["metadata"]["namespace"], body["metadata"]["name"]) for body in bodies}) == 50


def test_a_replayed_object_holds_what_its_owner_wrote() -> None:
    live = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "a", "namespace": "b", "labels": {"c": "d"}, "uid": "e", "managedFields": []},
        "data": {"f": "Zw=="},
        "status": {},
    }
    assert fleet.as_applied(live) == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "a", "namespace": "b", "labels": {"c": "d"}},
        "data": {"f": "Zw=="},
    }


def line(user: str, resource: str, name: str, second: int, **more: Any) -> str:
    stamp = f"2026-01-01T00:00:{second:02d}.000000Z"
    event = {
        "user": {"username": user},
        "verb": "patch",
        "objectRef": {"resource": resource, "namespace": "data-0", "name": name, **more},
        "responseStatus": {"code": 200},
        "requestReceivedTimestamp": stamp,
        "stageTimestamp": stamp.replace(".000", ".250"),
    }
    return json.dumps(event) + "\n"


def test_the_audit_log_is_read_forward_by_whole_lines_without_leases(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    status = line("operator", "pooleddatabases", "shop", 1, subresource="status")
    path.write_text(status + line("operator", "leases", "poolkeeper", 1) + status[:20])
    log = AuditLog(path)
    [write] = log.new()
    assert (write.user, write.resource, write.name) == ("operator", "pooleddatabases/status", "shop")
    assert write.answered - write.received == 0.25
    with path.open("a") as appended:
        appended.write(status[20:])
    assert len(log.new()) == 1
    assert log.new() == []


def write(user: str, resource: str, name: str, received: float, answered: float, code: int = 200) -> Write:
    return Write(user, "patch", resource, "data-0", name, code, received, answered)


def test_an_edit_lasts_until_its_config_secret_is_first_written() -> None:
    writes = [
        write("admin", "pooleddatabases", "shop-0001", 10.0, 10.1),
        write("operator", "secrets", "shop-0001-pooler-config", 10.2, 10.3, code=409),
        write("operator", "secrets", "shop-0001-pooler-config", 10.4, 10.5),
        write("operator", "secrets", "shop-0001-pooler-config", 10.6, 10.7),
        write("operator", "pooleddatabases/status", "shop-0001", 10.6, 10.8),
    ]
    assert latencies(writes) == [pytest.approx(0.5)]
    with pytest.raises(KeyError):
        latencies(writes[:2])


def resource(**status: str) -> fleet.Object:
    conditions = {"Ready": "False", "UpstreamReachable": "True", "ConsumersSynced": "True", **status}
    return {
        "metadata": {"generation": 2},
        "status": {
            "observedGeneration": 2,
            "conditions": [{"type": kind, "status": value} for kind, value in conditions.items()],
        },
    }


def test_a_fleet_is_complete_once_every_child_and_every_status_is_there() -> None:
    complete = [resource(), resource()]
    assert incomplete(complete, 18, 2) is None
    assert incomplete(complete, 17, 2) == "17 of 18 children"
    assert incomplete([resource(), {"metadata": {"generation": 1}}], 18, 2) == "1 of 2 statuses"
    assert incomplete([resource(), resource(UpstreamReachable="Unknown")], 18, 2) == "1 of 2 statuses"
    outdated = resource()
    outdated["metadata"]["generation"] = 3
    assert incomplete([resource(), outdated], 18, 2) == "1 of 2 statuses"
