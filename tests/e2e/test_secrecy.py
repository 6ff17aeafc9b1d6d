"""What poolers may do, and that no password is to be read where it does not belong."""

from __future__ import annotations

import json

import pytest

from e2e import kube
from e2e.install import NAMESPACE, RELEASE
from e2e.kube import Object, kubectl
from tests.e2e.client import Agent, QueryError
from tests.e2e.kit import Place, dsn

SHORTEST_SECRET = 8


@pytest.fixture(scope="module")
def shop(module_place: Place, agent: Agent) -> Place:
    """A PooledDatabase that has seen a wrong password, a wrong login and a Secret that says nonsense."""
    place = module_place
    url = place.serve()
    place.write_owner("an-upstream-password-that-is-wrong")
    place.wait_condition("UpstreamReachable", "False", "AuthenticationFailed")
    place.write_owner("an-upstream-password\nwith-a-line-feed")
    place.wait_condition("UpstreamReachable", "False", "InvalidValue")
    with pytest.raises(QueryError):
        agent.query(url.replace("@", "-but-wrong@"), "SELECT 1")
    with pytest.raises(QueryError):
        agent.query(url, "SELECT 1/0")
    place.write_owner(place.password)
    place.wait_condition("UpstreamReachable", "True", "Reachable")
    return place


def test_no_password_in_environment_arguments_annotations_status_events_or_logs(shop: Place) -> None:
    passwords = secret_parts(shop)
    assert len(passwords) >= 4, "the login of the consumer, of the console, of the upstream, its wrong ones"
    for title, text in public_texts(shop).items():
        assert len(text) > 100, f"{title} is empty: this test would see nothing"
        for name, password in passwords.items():
            assert password not in text, f"{title} holds {name}"


def test_poolers_run_restricted_and_without_a_service_account_token(shop: Place) -> None:
    """The namespaces enforce Pod Security `restricted`, so that the pods exist proves the most of it."""
    namespace = json.loads(kubectl("get", "namespace", shop.data, "-o", "json"))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert len(shop.pods()) == 2
    for pod in shop.pods():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        sources = [set(source) for volume in spec["volumes"] for source in volume["projected"]["sources"]]
        assert sources == [{"secret"}, {"downwardAPI"}], "anything else could be a token"
        (container,) = spec["containers"]
        assert container.get("env", []) == container.get("envFrom", []) == []
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert spec["securityContext"]["runAsNonRoot"] is True


def test_upstream_user_and_markers_are_no_logins_of_the_pooler(shop: Place, agent: Agent) -> None:
    """The poolers know consumers' logins and the console's, and nobody gets in as the database's own user."""
    values = shop.secret()
    for user in (shop.role, "postgres", "pgbouncer", "poolkeeper"):
        for database in (values["PGDATABASE"], "pgbouncer"):
            host = values["PGHOST"]
            with pytest.raises(QueryError, match=r"authentication|no such"):
                agent.query(dsn(host, user, shop.password, database, 6432), "SELECT 1")


def secret_parts(place: Place) -> dict[str, str]:
    """Everything that must not be public, by a name that may be."""
    logins = place.secret("shop-pooler-logins", place.data)
    found = {"the upstream's password": place.password}
    found |= {"a wrong password": "an-upstream-password-that-is-wrong", "a broken one": "with-a-line-feed"}
    for key, value in logins.items():
        login = json.loads(value)
        found |= {f"{key}'s {part}": login[part] for part in ("password", "verifier") if part in login}
        # Of a key one line of its text: in JSON its line ends look otherwise.
        found |= {
            f"{key}'s key of {part}": text.splitlines()[1]
            for part, text in login.items()
            if str(text).startswith("-----BEGIN PRIVATE KEY-----")
        }
    found["DATABASE_URL's password"] = place.secret()["PGPASSWORD"]
    assert all(len(value) >= SHORTEST_SECRET for value in found.values())
    return found


def public_texts(place: Place) -> dict[str, str]:
    """Whatever can be read by somebody who may read everything but Secrets."""
    texts = {
        kind: kubectl("-n", place.data, "get", kind, "-o", "json", "--show-managed-fields")
        for kind in ("pods", "deployments", "replicasets", "services", "networkpolicies", "pooldb", "events")
    }
    selector = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=operator"
    texts["operator pods"] = kubectl("-n", NAMESPACE, "get", "pods", "-l", selector, "-o", "json")
    texts["operator logs"] = "".join(
        kubectl("-n", NAMESPACE, "logs", pod["metadata"]["name"], "--tail=-1")
        for pod in kube.items("pods", NAMESPACE, selector)
    )
    texts["pooler logs"] = "".join(
        kubectl("-n", place.data, "logs", pod["metadata"]["name"], "--tail=-1") for pod in place.pods()
    )
    texts["metadata of Secrets"] = json.dumps([metadata(item) for item in _secrets(place)])
    return texts


def metadata(body: Object) -> Object:
    """Without what `kubectl apply` notes down of the test's own Secret."""
    found: Object = body["metadata"]
    annotations = {key: text for key, text in found.get("annotations", {}).items() if "last-applied" not in key}
    return {**found, "annotations": annotations}


def _secrets(place: Place) -> list[Object]:
    return kube.items("secrets", place.data) + kube.items("secrets", place.web)
