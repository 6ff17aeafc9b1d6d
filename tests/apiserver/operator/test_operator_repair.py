"""What people and other programs do to the operator's objects, and bad inputs: it converges within 10 s."""

from __future__ import annotations

import base64
import re
import time
from typing import Any

import pytest

from poolkeeper import names
from poolkeeper.consumers import entries
from poolkeeper.consumers.consent import Consumer
from poolkeeper.pgbouncer.configuration import POD_FILE
from tests.apiserver.client import Refused
from tests.apiserver.operator.operator_process import Operator
from tests.apiserver.operator.pooler_pod import quiet
from tests.apiserver.operator.site import Lane, Object, Site, eventually, history, path
from tests.apiserver.operator.snapshot import current_generation, difference, snapshot

REPAIR_SECONDS = 10.0


@pytest.fixture
def settled(lane: Lane, operator: Operator) -> Lane:
    """A PooledDatabase with two consumers, everything written."""
    lane.apply()
    lane.synced(2)
    lane.expect("UpstreamReachable", "True", "Reachable")
    return lane


def both(lane: Lane) -> tuple[Consumer, ...]:
    return Consumer(lane.web, "database"), Consumer(lane.backend, "shop-db")


def code_of(lane: Lane, kind: str, namespace: str, name: str) -> int:
    try:
        lane.get(kind, name, namespace)
    except Refused as refusal:
        return refusal.code
    return 200


def gone(lane: Lane, kind: str, namespace: str, name: str) -> None:
    eventually(lambda: code_of(lane, kind, namespace, name) == 404, REPAIR_SECONDS)


def annotate(lane: Lane, namespace: str, accept_from: str | None) -> None:
    patch = {"metadata": {"annotations": {names.ACCEPT_FROM_ANNOTATION: accept_from}}}
    lane.api.merge(f"/api/v1/namespaces/{namespace}", patch)


def delete_namespace(lane: Lane, namespace: str) -> None:
    lane.api.delete(f"/api/v1/namespaces/{namespace}")


def config(lane: Lane) -> dict[str, str]:
    return lane.secret(lane.data, "shop-pooler-config") or {}


def rules(lane: Lane) -> str:
    """Who may log in at poolers."""
    files = config(lane)
    return files[f"hba-{current_generation(files)}.conf"]


def proved(lane: Lane) -> str:
    """The upstream that poolers are to use, with its password."""
    return (lane.secret(lane.data, "shop-pooler-logins") or {}).get("upstream", "")


# --- a child edited or deleted by hand ---------------------------------------------------------------------

CHILDREN = [
    ("Deployment", "data", "shop-pooler"),
    ("Service", "data", "shop-pooler"),
    ("PodDisruptionBudget", "data", "shop-pooler"),
    ("NetworkPolicy", "data", "shop-pooler"),
    ("Secret", "data", "shop-pooler-config"),
    ("Secret", "data", "shop-pooler-logins"),
    ("Secret", "web", "database"),
    ("Secret", "web", "database-binding"),
    ("Secret", "api", "shop-db"),
    ("Secret", "api", "shop-db-binding"),
]
_NONSENSE = base64.b64encode(b"nonsense").decode()
SPEC_EDITS: dict[str, list[Object]] = {
    "Deployment": [
        {"spec": {"replicas": 7}},
        {"spec": {"template": {"metadata": {"annotations": {names.RESTART_ANNOTATION: "other"}}}}},
        {"spec": {"template": {"spec": {"automountServiceAccountToken": True}}}},
    ],
    "Service": [{"spec": {"ports": [{"name": "postgres", "port": 1, "protocol": "TCP"}]}}],
    "PodDisruptionBudget": [{"spec": {"maxUnavailable": "100%"}}],
    "NetworkPolicy": [{"spec": {"ingress": [{}]}}],
}
DATA_KEYS = {
    "shop-pooler-config": "pgbouncer.ini",
    "shop-pooler-logins": "console",
    "database": "DATABASE_URL",
    "database-binding": "password",
    "shop-db": "PGPASSWORD",
    "shop-db-binding": "uri",
}
LABEL_EDITS: list[Object] = [
    {"metadata": {"labels": {names.OWNER_LABEL: "somebody-else"}}},
    {"metadata": {"labels": {names.ROLE_LABEL: None}}},
    {"metadata": {"labels": {names.OWNER_UID_LABEL: None}}},
    {"metadata": {"labels": {names.OWNER_UID_LABEL: "1-2-3"}}},
    {"metadata": {"annotations": {names.OWNER_ANNOTATION: "some/body"}}},
    {"metadata": {"annotations": {names.OWNER_ANNOTATION: None}}},
]


def edits(kind: str, name: str) -> list[Object]:
    if kind == "Secret":
        key = DATA_KEYS[name]
        return [*LABEL_EDITS, {"data": {key: _NONSENSE}}, {"data": {key: None}}]
    return [*LABEL_EDITS, *SPEC_EDITS[kind]]


@pytest.mark.parametrize(("kind", "where", "name"), CHILDREN, ids=lambda value: str(value))
def test_a_child_edited_or_deleted_by_hand_is_repaired(settled: Lane, kind: str, where: str, name: str) -> None:
    namespace = f"{settled.name}-{where}"
    whole = snapshot(settled, both(settled))

    def repaired() -> None:
        found = snapshot(settled, both(settled))
        assert found == whole, difference(whole, found)

    failures = []
    for change in [*edits(kind, name), None]:
        try:
            if change is None:
                settled.api.delete(path(kind, namespace, name))
            else:
                settled.api.merge(path(kind, namespace, name), change)
            eventually(repaired, REPAIR_SECONDS, every=0.2)
        except AssertionError as error:
            failures.append(f"{change or 'deleted'}: {error}")
            break
    assert not failures, "\n".join(failures)


def test_a_key_that_somebody_adds_to_a_child_is_left_alone(settled: Lane) -> None:
    """It is not ours; Kubernetes keeps it, and nothing is fought over."""
    settled.api.merge(path("Secret", settled.web, "database"), {"data": {"EXTRA": _NONSENSE}})
    settled.api.merge(path("Secret", settled.web, "database"), {"data": {"PGPORT": _NONSENSE}})
    eventually(lambda: (settled.secret(settled.web, "database") or {})["PGPORT"] == "6432", REPAIR_SECONDS)
    assert (settled.secret(settled.web, "database") or {})["EXTRA"] == "nonsense"


def test_a_secret_of_ours_that_became_immutable_is_made_anew(settled: Lane) -> None:
    before = settled.secret(settled.web, "database")
    for namespace, name in ((settled.web, "database"), (settled.data, "shop-pooler-config")):
        settled.api.merge(path("Secret", namespace, name), {"immutable": True})
    settled.apply(upstream={**settled.spec()["upstream"], "database": "another"})

    def repaired() -> None:
        snapshot(settled, both(settled))
        assert "immutable" not in settled.get("Secret", "database", settled.web)

    eventually(lambda: settled.secret(settled.web, "database") not in (None, before), REPAIR_SECONDS)
    eventually(repaired, REPAIR_SECONDS)


def test_a_secret_of_ours_of_another_type_is_made_anew(settled: Lane) -> None:
    """A Secret's type can't be changed in place."""
    obj = settled.get("Secret", "database-binding", settled.web)
    forged = {key: obj["metadata"][key] for key in ("name", "namespace", "labels", "annotations")}
    settled.api.merge(path("Secret", settled.web, "database-binding"), {"metadata": {"labels": None}})
    eventually(lambda: settled.condition("ConsumersSynced")["status"] == "False", REPAIR_SECONDS)
    settled.api.delete(path("Secret", settled.web, "database-binding"))
    wrong = {"apiVersion": "v1", "kind": "Secret", "metadata": forged, "type": "Opaque"}
    try:
        settled.api.create(path("Secret", settled.web), wrong)
    except Refused as refusal:
        if refusal.code != 409:  # the operator was quicker
            raise

    def repaired() -> None:
        assert settled.get("Secret", "database-binding", settled.web)["type"] == "servicebinding.io/postgresql"
        snapshot(settled, both(settled))

    eventually(repaired, REPAIR_SECONDS)


# --- the source Secret -------------------------------------------------------------------------------------


def test_password_rotated_in_the_source_secret_reaches_the_poolers(site: Site, settled: Lane) -> None:
    site.postgres.passwords.add("rotated-password")
    before = settled.secret(settled.web, "database")
    settled.put_source(username="o", password="rotated-password")
    eventually(lambda: "rotated-password" in proved(settled), REPAIR_SECONDS)
    settled.expect("UpstreamReachable", "True", "Reachable")
    assert settled.secret(settled.web, "database") == before


def test_password_rotated_to_a_wrong_one_is_a_condition_and_the_old_keeps_working(settled: Lane) -> None:
    whole = [obj for obj in settled.children() if obj["kind"] != "PooledDatabase"]
    settled.put_source(username="o", password="wrong-password")
    message = settled.expect("UpstreamReachable", "False", "AuthenticationFailed")
    assert "the last credentials that worked stay in use" in message
    assert [obj for obj in settled.children() if obj["kind"] != "PooledDatabase"] == whole


def test_source_secret_deleted_keeps_the_last_good_state_and_converges_when_it_is_back(
    site: Site, settled: Lane
) -> None:
    """Created again, it has no label of ours: the operator looks for it by itself."""
    site.postgres.passwords.add("from-a-new-secret")
    whole = settled.children()
    settled.api.delete(path("Secret", settled.data, "shop-owner"))
    assert "Secret shop-owner does not exist" in settled.expect("UpstreamReachable", "False", "SecretMissing")
    assert settled.children() == whole
    settled.put_source(username="o", password="from-a-new-secret")
    eventually(lambda: "from-a-new-secret" in proved(settled), REPAIR_SECONDS)
    settled.expect("UpstreamReachable", "True", "Reachable")


def test_source_secret_whose_label_is_taken_off_is_still_followed(site: Site, settled: Lane) -> None:
    site.postgres.passwords.add("after-the-label-was-gone")
    settled.api.merge(path("Secret", settled.data, "shop-owner"), {"metadata": {"labels": None}})
    settled.put_source(username="o", password="after-the-label-was-gone")
    eventually(lambda: "after-the-label-was-gone" in proved(settled), REPAIR_SECONDS)


@pytest.mark.parametrize(
    ("values", "reason", "words"),
    [
        ({"username": "o", "password": ""}, "SecretKeyMissing", "key password of Secret shop-owner is empty"),
        ({"username": "o"}, "SecretKeyMissing", "key password of Secret shop-owner is missing"),
        ({"password": "p"}, "SecretKeyMissing", "key username of Secret shop-owner is missing"),
        ({"username": "o", "password": "a\nauth_type=any"}, "InvalidValue", "control character"),
        ({"username": "o", "password": "a\rb"}, "InvalidValue", "control character"),
        ({"username": "o", "password": "a\0b"}, "InvalidValue", "control character"),
        ({"username": "o\u2028", "password": "p"}, "InvalidValue", "control character"),
        ({"username": "o", "password": "two\n\n"}, "InvalidValue", "control character"),
    ],
    ids=["empty-password", "missing-password", "missing-user", "LF", "CR", "NUL", "U+2028", "two-line-feeds"],
)
def test_line_feed_cr_nul_u2028_empty_or_missing_value_in_a_secret_is_a_condition_and_the_old_url_is_kept(
    settled: Lane, values: dict[str, str], reason: str, words: str
) -> None:
    whole = settled.children()
    settled.put_source(**values)
    message = settled.expect("UpstreamReachable", "False", reason)
    assert words in message
    assert values.get("password") in (None, "", "p") or values["password"] not in message
    assert settled.condition("Ready")["reason"] == reason
    assert settled.children() == whole
    settled.put_source(username="o", password="upstream-password-of-the-tests")
    settled.expect("UpstreamReachable", "True", "Reachable")


def test_trailing_line_feed_in_a_secret_is_stripped(settled: Lane) -> None:
    whole = settled.children()
    settled.put_source(username="o\n", password="upstream-password-of-the-tests\r\n")
    eventually(lambda: settled.get("Secret", "shop-owner")["data"]["username"] == "bwo=", 1)
    settled.apply(pooler={"parameters": {"query_wait_timeout": 33}})
    eventually(lambda: "query_wait_timeout = 33" in config(settled)["pgbouncer.ini"], REPAIR_SECONDS)
    settled.expect("UpstreamReachable", "True", "Reachable")
    assert len(settled.children()) == len(whole)


def test_no_half_made_secret_before_the_source_secret_is_complete(lane: Lane, operator: Operator) -> None:
    lane.api.delete(path("Secret", lane.data, "shop-owner"))
    lane.apply()
    lane.expect("UpstreamReachable", "False", "SecretMissing")
    assert lane.condition("Ready")["status"] == "False"
    assert not [obj for obj in lane.children() if obj["metadata"]["namespace"] != lane.data]
    lane.put_source(username="o", password="upstream-password-of-the-tests")
    lane.synced(2)
    snapshot(lane, both(lane))


# --- invalid specs that admission can't see ----------------------------------------------------------------


def test_an_invalid_spec_that_admission_lets_pass_keeps_the_last_good_state(settled: Lane) -> None:
    """Pruning and CEL do not look into an affinity."""
    whole = settled.children()
    expression = {"key": "a\nb", "operator": "Exists"}
    terms = [{"weight": 1, "preference": {"matchExpressions": [expression]}}]
    bad = {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": terms}}}
    settled.apply(pooler=bad, consumers=[{"namespace": settled.web}])
    message = settled.expect("SpecValid", "False", "Invalid")
    assert "spec.pooler.affinity" in message
    assert settled.condition("Ready")["reason"] == "Invalid"
    assert settled.children() == whole
    settled.apply()
    settled.expect("SpecValid", "True", "Valid")
    settled.expect("ConsumersSynced", "True", "Synced")


# --- consumers and consent ---------------------------------------------------------------------------------


def test_consumer_list_edits_add_and_remove_secrets_logins_and_entries(settled: Lane) -> None:
    settled.apply(
        consumers=[{"namespace": settled.backend, "secretName": "shop-db"}, {"namespace": settled.data}]
    )
    gone(settled, "Secret", settled.web, "database")
    gone(settled, "Secret", settled.web, "database-binding")
    settled.synced(2)
    eventually(
        lambda: snapshot(settled, (Consumer(settled.backend, "shop-db"), Consumer(settled.data, "database"))),
        REPAIR_SECONDS,
    )
    login = entries.login_name(Consumer(settled.web, "database"))
    assert f"consumer.{login}" not in (settled.secret(settled.data, "shop-pooler-logins") or {})
    assert login not in rules(settled)
    settled.apply(consumers=[])
    gone(settled, "Secret", settled.backend, "shop-db")
    settled.synced(0)


def test_target_namespace_without_consent_or_with_consent_withdrawn_gets_no_secret(settled: Lane) -> None:
    annotate(settled, settled.web, "other-namespace")
    gone(settled, "Secret", settled.web, "database")
    gone(settled, "Secret", settled.web, "database-binding")
    message = settled.expect("ConsumersSynced", "False", "NoConsent")
    assert f"kubectl annotate namespace {settled.web} poolkeeper.io/accept-from={settled.data}" in message
    assert [event for event in settled.events() if event["reason"] == "ConsumerRemoved"]
    assert entries.login_name(Consumer(settled.web, "database")) not in rules(settled)
    annotate(settled, settled.web, f"other-namespace, {settled.data}")
    settled.synced(2)
    annotate(settled, settled.web, None)
    gone(settled, "Secret", settled.web, "database")
    annotate(settled, settled.web, "*")
    eventually(lambda: snapshot(settled, both(settled)), REPAIR_SECONDS)
    settled.synced(2)


def test_consent_withdrawn_counts_although_the_source_secret_is_missing(settled: Lane) -> None:
    settled.api.delete(path("Secret", settled.data, "shop-owner"))
    settled.expect("UpstreamReachable", "False", "SecretMissing")
    annotate(settled, settled.web, None)
    gone(settled, "Secret", settled.web, "database")
    assert settled.secret(settled.backend, "shop-db") is not None


def test_target_namespace_missing_and_later_created_is_written_within_5_s(site: Site, lane: Lane) -> None:
    later = f"{lane.name}-later"
    site.operator((*lane.namespaces, later)).start()
    lane.apply(consumers=[{"namespace": lane.web}, {"namespace": later}])
    assert later in lane.expect("ConsumersSynced", "False", "NamespaceMissing")
    assert lane.resource()["status"]["consumers"]["synced"] == 1
    site.create_namespace(later, accept_from=lane.data)
    eventually(lambda: lane.secret(later, "database") is not None, 5)
    lane.synced(2)


def test_target_namespace_terminating_is_skipped_and_its_deletion_completes(settled: Lane) -> None:
    """A finalizer of somebody else holds the namespace; nothing is written there meanwhile."""
    holder = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "h", "finalizers": ["example.com/h"]},
    }
    settled.api.create(f"/api/v1/namespaces/{settled.web}/configmaps", holder)
    delete_namespace(settled, settled.web)
    settled.expect("ConsumersSynced", "False", "NamespaceTerminating")
    gone(settled, "Secret", settled.web, "database")
    settled.delete()
    gone(settled, "PooledDatabase", settled.data, "shop")
    patch = {"metadata": {"finalizers": None}}
    settled.api.merge(f"/api/v1/namespaces/{settled.web}/configmaps/h", patch)


def test_namespaces_that_a_selector_matches_come_and_go(site: Site, lane: Lane, operator: Operator) -> None:
    label = {"tier": lane.name}
    lane.apply(consumers=[{"namespaceSelector": {"matchLabels": label}}])
    lane.synced(0)
    for namespace in (lane.web, lane.backend):
        lane.api.merge(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": label}})
    lane.synced(2)
    annotate(lane, lane.backend, None)
    lane.synced(1)
    gone(lane, "Secret", lane.backend, "database")
    lane.api.merge(f"/api/v1/namespaces/{lane.web}", {"metadata": {"labels": {"tier": None}}})
    gone(lane, "Secret", lane.web, "database")
    lane.synced(0)


def test_kube_system_is_always_refused_even_if_it_consents_and_is_selected(site: Site, lane: Lane) -> None:
    site.operator((*lane.namespaces, "kube-system", "kube-public")).start()
    for namespace in ("kube-system", "kube-public"):
        lane.api.merge(
            f"/api/v1/namespaces/{namespace}",
            {"metadata": {"labels": {"tier": "all"}, "annotations": {names.ACCEPT_FROM_ANNOTATION: "*"}}},
        )
    lane.api.merge(f"/api/v1/namespaces/{lane.web}", {"metadata": {"labels": {"tier": "all"}}})
    lane.apply(consumers=[{"namespaceSelector": {"matchLabels": {"tier": "all"}}}])
    lane.synced(1)
    for namespace in ("kube-system", "kube-public"):
        assert lane.secret(namespace, "database") is None


def test_consumers_secrets_are_right_or_absent_and_never_half_made_during_churn(
    site: Site, settled: Lane
) -> None:
    """Every state that the API server ever showed of them, by its own history."""
    since = {
        namespace: lane_list["metadata"]["resourceVersion"]
        for namespace in (settled.web, settled.backend)
        for lane_list in [settled.api.get(path("Secret", namespace))]
    }
    churn: list[Any] = [
        lambda: settled.api.delete(path("Secret", settled.data, "shop-pooler-logins")),
        lambda: annotate(settled, settled.web, None),
        lambda: settled.apply(consumers=[{"namespace": settled.web, "secretName": "other"}]),
        lambda: annotate(settled, settled.web, settled.data),
        lambda: settled.put_source(username="o"),
        lambda: settled.apply(),
        lambda: settled.put_source(username="o", password="upstream-password-of-the-tests"),
        lambda: settled.api.delete(path("Secret", settled.web, "database")),
        lambda: settled.api.delete(path("Secret", settled.backend, "shop-db-binding")),
        lambda: settled.api.delete(path("Secret", settled.data, "shop-pooler-config")),
    ]
    for number in range(3 * len(churn)):
        try:
            churn[number % len(churn)]()
        except Refused as refusal:
            if refusal.code != 404:
                raise
        time.sleep(0.05 * (number % 4))  # now in the middle of the operator's work, now between
    settled.synced(2)
    eventually(lambda: snapshot(settled, both(settled)), REPAIR_SECONDS)
    seen = 0
    for namespace, version in since.items():
        for state in history(settled.api, path("Secret", namespace), version):
            values = {key: base64.b64decode(value).decode() for key, value in state["data"].items()}
            seen += 1
            if state["metadata"]["name"].endswith("-binding"):
                assert values["password"] in values["uri"]
                assert {"host", "port", "database", "username", "password", "uri", "type"} <= values.keys()
            elif state["metadata"]["name"].endswith("-keeper"):
                named = set(re.findall(r"/etc/poolkeeper/(\S+)", values["pgbouncer.ini"]))
                assert named - {POD_FILE} <= values.keys()
                assert len(named) == 6
            else:
                assert values["PGPASSWORD"] in values["DATABASE_URL"]
                assert values["PGPASSWORD"] in values["DATABASE_SESSION_URL"]
                assert {"PGHOST", "PGPORT", "PGUSER", "PGDATABASE"} <= values.keys()
    assert seen > 3


# --- Conflict instead of adoption --------------------------------------------------------------------------


def foreign_secret(lane: Lane, namespace: str, name: str, **metadata: Any) -> Object:
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, **metadata},
        "data": {"precious": _NONSENSE},
    }
    return lane.api.create(path("Secret", namespace), body)


@pytest.mark.parametrize("name", ["database", "database-binding"])
def test_a_foreign_secret_under_our_name_stays_untouched_and_is_a_conflict(
    lane: Lane, operator: Operator, name: str
) -> None:
    foreign = foreign_secret(lane, lane.web, name)
    lane.apply()
    message = lane.expect("ConsumersSynced", "False", "Conflict")
    assert f"Secret {lane.web}/{name} exists and is not Poolkeeper's" in message
    assert lane.get("Secret", name, lane.web) == foreign
    assert lane.secret(lane.backend, "shop-db") is not None
    lane.api.delete(path("Secret", lane.web, name))
    lane.synced(2)
    snapshot(lane, both(lane))


@pytest.mark.parametrize(
    ("kind", "name", "condition"),
    [
        ("Deployment", "shop-pooler", "PoolerAvailable"),
        ("Service", "shop-pooler", "PoolerAvailable"),
        ("Secret", "shop-pooler-config", "ConfigApplied"),
        ("Secret", "shop-pooler-logins", "ConfigApplied"),
    ],
)
def test_a_foreign_object_under_a_poolers_name_stays_untouched_and_is_a_conflict(
    lane: Lane, operator: Operator, kind: str, name: str, condition: str
) -> None:
    labels = {"app": "other"}
    bodies: dict[str, Object] = {
        "Deployment": {
            "apiVersion": "apps/v1",
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "a", "image": "example.com/a"}]},
                },
            },
        },
        "Service": {"apiVersion": "v1", "spec": {"ports": [{"port": 80}]}},
        "Secret": {"apiVersion": "v1"},
    }
    body = {**bodies[kind], "kind": kind, "metadata": {"name": name}}
    foreign = lane.api.create(path(kind, lane.data), body)
    lane.apply()

    message = lane.expect(condition, "False", "Conflict")
    assert f"{kind} {lane.data}/{name} exists and is not Poolkeeper's" in message
    assert lane.get(kind, name) == foreign
    before = lane.writes()
    time.sleep(7)  # longer than the interval at which a Conflict is looked at again
    assert lane.writes() == before
    lane.api.delete(path(kind, lane.data, name))

    def converged() -> None:
        assert lane.condition(condition)["reason"] != "Conflict"
        lane.synced(2, seconds=0)
        snapshot(lane, both(lane))

    eventually(converged, REPAIR_SECONDS)


def test_two_pooled_databases_that_want_the_same_secret_the_second_is_a_conflict(
    settled: Lane,
) -> None:
    whole = settled.children()
    settled.apply("second", consumers=[{"namespace": settled.web}])
    message = settled.expect("ConsumersSynced", "False", "Conflict", name="second")
    assert f"belongs to PooledDatabase {settled.data}/shop" in message
    assert [obj for obj in settled.children() if obj in whole] == whole
    settled.delete()
    settled.synced(1, name="second")
    owner = settled.get("Secret", "database", settled.web)["metadata"]["annotations"][names.OWNER_ANNOTATION]
    assert owner == f"{settled.data}/second"


def test_a_secret_with_forged_labels_gains_nothing(site: Site, settled: Lane) -> None:
    """It gets no password, neither where nothing is asked for nor in a namespace without consent."""
    closed = f"{settled.name}-closed"
    site.create_namespace(closed)
    site.operator((*settled.namespaces, closed)).start()
    real = settled.get("Secret", "database", settled.web)["metadata"]
    forged = {"labels": real["labels"], "annotations": real["annotations"]}
    foreign_secret(settled, settled.web, "loot", **forged)
    foreign_secret(settled, closed, "database", **forged)
    eventually(lambda: f"[Secret {closed}/database]" in settled.condition("ConsumersSynced")["message"], 10)
    assert settled.secret(settled.web, "loot") == {"precious": "nonsense"}
    assert settled.secret(closed, "database") == {"precious": "nonsense"}
    assert code_of(settled, "Secret", settled.web, "database") == 200


def test_a_secret_with_forged_labels_of_a_pooled_database_that_does_not_exist_is_left_alone(
    settled: Lane,
) -> None:
    labels = names.child_labels(settled.data, "ghost", "1-2-3", names.ROLE_CONSUMER)
    annotations = {names.OWNER_ANNOTATION: f"{settled.data}/ghost"}
    made = foreign_secret(settled, settled.web, "loot", labels=labels, annotations=annotations)
    settled.apply(pooler={"parameters": {"query_wait_timeout": 44}})
    eventually(lambda: "query_wait_timeout = 44" in config(settled)["pgbouncer.ini"], REPAIR_SECONDS)
    assert settled.get("Secret", "loot", settled.web) == made


@pytest.mark.parametrize("role", [names.ROLE_LOGINS, names.ROLE_CONFIG, names.ROLE_SOURCE])
def test_a_secret_with_forged_labels_of_another_role_gains_nothing(settled: Lane, role: str) -> None:
    uid = settled.resource()["metadata"]["uid"]
    whole = settled.children()
    made = foreign_secret(
        settled,
        settled.web,
        "shop-pooler-logins",
        labels=names.child_labels(settled.data, "shop", uid, role),
        annotations={names.OWNER_ANNOTATION: f"{settled.data}/shop"},
    )
    settled.apply(pooler={"parameters": {"query_wait_timeout": 44}})
    eventually(lambda: "query_wait_timeout = 44" in config(settled)["pgbouncer.ini"], REPAIR_SECONDS)
    logins = [obj for obj in whole if obj["metadata"]["name"] == "shop-pooler-logins"]
    assert [settled.get("Secret", "shop-pooler-logins")["data"]] == [obj["data"] for obj in logins]
    assert settled.get("Secret", "shop-pooler-logins", settled.web) == made


def copy_of(lane: Lane, obj: Object, namespace: str, name: str, tool: str) -> Object:
    """A copy with labels, annotations and data, made as these tools make one."""
    metadata = {key: obj["metadata"].get(key) for key in ("labels", "annotations")}
    body = {
        **{key: obj[key] for key in ("apiVersion", "kind", "type", "data")},
        "metadata": {**metadata, "name": name, "namespace": namespace},
    }
    if tool == "server-side apply":
        return lane.api.apply(path("Secret", namespace, name), body, manager="kubectl")
    if tool == "backup with managedFields":
        body["metadata"]["managedFields"] = obj["metadata"]["managedFields"]
    return lane.api.create(path("Secret", namespace), body)


def test_a_copy_of_a_consumers_secret_is_left_alone_and_reported_f9(site: Site, lane: Lane) -> None:
    """In a namespace that never consented, under another name, in that of the PooledDatabase; by any tool, also
    while no operator runs, and also when the PooledDatabase goes."""
    closed = f"{lane.name}-closed"
    site.create_namespace(closed)
    running = site.operator((*lane.namespaces, closed)).start()
    lane.apply()
    lane.synced(2)
    real = lane.get("Secret", "database", lane.web)
    keeper = lane.get("Secret", "database-keeper", lane.web)
    made = [
        copy_of(lane, real, closed, "database", "kubectl create"),
        copy_of(lane, real, lane.web, "loot", "server-side apply"),
        copy_of(lane, keeper, lane.data, "old-keeper", "backup with managedFields"),
    ]

    def unchanged() -> None:
        for obj in made:
            metadata = obj["metadata"]
            assert lane.get("Secret", metadata["name"], metadata["namespace"]) == obj

    def told() -> None:
        message = lane.condition("ConsumersSynced")["message"]
        for obj in made:
            assert f"[Secret {obj['metadata']['namespace']}/{obj['metadata']['name']}]" in message
        assert "a copy is neither kept up to date nor deleted; delete it, or remove its labels" in message

    eventually(told, REPAIR_SECONDS)
    assert len([event for event in lane.events() if event["reason"] == "CopyLeftAlone"]) == 3
    assert lane.condition("ConsumersSynced")["status"] == "True"
    unchanged()
    running.kill()
    running.reap()
    made.append(copy_of(lane, real, closed, "another", "server-side apply"))
    running.start()
    eventually(lambda: "and 1 more" in lane.condition("ConsumersSynced")["message"], REPAIR_SECONDS)
    quiet(lane, 2)
    unchanged()
    patch = {"metadata": {"labels": {names.ROLE_LABEL: None}}}
    made[1] = lane.api.merge(path("Secret", lane.web, "loot"), patch)
    eventually(lambda: "loot" not in lane.condition("ConsumersSynced")["message"], REPAIR_SECONDS)
    lane.delete()
    gone(lane, "PooledDatabase", lane.data, "shop")
    assert lane.secret(lane.web, "database") is None
    unchanged()


def test_a_copy_in_the_place_of_a_consumers_secret_is_a_conflict_until_it_is_deleted(
    site: Site, settled: Lane
) -> None:
    real = settled.get("Secret", "database", settled.web)
    made = copy_of(settled, real, settled.backend, "database", "kubectl create")
    settled.apply(consumers=[{"namespace": settled.web}, {"namespace": settled.backend}])
    message = settled.expect("ConsumersSynced", "False", "Conflict")
    assert f"Secret {settled.backend}/database exists and is a copy of an object of Poolkeeper's" in message
    assert "rename or delete it" in message
    assert settled.get("Secret", "database", settled.backend) == made
    settled.api.delete(path("Secret", settled.backend, "database"))
    settled.synced(2)
    login = entries.login_name(Consumer(settled.backend, "database"))
    assert (settled.secret(settled.backend, "database") or {})["PGUSER"] == login


def test_secrets_from_a_backup_are_repaired_where_they_are_wanted_and_left_alone_elsewhere(
    site: Site, lane: Lane
) -> None:
    running = site.operator(lane.namespaces).start()
    lane.apply()
    lane.synced(2)
    saved = {name: lane.get("Secret", name, lane.web) for name in ("database", "database-binding")}
    current = lane.get("Secret", "shop-db", lane.backend)
    lane.apply(consumers=[{"namespace": lane.backend, "secretName": "shop-db"}])
    gone(lane, "Secret", lane.web, "database")
    kept = copy_of(lane, saved["database"], lane.web, "database", "kubectl create")
    eventually(lambda: "/database]" in lane.condition("ConsumersSynced")["message"], REPAIR_SECONDS)
    assert lane.get("Secret", "database", lane.web) == kept
    running.kill()
    running.reap()
    lane.api.delete(path("Secret", lane.backend, "shop-db"))
    copy_of(lane, {**current, "data": saved["database"]["data"]}, lane.backend, "shop-db", "kubectl create")
    record = lane.get("Secret", "shop-pooler-logins")
    lane.api.delete(path("Secret", lane.data, "shop-pooler-logins"))
    copy_of(lane, record, lane.data, "shop-pooler-logins", "kubectl create")
    lane.apply()
    running.start()
    lane.synced(2)
    eventually(lambda: snapshot(lane, both(lane)), REPAIR_SECONDS)
    assert lane.get("Secret", "shop-db", lane.backend)["data"] == current["data"], "no password is made again"
    assert "copies" not in lane.condition("ConsumersSynced")["message"]


def test_objects_of_an_operator_that_wrote_no_place_are_taken_over_in_place(site: Site, lane: Lane) -> None:
    """An upgrade: nothing is made again, and what is not wanted any more still goes."""
    running = site.operator(lane.namespaces).start()
    lane.apply()
    lane.synced(2)
    running.kill()
    running.reap()
    before = {}
    for obj in lane.children():
        metadata = obj["metadata"]
        where = path(obj["kind"], metadata["namespace"], metadata["name"])
        lane.api.merge(where, {"metadata": {"annotations": {names.ORIGIN_ANNOTATION: None}}})
        before[where] = metadata["uid"]
    copied = copy_of(lane, lane.get("Secret", "database", lane.web), lane.web, "loot", "kubectl create")
    lane.apply(consumers=[{"namespace": lane.web}])
    running.start()
    lane.synced(1)
    gone(lane, "Secret", lane.backend, "shop-db")

    def taken_over() -> None:
        for obj in lane.children():
            metadata = obj["metadata"]
            if metadata["name"] == "loot":
                continue
            where = path(obj["kind"], metadata["namespace"], metadata["name"])
            assert metadata["uid"] == before[where], where
            assert (
                metadata["annotations"][names.ORIGIN_ANNOTATION]
                == f"{metadata['namespace']}/{metadata['name']}"
            )

    eventually(taken_over, REPAIR_SECONDS)
    assert lane.get("Secret", "loot", lane.web) == copied


def test_a_source_that_is_a_secret_of_poolkeepers_own_is_not_allowed(settled: Lane) -> None:
    upstream = {**settled.spec()["upstream"], "credentialsSecretRef": {"name": "shop-pooler-logins"}}
    settled.apply(upstream=upstream)
    assert "made by Poolkeeper itself" in settled.expect("UpstreamReachable", "False", "NotAllowed")


# --- scaling and names -------------------------------------------------------------------------------------


def test_replicas_set_by_the_scale_subresource_reach_the_deployment(settled: Lane) -> None:
    settled.api.merge(path("PooledDatabase", settled.data, "shop", "scale"), {"spec": {"replicas": 5}})
    eventually(lambda: settled.get("Deployment", "shop-pooler")["spec"]["replicas"] == 5, REPAIR_SECONDS)
    settled.api.merge(path("PooledDatabase", settled.data, "shop", "scale"), {"spec": {"replicas": 0}})
    settled.expect("PoolerAvailable", "False", "ScaledToZero")


def test_names_so_long_that_child_names_overflow_are_cut_with_a_hash_and_do_not_collide(
    site: Site, lane: Lane
) -> None:
    namespace = lane.name + "-" + "n" * (62 - len(lane.name))
    site.create_namespace(namespace, accept_from=lane.data)
    site.operator((*lane.namespaces, namespace)).start()
    secrets = ["s" * 200 + ".with.dots." + end for end in ("a", "b")]
    resources = ["p" * 252 + end for end in ("a", "b")]
    for name, secret in zip(resources, secrets, strict=True):
        lane.apply(name, consumers=[{"namespace": namespace, "secretName": secret}])
    for name, secret in zip(resources, secrets, strict=True):
        lane.synced(1, name=name)
        assert lane.secret(namespace, secret) is not None
    deployments = [obj["metadata"]["name"] for obj in lane.children() if obj["kind"] == "Deployment"]
    assert len(set(deployments)) == 2
    urls = [(lane.secret(namespace, secret) or {})["DATABASE_URL"] for secret in secrets]
    assert urls[0].rsplit("/", 1)[1] != urls[1].rsplit("/", 1)[1]
    for name in resources:
        lane.delete(name)
        gone(lane, "PooledDatabase", lane.data, name)
    assert not lane.children()
    assert lane.secret(namespace, secrets[0]) is None


@pytest.mark.parametrize("own", [0, 1], ids=["config", "logins"])
def test_a_consumer_named_like_a_shortened_secret_of_the_poolers_is_a_conflict_and_not_a_fight(
    lane: Lane, operator: Operator, own: int
) -> None:
    long = "p" * 80
    name = names.own_secrets(long)[own]
    lane.apply(long, consumers=[{"namespace": lane.data, "secretName": name}, {"namespace": lane.web}])
    message = lane.expect("ConsumersSynced", "False", "Conflict", name=long)
    assert f"Secret {lane.data}/{name} of this consumer would be a Secret of the poolers themselves" in message
    assert "choose another secretName" in message
    assert lane.resource(long)["status"]["consumers"]["synced"] == 1
    assert lane.secret(lane.web, "database") is not None
    quiet(lane, 3)
    lane.apply(long, consumers=[{"namespace": lane.data, "secretName": "other"}, {"namespace": lane.web}])
    lane.synced(2, name=long)


@pytest.mark.parametrize("own", [0, 1], ids=["config", "logins"])
def test_two_pooled_databases_that_claim_one_secret_do_not_fight_over_it_in_either_order(
    lane: Lane, operator: Operator, own: int
) -> None:
    long = "p" * 80
    claim = [{"namespace": lane.data, "secretName": names.own_secrets(long)[own]}]
    lane.apply(long)
    lane.synced(2, name=long)
    lane.apply(consumers=claim)
    message = lane.expect("ConsumersSynced", "False", "Conflict")
    assert f"belongs to PooledDatabase {lane.data}/{long}" in message
    assert message.endswith("choose another secretName here")
    quiet(lane, 2)
    lane.delete(long)
    lane.synced(1)
    lane.apply(long)
    message = lane.expect("ConfigApplied", "False", "Conflict", name=long)
    assert f"belongs to PooledDatabase {lane.data}/shop" in message
    assert message.endswith("choose another secretName there")
    lane.apply(consumers=[])
    lane.expect("ConfigApplied", "Unknown", "NoPodReady", name=long)
    lane.synced(2, name=long)


# --- deletion ----------------------------------------------------------------------------------------------


def test_deletion_while_the_operator_is_down_completes_on_return(site: Site, lane: Lane) -> None:
    running = site.operator(lane.namespaces).start()
    lane.apply()
    lane.synced(2)
    running.kill()
    running.reap()
    lane.delete()
    assert "deletionTimestamp" in lane.resource()["metadata"]
    running.start()
    gone(lane, "PooledDatabase", lane.data, "shop")
    assert [obj["metadata"]["name"] for obj in lane.objects()] == ["shop-owner"]
    assert "labels" not in lane.get("Secret", "shop-owner")["metadata"]


def test_deletion_while_the_database_is_down_and_the_source_is_gone_completes(
    lane: Lane, operator: Operator
) -> None:
    lane.apply(upstream={**lane.spec()["upstream"], "port": 1})
    lane.expect("UpstreamReachable", "False", "ConnectionRefused")
    lane.synced(2)
    lane.api.delete(path("Secret", lane.data, "shop-owner"))
    lane.delete()
    gone(lane, "PooledDatabase", lane.data, "shop")
    assert not lane.objects()


def test_deletion_of_the_pooled_databases_own_namespace_leaves_nothing_behind(settled: Lane) -> None:
    delete_namespace(settled, settled.data)

    def ended() -> bool:
        try:
            settled.api.get(f"/api/v1/namespaces/{settled.data}")
        except Refused as refusal:
            return refusal.code == 404
        return False

    eventually(ended, 30, every=0.3)
    assert not settled.objects()


def test_deleted_and_created_again_at_once_it_is_built_anew(settled: Lane) -> None:
    uid = settled.resource()["metadata"]["uid"]
    settled.delete()

    def applied() -> None:
        settled.apply()
        assert settled.resource()["metadata"]["uid"] != uid

    eventually(applied, REPAIR_SECONDS)
    settled.synced(2)
    eventually(lambda: snapshot(settled, both(settled)), REPAIR_SECONDS)


def test_finalizer_taken_off_by_force_and_created_again_it_converges(site: Site, lane: Lane) -> None:
    """The children of the one before carry its UID; the operator was down all the while."""
    running = site.operator(lane.namespaces).start()
    lane.apply()
    lane.synced(2)
    running.kill()
    running.reap()
    lane.delete()
    lane.api.merge(path("PooledDatabase", lane.data, "shop"), {"metadata": {"finalizers": None}})
    lane.apply()
    running.start()
    lane.synced(2)
    eventually(lambda: snapshot(lane, both(lane)), REPAIR_SECONDS)
    uid = lane.resource()["metadata"]["uid"]
    owners = {obj["metadata"]["labels"][names.OWNER_UID_LABEL] for obj in lane.children()}
    assert owners == {uid}


def test_what_is_left_of_a_pooled_database_that_vanished_by_force_goes(site: Site, lane: Lane) -> None:
    running = site.operator(lane.namespaces).start()
    lane.apply()
    lane.synced(2)
    running.kill()
    running.reap()
    lane.delete()
    lane.api.merge(path("PooledDatabase", lane.data, "shop"), {"metadata": {"finalizers": None}})
    running.start()
    eventually(lambda: not lane.children(), REPAIR_SECONDS)


@pytest.mark.parametrize("others", [[], ["example.com/h"]], ids=["ours alone", "and another"])
def test_a_finalizer_that_was_applied_with_the_resource_goes_all_the_same(
    others: list[str], lane: Lane, operator: Operator
) -> None:
    """As after kubectl get -o yaml and apply, or a restored backup: it belongs to another field manager."""
    body = lane.body()
    body["metadata"]["finalizers"] = [names.FINALIZER, *others]
    where = path("PooledDatabase", lane.data, "shop")
    lane.api.apply(where, body)
    lane.synced(2)
    lane.delete()
    eventually(lambda: not lane.children(), REPAIR_SECONDS)
    if others:
        eventually(lambda: lane.resource()["metadata"]["finalizers"] == others, REPAIR_SECONDS)
        lane.api.merge(where, {"metadata": {"finalizers": None}})
    with pytest.raises(Refused, match="not found"):  # noqa: PT012
        for _ in range(100):
            lane.resource()
            time.sleep(0.1)
    quiet(lane, 3)
