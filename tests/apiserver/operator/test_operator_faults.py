"""What the API server and the way to it do wrong: it converges, loses no edit, and says what was refused."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from poolkeeper import names
from poolkeeper.__main__ import RECURSION_LIMIT
from poolkeeper.budget.allotments import RECORD_FILE
from poolkeeper.consumers.consent import Consumer
from poolkeeper.credentials.logins import AUTHORITIES_KEY
from tests.apiserver.operator.api_proxy import Answer, Call
from tests.apiserver.operator.operator_process import Operator
from tests.apiserver.operator.site import PATIENCE_SECONDS, Lane, Object, Site, eventually, path
from tests.apiserver.operator.snapshot import snapshot

CONFLICT = Answer(
    409, "Conflict", "the object has been modified; please apply your changes to the latest version"
)
UNAVAILABLE = Answer(503, "ServiceUnavailable", "etcdserver: leader changed")
RETRY_AFTER_SECONDS = 3


@pytest.fixture
def operator(site: Site, lane: Lane) -> Iterator[Operator]:
    running = site.operator(lane.namespaces).start()
    yield running
    assert "Traceback" not in running.said(), running.said()[-5000:]


@pytest.fixture
def settled(lane: Lane, operator: Operator) -> Lane:
    lane.apply()
    lane.synced(2)
    lane.expect("UpstreamReachable", "True", "Reachable")
    return lane


def both(lane: Lane) -> tuple[Consumer, ...]:
    return Consumer(lane.web, "database"), Consumer(lane.backend, "shop-db")


def converged(lane: Lane, *consumers: Consumer, seconds: float = PATIENCE_SECONDS) -> None:
    def check() -> None:
        lane.synced(len(consumers), seconds=0)
        lane.expect("UpstreamReachable", "True", "Reachable", seconds=0)
        snapshot(lane, consumers)

    eventually(check, seconds, every=0.2)


def quiet(lane: Lane, seconds: float = 6) -> None:
    """Longer than the interval at which what went wrong is looked at again."""
    before = lane.writes()
    time.sleep(seconds)
    assert lane.writes()[len(before) :] == []


def ini(lane: Lane) -> str:
    return (lane.secret(lane.data, "shop-pooler-config") or {}).get("pgbouncer.ini", "")


def proved(lane: Lane) -> str:
    """The upstream that poolers are to use, with its password."""
    return (lane.secret(lane.data, "shop-pooler-logins") or {}).get("upstream", "")


def writes_only(decide: Callable[[], Answer | None]) -> Callable[[Call], Answer | None]:
    return lambda call: decide() if call.is_write else None


def test_409_storms_converge_and_end_in_silence(lane: Lane, operator: Operator) -> None:
    """Two of three writes are refused with 409 for seconds, at creation, change and deletion."""
    numbers = itertools.count()
    storm = writes_only(lambda: CONFLICT if next(numbers) % 3 else None)

    def in_a_storm(act: Callable[[], object]) -> None:
        operator.gate.fault = storm
        act()
        time.sleep(4)
        operator.gate.fault = lambda call: None

    in_a_storm(lane.apply)
    converged(lane, *both(lane))
    parameters = {"parameters": {"query_wait_timeout": 21}}
    in_a_storm(lambda: lane.apply(pooler=parameters, consumers=[{"namespace": lane.web}]))
    eventually(lambda: "query_wait_timeout = 21" in ini(lane), PATIENCE_SECONDS)
    converged(lane, Consumer(lane.web, "database"))
    quiet(lane)
    in_a_storm(lane.delete)
    eventually(lambda: [obj["kind"] for obj in lane.objects()] == ["Secret"], PATIENCE_SECONDS)
    assert next(numbers) > 10


def test_429_with_retry_after_is_honoured(settled: Lane, operator: Operator) -> None:
    refused: list[float] = []

    def once() -> Answer | None:
        if refused:
            return None
        refused.append(time.monotonic())
        after = (("Retry-After", str(RETRY_AFTER_SECONDS)),)
        return Answer(429, "TooManyRequests", "too many requests, please try again later", after)

    operator.gate.fault = writes_only(once)
    settled.apply(pooler={"replicas": 4})
    eventually(lambda: settled.get("Deployment", "shop-pooler")["spec"]["replicas"] == 4, PATIENCE_SECONDS)
    converged(settled, *both(settled))
    after = [at - refused[0] for at, call in operator.gate.calls if call.is_write and at > refused[0] + 0.01]
    assert min(after) >= RETRY_AFTER_SECONDS * 0.95, after


def test_503_for_a_while_loses_no_edit(settled: Lane, operator: Operator) -> None:
    operator.gate.fault = lambda call: None if "/leases" in call.path else UNAVAILABLE
    settled.apply(pooler={"parameters": {"query_wait_timeout": 22}})
    settled.api.delete(path("Secret", settled.web, "database"))
    time.sleep(6)
    assert operator.running
    operator.gate.fault = lambda call: None
    converged(settled, *both(settled))
    assert "query_wait_timeout = 22" in ini(settled)


def test_503_to_everything_ends_the_leader_and_the_next_one_loses_no_edit(
    settled: Lane, operator: Operator
) -> None:
    """It can't renew its Lease, so it must not go on."""
    operator.gate.fault = lambda call: UNAVAILABLE
    settled.apply(pooler={"parameters": {"query_wait_timeout": 23}})
    assert operator.reap() == 1
    assert "could not be renewed" in operator.said()
    operator.gate.fault = lambda call: None
    operator.start()
    converged(settled, *both(settled))
    assert "query_wait_timeout = 23" in ini(settled)


def test_write_timed_out_after_it_took_effect_leaves_no_duplicates(lane: Lane, operator: Operator) -> None:
    """The answer to the first attempt of every write is lost."""
    lost: set[str] = set()

    def first_time(call: Call) -> bool:
        known = str(call) in lost
        lost.add(str(call))
        return not known

    operator.gate.loses = first_time
    lane.apply()
    converged(lane, *both(lane))
    lane.apply(consumers=[{"namespace": lane.web}, {"namespace": lane.data, "secretName": "own"}])
    converged(lane, Consumer(lane.web, "database"), Consumer(lane.data, "own"))
    told = [(event["reason"], event["message"]) for event in lane.events()]
    assert len(told) == len(set(told)), told
    assert len(lost) > 12
    lane.delete()
    eventually(lambda: [obj["kind"] for obj in lane.objects()] == ["Secret"], 30)


def test_watch_frozen_loses_no_edit(site: Site, settled: Lane, operator: Operator) -> None:
    site.postgres.passwords.add("while-frozen")
    operator.gate.freeze_watches()
    settled.apply(pooler={"parameters": {"query_wait_timeout": 24}})
    settled.put_source(username="o", password="while-frozen")
    settled.api.delete(path("Secret", settled.web, "database"))
    time.sleep(3)
    operator.gate.thaw_watches()
    eventually(lambda: "query_wait_timeout = 24" in ini(settled) and "while-frozen" in proved(settled), 10)
    converged(settled, *both(settled))


def test_watch_410_loses_no_edit(site: Site, settled: Lane, operator: Operator) -> None:
    """What happened meanwhile was told by no watch; the new listing shows it."""
    site.postgres.passwords.add("while-gone")
    operator.gate.freeze_watches()
    settled.apply(pooler={"parameters": {"query_wait_timeout": 25}})
    settled.put_source(username="o", password="while-gone")
    settled.api.merge(path("Secret", settled.web, "database"), {"data": {"PGHOST": "bm9uc2Vuc2U="}})
    settled.api.delete(path("Secret", settled.backend, "shop-db"))
    settled.api.delete(path("Service", settled.data, "shop-pooler"))
    time.sleep(1)
    operator.gate.expire_watches()
    operator.gate.thaw_watches()
    eventually(lambda: "query_wait_timeout = 25" in ini(settled) and "while-gone" in proved(settled), 10)
    converged(settled, *both(settled))
    assert (settled.secret(settled.web, "database") or {})["PGHOST"] != "nonsense"
    eventually(lambda: settled.get("Service", "shop-pooler") is not None, 10)


@pytest.mark.parametrize("code", [500, 504, 403])
def test_an_error_inside_a_watch_ends_nothing_and_loses_no_edit(
    code: int, settled: Lane, operator: Operator
) -> None:
    """kopf takes every error but 410 for fatal. The API server sends them if etcd is slow, for example."""
    operator.gate.freeze_watches()
    settled.apply(pooler={"parameters": {"query_wait_timeout": 26}})
    settled.api.delete(path("Secret", settled.backend, "shop-db"))
    time.sleep(1)
    operator.gate.end_watches(Answer(code, "Broke", "the watch broke"))
    operator.gate.thaw_watches()
    eventually(lambda: "query_wait_timeout = 26" in ini(settled), 10)
    converged(settled, *both(settled))
    assert operator.running
    # Each watch says so once, and goes on.
    lines = [line.split(maxsplit=2)[2] for line in operator.said().splitlines() if "the watch broke" in line]
    assert len(lines) == len(set(lines)) > 3, lines
    settled.apply(pooler={"parameters": {"query_wait_timeout": 27}})
    eventually(lambda: "query_wait_timeout = 27" in ini(settled), 10)


@pytest.mark.parametrize(
    ("plural", "condition"),
    [
        ("networkpolicies", "PoolerAvailable"),
        ("deployments", "PoolerAvailable"),
        ("services", "PoolerAvailable"),
        ("poddisruptionbudgets", "PoolerAvailable"),
        ("secrets/shop-pooler-config", "ConfigApplied"),
        ("secrets/shop-pooler-logins", "ConfigApplied"),
        ("secrets/database", "ConsumersSynced"),
    ],
)
def test_403_on_one_kind_is_a_condition_that_quotes_the_permission(
    lane: Lane, operator: Operator, plural: str, condition: str
) -> None:
    message = f'{plural.partition("/")[0]} is forbidden: User "poolkeeper" cannot patch resource'
    operator.gate.fault = lambda call: (
        Answer(403, "Forbidden", message) if call.is_write and f"/{plural}" in call.path else None
    )
    lane.apply()
    assert message in lane.expect(condition, "False", "Forbidden")
    operator.gate.fault = lambda call: None
    converged(lane, *both(lane))
    eventually(lambda: lane.condition(condition)["reason"] != "Forbidden", 10)


def quota(lane: Lane, namespace: str, resource: str) -> None:
    body: Object = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}}
    lane.api.create(path("ResourceQuota", namespace), {**body, "spec": {"hard": {resource: "0"}}})
    # The controller that counts is not here.
    status = {"hard": {resource: "0"}, "used": {resource: "0"}}
    lane.api.merge(path("ResourceQuota", namespace, "none", "status"), {"status": status})


def test_resource_quota_refusal_is_a_condition_that_quotes_it(lane: Lane, operator: Operator) -> None:
    quota(lane, lane.web, "secrets")
    quota(lane, lane.data, "count/deployments.apps")
    lane.apply()
    assert "exceeded quota: none" in lane.expect("ConsumersSynced", "False", "QuotaExceeded")
    assert "exceeded quota: none" in lane.expect("PoolerAvailable", "False", "QuotaExceeded")
    assert lane.secret(lane.backend, "shop-db") is not None
    for namespace in (lane.web, lane.data):
        lane.api.delete(path("ResourceQuota", namespace, "none"))
    converged(lane, *both(lane))


def nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(levels):
        inner = {"a": inner}
    return inner


def authorities_without_a_key() -> str:
    digest = hashlib.sha256(json.dumps(["x", "y"]).encode()).hexdigest()[:16]
    return json.dumps({"poolers": "x", "keepers": "y", "check": digest})


FORGED = {
    "a-number": (names.ROLE_CONFIG, RECORD_FILE, '{"pods":{},"epoch":1e999,"server":""}'),
    "brackets": (names.ROLE_CONFIG, RECORD_FILE, "[" * 100_000),
    "no-key": (names.ROLE_LOGINS, AUTHORITIES_KEY, authorities_without_a_key()),
}


def forge(lane: Lane) -> None:
    """Secrets of PooledDatabases that don't exist, as any tenant can write them."""
    for name, (role, file, text) in FORGED.items():
        secret = names.config_name(name) if role == names.ROLE_CONFIG else names.logins_name(name)
        metadata = {
            "name": secret,
            "labels": names.child_labels(lane.data, name, "u", role),
            "annotations": {names.OWNER_ANNOTATION: f"{lane.data}/{name}"},
        }
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {file: text}}
        lane.api.apply(path("Secret", lane.data, secret), body)


@pytest.fixture
def deep() -> Iterator[None]:
    """This process handles objects as deeply nested as the operator does."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(RECURSION_LIMIT)
    yield
    sys.setrecursionlimit(before)


def test_nothing_that_a_tenant_writes_ends_the_operator(lane: Lane, site: Site, deep: None) -> None:
    """Neither one that runs nor one that starts; others are served meanwhile."""
    one = site.operator(lane.namespaces, fresh=True).start()
    lane.apply(consumers=[])
    lane.expect("SpecValid", "True", "Valid")
    forge(lane)
    for levels in (900, 5_000, 9_900):
        lane.apply(f"deep-{levels}", pooler={"affinity": {"nodeAffinity": nested(levels)}}, consumers=[])
        message = lane.expect("SpecValid", "False", "Invalid", name=f"deep-{levels}")
        assert "nested more than 16 levels deep" in message
    lane.apply()
    lane.synced(2)
    assert one.running
    one.terminate()
    forge(lane)
    another = site.operator(lane.namespaces, fresh=True).start()
    lane.apply(consumers=[{"namespace": lane.web, "secretName": "database"}])
    lane.synced(1)
    assert another.running


def test_one_poison_pooled_database_among_50_does_not_hold_up_the_others(
    lane: Lane, operator: Operator
) -> None:
    """Every write for it fails with 500; one has a senseless spec, one a silent upstream."""
    operator.gate.fault = lambda call: (
        Answer(500, "InternalError", "poison") if call.is_write and "/poison" in call.path else None
    )
    own = [{"namespace": lane.data, "secretName": "poison-db"}]
    lane.apply("poison", consumers=own)
    lane.apply("silent", upstream={**lane.spec()["upstream"], "host": "192.0.2.1"}, consumers=[])
    affinity: dict[str, Any] = {"nodeAffinity": {"a\nb": []}}
    lane.apply("senseless", pooler={"affinity": affinity}, consumers=[])
    names = [f"shop-{number}" for number in range(47)]
    for name in names:
        lane.apply(name, consumers=[{"namespace": lane.web, "secretName": name}])
    for name in names:
        lane.synced(1, name=name, seconds=20)
    started = time.monotonic()
    lane.apply(names[0], pooler={"replicas": 5}, consumers=[])
    eventually(lambda: lane.get("Deployment", f"{names[0]}-pooler")["spec"]["replicas"] == 5, 10, every=0.02)
    took = time.monotonic() - started
    assert took < 3, f"an edit took {took:.1f} s"
    assert lane.condition("SpecValid", "senseless")["status"] in ("False", "")
    assert lane.secret(lane.data, "poison-db") is None
    operator.gate.fault = lambda call: None
    lane.synced(1, name="poison", seconds=40)
