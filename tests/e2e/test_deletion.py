"""A PooledDatabase that is deleted takes everything with it, whatever is going on meanwhile."""

from __future__ import annotations

from e2e import kube
from e2e.kube import kubectl
from tests.e2e import postgres
from tests.e2e.client import Agent, Session
from tests.e2e.kit import OWNER, Place, timed, wait_until

KINDS = "deployments,services,poddisruptionbudgets,networkpolicies,secrets,pods,replicasets"


def test_deleted_while_clients_are_connected_drains_then_removes_everything(place: Place, agent: Agent) -> None:
    url = place.serve(place.spec() | {"pooler": {"replicas": 2, "drainSeconds": 30}})
    source = kube.get("secret", place.data, OWNER)
    assert source is not None
    assert source["metadata"]["labels"]
    with Session(agent, url) as session:
        session.execute("BEGIN")
        running = session.start("SELECT pg_sleep(8), 'done' AS answer")
        kubectl("-n", place.data, "delete", "pooldb", "shop", "--wait=false")
        assert running.result(60)[0]["answer"] == "done", "the drain cut a running query"
        session.execute("COMMIT")
    with timed("gone once the last client left", at_most=20):
        wait_until(lambda: kube.get("pooldb", place.data, "shop") is None, 60, "the resource to go")
    assert remains(place) == []
    after = kube.get("secret", place.data, OWNER)
    assert after is not None, "the source Secret is the user's"
    assert not after["metadata"].get("labels"), "our mark is left on the source Secret"


def test_deleted_while_the_database_is_down_completes(place: Place) -> None:
    host = postgres.start(place.data, "superuser", replicas=0)
    place.write_owner("superuser", user="postgres")
    spec = place.spec(replicas=1)
    spec["upstream"] |= {"host": host, "database": "postgres"}
    place.apply(spec)
    place.wait_condition("UpstreamReachable", "False", "ConnectionRefused", within=30)
    kubectl("-n", place.data, "delete", "pooldb", "shop", "--timeout=30s", timeout=40)
    assert remains(place) == []


def test_deleted_and_made_again_at_once_works_with_new_logins(place: Place, agent: Agent) -> None:
    old = place.serve(place.spec(replicas=1))
    kubectl("-n", place.data, "delete", "pooldb", "shop", "--timeout=60s", timeout=70)
    new = place.serve(place.spec(replicas=1))
    assert new != old
    assert agent.query(new, "SELECT 1 AS one") == [{"one": "1"}]


def test_namespace_deleted_with_a_pooled_database_in_it_is_not_stuck(place: Place) -> None:
    place.serve(place.spec(replicas=1))
    with timed("namespace gone", at_most=45):
        kubectl("delete", "namespace", place.data, "--timeout=60s", timeout=70)
    wait_until(lambda: not place.secret(), 10, "no Secret in the consumer's namespace")


def remains(place: Place) -> list[str]:
    """Whatever is left of ours in the two namespaces."""
    found = []
    for namespace in (place.data, place.web):
        text = kubectl("-n", namespace, "get", KINDS, "-l", "poolkeeper.io/role", "-o", "name")
        found += [f"{namespace}: {name}" for name in text.split()]
    return found
