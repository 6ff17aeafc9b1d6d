"""Poolers that die, nodes that are drained, images that do not exist, databases that are down."""

from __future__ import annotations

import json
from functools import partial

import pytest

from e2e.cluster.shell import ClusterError
from e2e.kube import kubectl
from tests.e2e import postgres
from tests.e2e.client import Agent, Load, Session
from tests.e2e.kit import CONVERGES_WITHIN, Place, setting, timed, wait_until

ONE = [{"one": "1"}]


def test_image_that_cannot_be_pulled_halts_the_rollout_and_old_pods_serve(place: Place, agent: Agent) -> None:
    url = place.serve()
    before = place.identities()
    place.patch({"pooler": {"image": "poolkeeper/does-not-exist:1"}})
    message = place.wait_condition("PoolerAvailable", "False", "ImagePullBackOff", within=30)
    assert "poolkeeper/does-not-exist:1" in message
    assert place.condition("Ready")["reason"] == "ImagePullBackOff"
    now = place.identities()
    assert before.items() <= now.items(), "old pods went although no new one came"
    assert len(now) == len(before) + 1
    assert agent.query(url, "SELECT 1 AS one") == ONE
    # What needs no new pod still reaches the old ones.
    with place.consoles(before) as consoles:
        place.patch({"pooler": {"parameters": {"stats_period": 33}}})
        for console in consoles:
            changed = partial(shows, console, "stats_period", "33")
            wait_until(changed, CONVERGES_WITHIN, "the change on an old pod")
    kubectl("-n", place.data, "patch", "pooldb", "shop", "--type=json", "-p", json.dumps(_NO_IMAGE))
    with timed("Ready after the image was corrected", at_most=CONVERGES_WITHIN):
        place.wait_ready()
    place.wait_settled()
    assert place.identities() == before


def test_pooler_pod_killed_with_sigkill_and_others_serve(place: Place, agent: Agent) -> None:
    url = place.serve(place.spec(replicas=3))
    victim = place.pods()[0]["metadata"]["name"]
    with Load(agent, url, workers=6) as load:
        kubectl("-n", place.data, "delete", "pod", victim, "--force", "--grace-period=0")
        load.more(200)
        with timed("3 poolers again", at_most=CONVERGES_WITHIN):
            wait_until(lambda: place.resource()["status"].get("readyReplicas") == 3, 30, "3 ready poolers")
        load.more(50)
    # What was in flight on the pod, and logins that still were sent there, until kube-proxy knows.
    assert load.figures["failed"] < load.figures["succeeded"] / 4, load.figures
    assert agent.query(url, "SELECT 1 AS one") == ONE
    place.wait_settled()


def test_node_drained_evictions_respect_the_disruption_budget(place: Place, agent: Agent) -> None:
    """Through the eviction API, as `kubectl drain` does; there is one node only."""
    url = place.serve()
    first, second = (pod["metadata"]["name"] for pod in place.pods())
    evict(place, first)
    with pytest.raises(ClusterError, match="disruption budget"):
        evict(place, second)
    assert agent.query_soon(url, "SELECT 1 AS one", within=5) == ONE
    wait_until(lambda: evicted(place, second), 30, "the second eviction to be allowed")
    wait_until(lambda: agent.query(url, "SELECT 1 AS one") == ONE, 5, "an answer")
    place.wait_settled()


def test_database_down_at_first_apply_is_a_condition_until_it_comes_up(place: Place, agent: Agent) -> None:
    host = postgres.start(place.data, "superuser", replicas=0)
    place.write_owner("superuser", user="postgres")
    spec = place.spec(replicas=1)
    spec["upstream"] |= {"host": host, "database": "postgres"}
    place.apply(spec)
    message = place.wait_condition("UpstreamReachable", "False", "ConnectionRefused", within=30)
    assert "start the server" in message
    assert place.condition("Ready")["status"] == "False"
    for secret in ("database", "database-binding"):
        assert set(place.secret(secret)) in (set(), KEYS[secret]), "a Secret was half made"
    scale_database(place, 1)
    postgres.wait(place.data)
    with timed("Ready after the database came up", at_most=CONVERGES_WITHIN):
        place.wait_ready()
    assert agent.query_soon(place.url(), "SELECT 1 AS one", within=5) == ONE


def test_database_that_goes_down_and_comes_back_needs_nobody(place: Place, agent: Agent) -> None:
    host = postgres.start(place.data, "superuser")
    postgres.wait(place.data)
    place.write_owner("superuser", user="postgres")
    spec = place.spec()
    spec["upstream"] |= {"host": host, "database": "postgres"}
    url = place.serve(spec)
    before = place.identities()
    kubectl("-n", place.data, "delete", "pod", "-l", f"app={postgres.NAME}", "--wait=false")
    postgres.wait(place.data)
    with timed("a query after the database is back", at_most=CONVERGES_WITHIN):
        assert agent.query_soon(url, "SELECT 1 AS one", within=30) == ONE
    assert place.identities() == before


def test_host_name_that_does_not_exist_and_database_that_does_not_exist_are_conditions(
    place: Place,
) -> None:
    spec = place.spec(replicas=1)
    spec["upstream"]["host"] = "nowhere.invalid"
    place.apply(spec)
    place.wait_condition("UpstreamReachable", "False", "DnsFailed", within=30)
    place.patch({"upstream": {"host": place.server.host, "database": "missing"}})
    place.wait_condition("UpstreamReachable", "False", "DatabaseMissing", within=30)
    place.patch({"upstream": {"database": place.database}})
    place.wait_ready()


KEYS = {
    "database": {
        *("DATABASE_URL", "DATABASE_SESSION_URL", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE")
    },
    "database-binding": {
        *("type", "provider", "host", "port", "database", "dbname", "username", "user", "password", "uri"),
        *("jdbc-url", "r2dbc-url", "pgpass", "sslmode", "ca.crt"),
        *("session-database", "session-uri", "session-jdbc-url"),
    },
}
_NO_IMAGE = [{"op": "remove", "path": "/spec/pooler/image"}]


def evict(place: Place, pod: str) -> None:
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"namespace": place.data, "name": pod},
    }
    path = f"/api/v1/namespaces/{place.data}/pods/{pod}/eviction"
    kubectl("create", "--raw", path, "-f", "-", text_input=json.dumps(body))


def evicted(place: Place, pod: str) -> bool:
    try:
        evict(place, pod)
    except ClusterError as error:
        if "disruption budget" not in str(error):
            raise
        return False
    return True


def scale_database(place: Place, replicas: int) -> None:
    kubectl("-n", place.data, "scale", f"deployment/{postgres.NAME}", f"--replicas={replicas}")


def shows(console: Session, name: str, value: str) -> bool:
    return setting(console, name) == value
