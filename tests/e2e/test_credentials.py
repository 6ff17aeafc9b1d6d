"""The upstream's credentials: rotation, special characters, and what goes wrong with Secrets."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable

import pytest

from e2e import kube
from e2e.kube import kubectl
from tests.e2e.client import Agent, Load
from tests.e2e.keeper_events import logs_in_with, retire_upstream_connections
from tests.e2e.kit import CONVERGES_WITHIN, OWNER, Place, dsn, timed, wait_until

SPECIAL = "q'uote d\"ouble sp ace back\\slash @:/?#% %41 ünï€😀"


def test_password_rotated_in_the_source_secret_under_load_fails_no_transaction(
    place: Place, agent: Agent
) -> None:
    url = place.serve()
    before = place.identities()
    with Load(agent, url, workers=6) as load:
        for _ in range(2):
            password = secrets.token_urlsafe(16)
            place.server.set_password(place.role, password)
            place.write_owner(password)
            wait_for_upstream_password(place, password)
            load.more()
            # From here on the poolers can only go on with what they were given.
            retire_upstream_connections(place)
            load.more()
    assert load.figures["failed"] == 0, load.figures
    assert place.url() == url
    assert place.identities() == before


def test_password_rotated_to_a_wrong_one_keeps_the_old_working(place: Place, agent: Agent) -> None:
    url = place.serve()
    with Load(agent, url) as load:
        place.write_owner("not-the-password")
        message = place.wait_condition("UpstreamReachable", "False", "AuthenticationFailed")
        assert place.condition("Ready")["reason"] == "AuthenticationFailed"
        assert "not-the-password" not in message
        retire_upstream_connections(place)  # new ones, too, are made with the old password
        load.more()
        place.write_owner(place.password)
        place.wait_condition("UpstreamReachable", "True", "Reachable")
        load.more()
    assert load.figures["failed"] == 0, load.figures
    assert place.url() == url
    place.wait_ready()


def test_password_and_user_with_quote_space_backslash_url_characters_and_utf8(
    new_place: Callable[..., Place], agent: Agent
) -> None:
    place = new_place(role=SPECIAL[:40], password=SPECIAL)
    url = place.serve(place.spec(replicas=1))
    assert agent.query(url, "SELECT current_user AS role") == [{"role": place.role}]
    place.reconnect()
    assert agent.query_soon(url, "SELECT 1 AS one", within=5) == [{"one": "1"}]


def test_uri_secret_ref_with_every_special_character_works_end_to_end(
    new_place: Callable[..., Place], agent: Agent
) -> None:
    place = new_place(role=SPECIAL[:40], password=SPECIAL)
    url = dsn(place.server.host, place.role, SPECIAL, place.database, query="?sslmode=require")
    kube.apply(json.dumps(kube.secret(place.data, "shop-url", {"DATABASE_URL": url})))
    spec = place.spec(replicas=1) | {"upstream": {"uriSecretRef": {"name": "shop-url", "key": "DATABASE_URL"}}}
    pooled = place.serve(spec)
    query = "SELECT current_user AS role, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    assert agent.query(pooled, query) == [{"role": place.role, "ssl": "True"}]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"username": "shop"}, "SecretKeyMissing"),
        ({"username": "shop", "password": ""}, "SecretKeyMissing"),
        ({"username": "shop", "password": "two\nlines"}, "InvalidValue"),
        ({"username": "shop", "password": "line\u2028separator"}, "InvalidValue"),
        ({"username": "shop", "password": "car\rriage"}, "InvalidValue"),
        ({"username": "shop", "password": "NUL\x00"}, "InvalidValue"),
    ],
    ids=["missing-key", "empty-key", "line-feed", "U+2028", "CR", "NUL"],
)
def test_unusable_secret_is_a_condition_and_the_old_url_is_kept(
    serving: Place, agent: Agent, values: dict[str, str], reason: str
) -> None:
    url = serving.url()
    replace_owner(serving, values)
    serving.wait_condition("UpstreamReachable", "False", reason)
    assert serving.condition("Ready")["reason"] == reason
    assert serving.url() == url
    assert agent.query(url, "SELECT 1 AS one") == [{"one": "1"}]


def test_trailing_line_feed_in_a_secret_is_stripped(serving: Place, agent: Agent) -> None:
    replace_owner(serving, {"username": f"{serving.role}\n", "password": f"{serving.password}\n"})
    serving.wait_condition("UpstreamReachable", "True", "Reachable")
    assert agent.query(serving.url(), "SELECT 1 AS one") == [{"one": "1"}]


def test_source_secret_that_is_missing_is_a_condition_until_it_exists(place: Place, agent: Agent) -> None:
    kubectl("-n", place.data, "delete", "secret", OWNER)
    place.apply(place.spec(replicas=1))
    place.wait_condition("UpstreamReachable", "False", "SecretMissing")
    assert place.secret() == {}, "a Secret was made without an upstream"
    place.write_owner(place.password)
    # A Secret that nobody has marked yet is looked for every 5 s; then the poolers have to start.
    with timed("Ready after the Secret was made", at_most=5 + CONVERGES_WITHIN):
        place.wait_ready()
    assert agent.query_soon(place.url(), "SELECT 1 AS one", within=5) == [{"one": "1"}]


def test_secret_of_another_namespace_as_source_is_refused_with_the_remedy(place: Place) -> None:
    spec = place.spec()
    spec["upstream"]["credentialsSecretRef"]["namespace"] = place.web
    with pytest.raises(Exception, match=r"credentialsSecretRef.*namespace"):
        place.apply(spec)


def test_consumer_secret_as_source_is_not_allowed(serving: Place) -> None:
    serving.patch({"upstream": {"credentialsSecretRef": {"name": "shop-pooler-logins"}}})
    serving.wait_condition("UpstreamReachable", "False", "NotAllowed")
    serving.patch({"upstream": {"credentialsSecretRef": {"name": OWNER}}})
    serving.wait_ready()


def test_login_of_one_consumer_cannot_use_the_entry_of_another(place: Place, agent: Agent) -> None:
    spec = place.spec(replicas=1)
    spec["consumers"] = [{"namespace": place.web}, {"namespace": place.web, "secretName": "reports"}]
    place.serve(spec)
    first, second = place.secret(), place.secret("reports")
    host = first["PGHOST"]
    for database in (second["PGDATABASE"], f"{second['PGDATABASE']}.session", "pgbouncer"):
        with pytest.raises(
            Exception, match=r"no authentication method|authentication failed|not allowed|no such"
        ):
            agent.query(dsn(host, first["PGUSER"], first["PGPASSWORD"], database, 6432), "SELECT 1")
    assert agent.query(first["DATABASE_URL"], "SELECT 1 AS one") == [{"one": "1"}]
    assert agent.query(second["DATABASE_URL"], "SELECT 1 AS one") == [{"one": "1"}]


def wait_for_upstream_password(place: Place, password: str) -> None:
    """Until every pooler has been given this password, which it proves by nothing that a console shows."""
    wait_until(lambda: logs_in_with(place, password), CONVERGES_WITHIN, "the new password to reach the poolers")


def replace_owner(place: Place, values: dict[str, str]) -> None:
    """The Secret with the credentials holds exactly these keys."""
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    change = json.dumps([{"op": "replace", "path": "/data", "value": data}])
    kubectl("-n", place.data, "patch", "secret", OWNER, "--type=json", "-p", change)


@pytest.fixture(scope="module")
def shared(agent: Agent, module_place: Place) -> Place:
    """One PooledDatabase for the tests that leave it as they found it."""
    module_place.serve(module_place.spec(replicas=1))
    return module_place


@pytest.fixture
def serving(shared: Place) -> Place:
    """The shared PooledDatabase, with its right credentials back and in use."""
    replace_owner(shared, {"username": shared.role, "password": shared.password})
    shared.wait_condition("UpstreamReachable", "True", "Reachable")
    return shared
