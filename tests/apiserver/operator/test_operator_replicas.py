"""Several operator processes: one works, another takes over; restarts write nothing; no log has a password."""

from __future__ import annotations

import base64
import itertools
import json
import time

import pytest

from tests.apiserver.client import Refused
from tests.apiserver.operator.api_proxy import Answer
from tests.apiserver.operator.operator_process import OPERATOR_NAMESPACE, Operator
from tests.apiserver.operator.site import PASSWORD, Lane, Site, decoded, eventually, path

TAKEOVER_SECONDS = 10.0
HANDOVER_SECONDS = 3.0
_leases = itertools.count(1)


@pytest.fixture
def pair(site: Site, lane: Lane) -> tuple[Operator, Operator]:
    """Two replicas of one release; the first one leads."""
    lease = f"pair-{next(_leases)}"
    first = site.operator(lane.namespaces, fresh=True, lease=lease).start()
    eventually(lambda: f"{first.identity} leads" in first.said(), 20)
    second = site.operator(lane.namespaces, fresh=True, lease=lease).start()
    lane.apply()
    lane.synced(2)
    lane.expect("UpstreamReachable", "True", "Reachable")
    eventually(lambda: _watches(second), 10)
    return first, second


def _watches(operator: Operator) -> bool:
    return any("/leases" in call.path for _, call in operator.gate.calls)


def edited_within(lane: Lane, seconds: float) -> float:
    """Until an edit is carried out; how long it took."""
    started = time.monotonic()
    lane.apply(pooler={"replicas": 6})
    eventually(lambda: lane.get("Deployment", "shop-pooler")["spec"]["replicas"] == 6, seconds, every=0.02)
    return time.monotonic() - started


def test_two_operator_replicas_one_works_and_the_other_takes_over_after_kill_9(
    lane: Lane, pair: tuple[Operator, Operator]
) -> None:
    first, second = pair
    assert first.gate.writes
    assert not second.gate.writes
    first.kill()
    first.reap()
    took = edited_within(lane, TAKEOVER_SECONDS + 2)
    print(f"takeover after kill -9: {took:.1f} s")
    assert second.gate.writes


def test_two_operator_replicas_the_other_takes_over_at_once_after_a_clean_stop(
    lane: Lane, pair: tuple[Operator, Operator]
) -> None:
    first, second = pair
    assert first.terminate() == 0, first.said()[-2000:]
    took = edited_within(lane, HANDOVER_SECONDS)
    print(f"takeover after a clean stop: {took:.1f} s")
    assert second.gate.writes


def test_a_leader_that_loses_its_lease_ends_before_another_may_work(
    site: Site, lane: Lane, pair: tuple[Operator, Operator]
) -> None:
    """Cut off from the Lease alone, it could still write."""
    first, second = pair
    cut = Answer(503, "ServiceUnavailable", "cut off")
    first.gate.fault = lambda call: cut if "/leases" in call.path else None
    assert first.reap() == 1
    assert f"{second.identity} leads" not in second.said()
    assert not second.gate.writes
    eventually(lambda: f"{second.identity} leads" in second.said(), TAKEOVER_SECONDS)


def test_restart_over_settled_objects_writes_nothing(lane: Lane, pair: tuple[Operator, Operator]) -> None:
    first, second = pair
    lane.make_pod("p")
    lane.expect("ConfigApplied", "False", "NotShown")
    time.sleep(1)
    before = lane.writes()
    assert first.terminate() == 0
    eventually(lambda: f"{second.identity} leads" in second.said(), HANDOVER_SECONDS)
    time.sleep(6)
    assert second.terminate() == 0
    first.start()
    time.sleep(6)
    assert lane.writes()[len(before) :] == []


def test_a_lease_of_somebody_who_is_gone_is_taken_and_the_release_is_clean(site: Site, lane: Lane) -> None:
    lease = f"left-{next(_leases)}"
    spec = {"holderIdentity": "nobody", "leaseDurationSeconds": 2, "renewTime": "2020-01-01T00:00:00.000000Z"}
    body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": lease}, "spec": spec}
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases"
    site.api.create(leases, body)
    running = site.operator(lane.namespaces, lease=lease).start()
    eventually(lambda: site.api.get(f"{leases}/{lease}")["spec"]["holderIdentity"] == running.identity, 10)
    assert running.terminate() == 0
    assert not site.api.get(f"{leases}/{lease}")["spec"].get("holderIdentity")


def test_no_password_in_a_log_at_debug_level_an_annotation_the_status_or_an_event(
    site: Site, lane: Lane
) -> None:
    running = site.operator(lane.namespaces, fresh=True, log_level="DEBUG").start()
    rotated, wrong, broken = "Rotated-Pass-1", "Wrong-Pass-2", "Broken\nPass-3"
    site.postgres.passwords.add(rotated)
    known = {PASSWORD, rotated, wrong, broken, "Pass-3", "UrlPass-4"}
    lane.apply()
    lane.synced(2)
    known |= secret_values(lane)
    lane.make_pod("p")
    lane.put_source(username="o", password=rotated)
    eventually(lambda: rotated in (lane.secret(lane.data, "shop-pooler-logins") or {})["upstream"], 10)
    lane.put_source(username="o", password=wrong)
    lane.expect("UpstreamReachable", "False", "AuthenticationFailed")
    lane.put_source(username="o", password=broken)
    lane.expect("UpstreamReachable", "False", "InvalidValue")
    lane.put_source("url", uri=f"postgres://o:UrlPass-4@127.0.0.1:{site.postgres.port}/shop?sslmode=bogus")
    lane.apply(upstream={"uriSecretRef": {"name": "url"}})
    lane.expect("UpstreamReachable", "False", "InvalidUri")
    lane.put_source("url", uri=f"postgres://o:UrlPass-4@127.0.0.1:{site.postgres.port}/shop?sslmode=disable")
    lane.expect("UpstreamReachable", "False", "AuthenticationFailed")
    lane.api.delete(path("Secret", lane.data, "shop-pooler-logins"))
    eventually(lambda: lane.secret(lane.data, "shop-pooler-logins") is not None, 10)
    known |= secret_values(lane)
    lane.delete()
    # Two Secrets stay as long as the pod: what it may hold of the server, and the login to its console.
    eventually(lambda: len(lane.children()) == 2, 10)
    public = [{**obj, "data": None} for obj in lane.objects()]
    lane.remove_pod("p")

    def deleted() -> bool:
        try:
            lane.resource()
        except Refused as refusal:
            return refusal.code == 404
        return False

    eventually(deleted, 10)
    assert not lane.children()
    texts = {"the log": running.said(), "objects": json.dumps(public), "Events": json.dumps(lane.events())}
    assert "DEBUG" in texts["the log"]
    assert lane.events()
    encoded = {base64.b64encode(value.encode()).decode() for value in known}
    for where, text in texts.items():
        found = [len(value) for value in known | encoded if value in text]
        assert not found, f"{where}: {len(found)} secret values"


def secret_values(lane: Lane) -> set[str]:
    """Every password and verifier in the lane's Secrets."""
    found: set[str] = set()
    for obj in lane.objects():
        if obj["kind"] != "Secret":
            continue
        for key, value in decoded(obj).items():
            if obj["metadata"]["name"].endswith("-logins"):
                parts = json.loads(value)
                found |= {str(parts[part]) for part in ("password", "verifier", "check") if part in parts}
            elif key in (
                "password",
                "PGPASSWORD",
                "DATABASE_URL",
                "DATABASE_SESSION_URL",
                "uri",
                "session-uri",
            ):
                found.add(value)
    return found


@pytest.mark.parametrize("moment", ["status", "objects"])
def test_status_and_annotations_hold_no_secret_value(site: Site, lane: Lane, moment: str) -> None:
    """While everything stands, too: only Secrets' data hold them."""
    site.operator(lane.namespaces).start()
    lane.apply()
    lane.synced(2)
    known = secret_values(lane) | {PASSWORD}
    assert len(known) > 8
    public = [{**obj, "data": None} for obj in lane.objects()]
    text = json.dumps(lane.resource()["status"] if moment == "status" else public)
    assert not [len(value) for value in known if value in text]
