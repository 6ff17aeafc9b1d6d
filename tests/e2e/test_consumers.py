"""Who gets Secrets: the list of consumers, two-sided consent, and names that are taken."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from e2e import kube
from e2e.kube import kubectl
from tests.e2e.client import Agent, QueryError, Session
from tests.e2e.kit import CONVERGES_WITHIN, Place, namespaces, timed, wait_until

ONE = [{"one": "1"}]
ACCEPT = "poolkeeper.io/accept-from"
REFUSED = r"authentication failed|no authentication method|no such"


def test_consent_withdrawn_removes_secrets_and_login_and_given_again_brings_them_back(
    place: Place, agent: Agent
) -> None:
    url = place.serve(place.spec(replicas=1))
    kubectl("annotate", "namespace", place.web, f"{ACCEPT}-")
    with timed("Secrets gone after consent was withdrawn", at_most=CONVERGES_WITHIN):
        wait_until(lambda: not place.secret() and not place.secret("database-binding"), 20, "no Secrets")
    with timed("login refused", at_most=CONVERGES_WITHIN):
        wait_until(lambda: refused(agent, url), 20, "the login to be refused")
    assert "annotate" in place.wait_condition("ConsumersSynced", "False", "NoConsent")
    assert place.condition("Ready")["status"] == "True", "the data path works, whoever consumes"
    events = kube.items("events", place.data)
    assert any(event["reason"] == "ConsumerRemoved" for event in events), [e["reason"] for e in events]

    kubectl("annotate", "namespace", place.web, f"{ACCEPT}=somebody-else,{place.data}")
    with timed("a query after consent was given again", at_most=CONVERGES_WITHIN):
        wait_until(place.secret, 20, "the Secret")
        assert agent.query_soon(place.url(), "SELECT 1 AS one", within=10) == ONE
    assert refused(agent, url), "a login that was taken away must not come back"


def test_consumer_removed_from_the_list_loses_its_secrets_and_its_login_alone(
    place: Place, agent: Agent
) -> None:
    both = [{"namespace": place.web}, {"namespace": place.data, "secretName": "reports"}]
    url = place.serve(place.spec(replicas=1) | {"consumers": both})
    reports = place.secret("reports", place.data)["DATABASE_URL"]
    assert agent.query(reports, "SELECT 1 AS one") == ONE
    assert place.resource()["status"]["binding"] == {"name": "reports-binding"}
    with Session(agent, url) as session:
        backend = session.execute("SELECT pg_backend_pid() AS pid")
        place.patch({"consumers": both[:1]})
        with timed("Secret and login gone", at_most=CONVERGES_WITHIN):
            wait_until(lambda: not place.secret("reports", place.data), 20, "no Secret")
            wait_until(lambda: refused(agent, reports), 20, "the login to be refused")
        assert session.execute("SELECT pg_backend_pid() AS pid") == backend
        place.patch({"consumers": both})
        with timed("a query with the consumer's new login", at_most=CONVERGES_WITHIN):
            wait_until(lambda: place.secret("reports", place.data), 20, "the Secret")
            reports = place.secret("reports", place.data)["DATABASE_URL"]
            assert agent.query_soon(reports, "SELECT 1 AS one", within=10) == ONE
        assert session.execute("SELECT pg_backend_pid() AS pid") == backend
    assert place.url() == url


def test_consumer_that_goes_while_its_apps_log_in_takes_no_pooler_with_it(place: Place, agent: Agent) -> None:
    """PgBouncer dies if an entry is taken from it in the middle of a login."""
    both = [{"namespace": place.web}, {"namespace": place.data, "secretName": "reports"}]
    url = place.serve(place.spec(replicas=1) | {"consumers": both})
    reports = place.secret("reports", place.data)["DATABASE_URL"]
    with Session(agent, url) as session, place.consoles() as (console,), knocking(agent, reports):
        pods = place.identities()

        def entries() -> int:
            return sum("--" in row["name"] for row in console.execute("SHOW DATABASES"))

        before = entries()
        for consumers, expected in ((both[:1], before // 2), (both, before)) * 3:
            place.patch({"consumers": consumers})
            wait_until(lambda wanted=expected: entries() == wanted, 20, f"{expected} entries at the pooler")
        assert session.execute("SELECT 1 AS one") == ONE
        assert place.identities() == pods


@contextlib.contextmanager
def knocking(agent: Agent, url: str) -> Iterator[None]:
    """Logins all the time, whether or not they are let in."""
    stop = threading.Event()

    def knock() -> None:
        while not stop.is_set():
            with contextlib.suppress(QueryError):
                agent.query(url, "SELECT 1")

    threads = [threading.Thread(target=knock) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_secret_works_from_its_first_moment_on(place: Place, agent: Agent) -> None:
    """A new consumer of running poolers gets its Secret after they know its login, never before."""
    place.serve()
    for index in range(3):
        name = f"extra-{index}"
        place.patch({"consumers": [{"namespace": place.web}, {"namespace": place.web, "secretName": name}]})
        values = wait_until(partial(place.secret, name), CONVERGES_WITHIN, "the Secret")
        assert agent.query(values["DATABASE_URL"], "SELECT 1 AS one") == ONE


def test_selected_namespaces_get_secrets_by_label_and_consent(place: Place, agent: Agent) -> None:
    tier = f"apps-{place.data}"
    rule = {"namespaceSelector": {"matchLabels": {"tier": tier}}}
    place.apply(place.spec(replicas=1) | {"consumers": [rule, {"namespace": place.data}]})
    place.wait_ready()
    assert place.secret() == {}
    kubectl("label", "namespace", place.web, f"tier={tier}")
    with timed("Secret after the label was set", at_most=CONVERGES_WITHIN):
        values = wait_until(place.secret, 20, "the Secret")
    assert agent.query_soon(values["DATABASE_URL"], "SELECT 1 AS one", within=5) == ONE
    kubectl("label", "namespace", place.web, "tier-")
    with timed("Secret gone after the label was removed", at_most=CONVERGES_WITHIN):
        wait_until(lambda: not place.secret(), 20, "no Secret")
    place.wait_condition("ConsumersSynced", "True", "Synced")


def test_target_namespace_that_is_missing_gets_its_secret_when_it_is_created(
    place: Place, agent: Agent
) -> None:
    late = f"{place.web}-late"
    spec = place.spec(replicas=1) | {"consumers": [{"namespace": late}, {"namespace": place.data}]}
    place.apply(spec)
    place.wait_ready()
    place.wait_condition("ConsumersSynced", "False", "NamespaceMissing")
    namespaces((late, {ACCEPT: "*"}))
    try:
        with timed("Secret after the namespace was created", at_most=5):
            values = wait_until(lambda: place.secret(namespace=late), 20, "the Secret")
        assert agent.query_soon(values["DATABASE_URL"], "SELECT 1 AS one", within=5) == ONE
    finally:
        kubectl("delete", "namespace", late, "--wait=false")
    # A namespace that is being deleted is skipped, and neither side waits for the other.
    kubectl("wait", "--for=delete", f"namespace/{late}", "--timeout=30s", timeout=40)
    place.wait_condition("ConsumersSynced", "False", "NamespaceMissing")


def test_kube_system_is_always_refused(place: Place) -> None:
    spec = place.spec() | {"consumers": [{"namespace": "kube-system"}]}
    with pytest.raises(Exception, match="never becomes a consumer"):
        place.apply(spec)


def test_foreign_secret_under_our_name_stays_untouched_until_it_is_gone(place: Place, agent: Agent) -> None:
    foreign = kube.secret(place.web, "database", {"DATABASE_URL": "postgres://elsewhere"})
    kube.apply(json.dumps(foreign))
    before = kube.get("secret", place.web, "database")
    place.apply(place.spec(replicas=1))
    place.wait_ready()
    message = place.wait_condition("ConsumersSynced", "False", "Conflict")
    assert f"{place.web}/database" in message
    assert kube.get("secret", place.web, "database") == before
    kubectl("-n", place.web, "delete", "secret", "database")
    with timed("our Secret after the foreign one was deleted", at_most=CONVERGES_WITHIN):
        place.wait_condition("ConsumersSynced", "True", "Synced")
    assert agent.query_soon(place.url(), "SELECT 1 AS one", within=5) == ONE


def test_secret_with_forged_labels_gains_nothing(place: Place, agent: Agent) -> None:
    """A copy is left as it was written, and reported: labels are no proof."""
    place.serve(place.spec(replicas=1))
    ours = kube.get("secret", place.data, "shop-pooler-logins")
    assert ours is not None
    kubectl("annotate", "namespace", place.web, f"{ACCEPT}-")
    wait_until(lambda: not place.secret(), CONVERGES_WITHIN, "no Secret")
    forged = kube.secret(place.web, "forged", {"DATABASE_URL": "postgres://elsewhere"})
    forged["metadata"] |= {key: ours["metadata"][key] for key in ("labels", "annotations")}
    kube.apply(json.dumps(forged))
    wait_until(
        lambda: f"{place.web}/forged" in place.condition("ConsumersSynced").get("message", ""),
        CONVERGES_WITHIN,
        "the copy in the message of ConsumersSynced",
    )
    assert place.secret("forged") == {"DATABASE_URL": "postgres://elsewhere"}
    assert place.secret() == {}


def test_two_pooled_databases_that_want_the_same_secret_leave_the_first_intact(
    new_place: Callable[..., Place], agent: Agent
) -> None:
    first, second = new_place(), new_place()
    url = first.serve(first.spec(replicas=1))
    kubectl("annotate", "--overwrite", "namespace", first.web, f"{ACCEPT}={first.data},{second.data}")
    second.apply(second.spec(replicas=1) | {"consumers": [{"namespace": first.web}]})
    message = second.wait_condition("ConsumersSynced", "False", "Conflict", within=30)
    assert f"{first.data}/shop" in message
    assert first.url() == url
    assert agent.query(url, "SELECT current_database() AS name") == [{"name": first.database}]
    first.wait_condition("ConsumersSynced", "True", "Synced")


def test_upstream_password_never_leaves_its_namespace(place: Place, agent: Agent) -> None:
    url = place.serve(place.spec(replicas=1))
    for secret in kube.items("secrets", place.web):
        assert place.password not in json.dumps(kube.secret_values(secret))
    # Whoever asks the server itself as the consumer learns the login's own name only.
    rows = agent.query(url, "SELECT current_user AS role")
    assert rows == [{"role": place.role}]
    assert place.secret()["PGUSER"] != place.role


def refused(agent: Agent, url: str) -> bool:
    """Whether a login is refused, and not just impossible for the moment."""
    try:
        agent.query(url, "SELECT 1")
    except QueryError as error:
        return any(word in str(error) for word in REFUSED.split("|"))
    return False
