"""What is done for a PooledDatabase, in which order, and that doing it once is enough."""

import copy
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from poolkeeper import names
from poolkeeper.observed.namespaces import Namespace
from poolkeeper.observed.refs import ApiRefusal, Ref
from poolkeeper.plan.plan import plan
from poolkeeper.plan.status import status
from poolkeeper.plan.wanted import want
from poolkeeper.spec.parse import PooledDatabase
from tests.fast.worlds import KEY, NOW, SETTINGS, Simulation, ready_pod
from tests.fast.worlds import body as of_spec
from tests.specs import body, changed

APP = Ref("Secret", "web", "database")
BINDING = Ref("Secret", "web", "database-binding")
KEEPER = Ref("Secret", "web", "database-keeper")


def test_a_new_resource_gets_everything_and_then_nothing_is_written() -> None:
    cluster = Simulation()
    cluster.settle()
    assert {(ref.kind, ref.namespace, ref.name) for ref in cluster.objects} == {
        ("Secret", "data", "shop-pooler-logins"),
        ("Secret", "data", "shop-pooler-config"),
        ("Deployment", "data", "shop-pooler"),
        ("Service", "data", "shop-pooler"),
        ("PodDisruptionBudget", "data", "shop-pooler"),
        ("NetworkPolicy", "data", "shop-pooler"),
        tuple(APP),
        tuple(BINDING),
        tuple(KEEPER),
    }
    assert cluster.finalized
    assert cluster.marked == {"shop-owner"}
    written = len(cluster.log)
    cluster.settle()
    assert len(cluster.log) == written


def test_logins_and_finalizer_come_before_anything_that_uses_or_needs_them() -> None:
    cluster = Simulation()
    cluster.step()
    assert not cluster.objects
    assert cluster.finalized
    cluster.step()
    assert set(cluster.objects) == {Ref("Secret", "data", "shop-pooler-logins")}


def test_the_upstream_password_stays_in_the_namespace_of_the_database() -> None:
    cluster = Simulation()
    cluster.settle()
    for ref in (APP, BINDING):
        assert "upstream-password" not in str(cluster.values(ref.namespace, ref.name))


def test_a_running_pooler_learns_of_a_login_before_it_is_handed_out() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    cluster.namespaces["api"] = Namespace({}, "data", terminating=False)
    cluster.edit(consumers=[{"namespace": "web"}, {"namespace": "api"}])
    cluster.log.clear()
    cluster.settle()
    reload = next(index for index, line in enumerate(cluster.log) if line.startswith("reload"))
    assert cluster.log.index("apply Secret data/shop-pooler-config") < reload
    assert cluster.log.index("apply Secret api/database") > reload


def test_a_named_consumer_without_consent_gets_nothing_and_is_reported() -> None:
    cluster = Simulation()
    cluster.edit(consumers=[{"namespace": "closed"}])
    cluster.settle()
    assert not [ref for ref in cluster.objects if ref.namespace == "closed"]
    condition = cluster.condition("ConsumersSynced")
    assert (condition["status"], condition["reason"]) == ("False", "NoConsent")
    assert "kubectl annotate namespace closed poolkeeper.io/accept-from=data" in condition["message"]


def test_a_selected_namespace_without_consent_is_just_no_consumer() -> None:
    cluster = Simulation()
    cluster.edit(consumers=[{"namespaceSelector": {"matchLabels": {"tier": "apps"}}}])
    cluster.settle()
    assert {ref.namespace for ref in cluster.objects} == {"data", "web"}
    assert cluster.condition("ConsumersSynced")["status"] == "True"


def test_consent_withdrawn_removes_both_secrets_the_entries_and_the_login() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    before = cluster.values("data", "shop-pooler-config")
    cluster.namespaces["web"] = Namespace({}, "", terminating=False)
    cluster.settle()
    assert APP not in cluster.objects
    assert BINDING not in cluster.objects
    after = cluster.values("data", "shop-pooler-config")
    assert "web" in before["caps-pod-1.ini"]
    assert "web" not in after["caps-pod-1.ini"]
    [before_users, after_users] = (
        next(text for name, text in files.items() if name.startswith("userlist-") and name in ini)
        for files in (before, after)
        for ini in [files["pgbouncer.ini"]]
    )
    assert "web" in before_users
    assert "web" not in after_users


def test_kube_system_is_refused_even_if_it_consents() -> None:
    cluster = Simulation()
    cluster.namespaces["kube-system"] = Namespace({"tier": "apps"}, "*", terminating=False)
    cluster.edit(consumers=[{"namespaceSelector": {"matchLabels": {"tier": "apps"}}}])
    cluster.settle()
    assert not [ref for ref in cluster.objects if ref.namespace == "kube-system"]


def test_a_terminating_namespace_is_skipped() -> None:
    cluster = Simulation()
    cluster.namespaces["web"] = Namespace({}, "data", terminating=True)
    cluster.settle()
    assert APP not in cluster.objects
    assert cluster.condition("ConsumersSynced")["reason"] == "NamespaceTerminating"


def test_a_child_edited_or_deleted_by_hand_is_repaired() -> None:
    cluster = Simulation()
    cluster.settle()
    whole = copy.deepcopy(cluster.objects)
    del cluster.objects[APP]
    cluster.objects[Ref("Service", "data", "shop-pooler")]["spec"]["ports"][0]["port"] = 1
    cluster.settle()
    assert cluster.objects[APP] == whole[APP]
    assert cluster.objects[Ref("Service", "data", "shop-pooler")]["spec"]["ports"][0]["port"] == 6432


def test_a_missing_password_key_keeps_the_last_good_state_running() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    whole = copy.deepcopy(cluster.objects)
    cluster.secrets = {"shop-owner": {"username": b"shop_owner"}}
    cluster.settle()
    assert cluster.objects == whole
    assert cluster.condition("Ready")["reason"] == "SecretKeyMissing"


def test_no_half_made_secret_while_the_credentials_are_missing() -> None:
    cluster = Simulation(secrets={})
    cluster.settle()
    assert APP not in cluster.objects
    assert cluster.condition("UpstreamReachable")["reason"] == "SecretMissing"
    assert cluster.condition("Ready")["status"] == "False"


def test_parameters_of_the_url_that_have_no_effect_are_named_in_the_status() -> None:
    url = b"postgres://shop_owner:s3cret@pg/shop?pool_timeout=5&sslmode=require&application_name=web"
    spec = changed("upstream", {"uriSecretRef": {"name": "shop-owner"}})
    cluster = Simulation(resource=body(spec), secrets={"shop-owner": {"uri": url}}, pods=(ready_pod(),))
    cluster.settle()
    message = cluster.condition("UpstreamReachable")["message"]
    assert message.endswith(
        "; without effect in the URL: pool_timeout, application_name (set in the app what tunes a client)"
    )
    assert cluster.condition("Ready")["status"] == "True"


def test_a_rotated_password_that_works_is_taken_over() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    cluster.secrets = {"shop-owner": {"username": b"shop_owner", "password": b"rotated"}}
    cluster.settle()
    assert "password='rotated'" in cluster.values("data", "shop-pooler-config")["caps-pod-1.ini"]
    assert cluster.condition("Ready")["status"] == "True"


def test_a_rotated_password_that_is_wrong_never_reaches_the_poolers() -> None:
    cluster = Simulation(pods=(ready_pod(),), accepts={"wrong": "AuthenticationFailed"})
    cluster.settle()
    whole = copy.deepcopy(cluster.objects)
    cluster.secrets = {"shop-owner": {"username": b"shop_owner", "password": b"wrong"}}
    cluster.settle()
    assert cluster.objects == whole
    assert cluster.condition("Ready")["reason"] == "AuthenticationFailed"
    assert "stay in use" in cluster.condition("UpstreamReachable")["message"]


def test_a_restarted_operator_reports_the_upstream_as_before_until_it_has_asked() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    cluster.probe = None
    resource = cluster.world().resource
    assert resource is not None
    assert isinstance(resource.spec, PooledDatabase)
    wanted = want(resource.spec, cluster.world(), SETTINGS, NOW)
    assert status.of(resource.spec, wanted, cluster.world(), NOW) == (None, ())


def test_an_invalid_spec_changes_nothing_and_says_why() -> None:
    cluster = Simulation()
    cluster.settle()
    whole = copy.deepcopy(cluster.objects)
    cluster.edit(pooler={"parameters": {"admin_users": "me"}})
    cluster.settle()
    assert cluster.objects == whole
    assert cluster.condition("Ready")["reason"] == "Invalid"
    assert "spec.pooler.parameters.admin_users" in cluster.condition("SpecValid")["message"]


def test_a_scale_request_touches_the_deployment_alone() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    cluster.log.clear()
    cluster.edit(pooler={"replicas": 5})
    cluster.settle()
    assert [line for line in cluster.log if line != "status"] == ["apply Deployment data/shop-pooler"]


def test_a_parameter_change_reloads_every_ready_pod_and_restarts_none() -> None:
    cluster = Simulation(pods=(ready_pod(1), ready_pod(2)))
    cluster.settle()
    deployment = copy.deepcopy(cluster.objects[Ref("Deployment", "data", "shop-pooler")])
    cluster.log.clear()
    cluster.edit(pooler={"parameters": {"query_wait_timeout": 30}})
    cluster.settle()
    assert sum(line.startswith("reload") for line in cluster.log) == 2
    assert cluster.objects[Ref("Deployment", "data", "shop-pooler")] == deployment


def test_a_parameter_that_needs_a_restart_rolls_the_pods() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    deployment = copy.deepcopy(cluster.objects[Ref("Deployment", "data", "shop-pooler")])
    cluster.edit(pooler={"parameters": {"listen_backlog": 256}})
    cluster.settle()
    assert cluster.objects[Ref("Deployment", "data", "shop-pooler")] != deployment


def test_the_files_of_the_generation_before_stay_beside_the_current_ones() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    first = cluster.values("data", "shop-pooler-config")
    cluster.edit(pooler={"parameters": {"query_wait_timeout": 30}})
    cluster.settle()
    second = cluster.values("data", "shop-pooler-config")
    cluster.edit(pooler={"parameters": {"query_wait_timeout": 31}})
    cluster.settle()
    third = cluster.values("data", "shop-pooler-config")
    logins_and_rules = {name for name in first if name.startswith(("userlist-", "hba-"))}
    assert len(logins_and_rules) == 2
    assert logins_and_rules < second.keys()
    assert not logins_and_rules & third.keys()


def test_deletion_removes_everything_waits_for_the_pods_and_frees_the_resource() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.settle()
    cluster.deleting = True
    cluster.step()
    # What the pods may hold of the server, and how to reach them, is known to their end.
    assert {ref.name for ref in cluster.objects} == {"shop-pooler-config", "shop-pooler-logins"}
    assert not cluster.marked
    cluster.step()
    assert cluster.finalized
    cluster.pods = ()
    cluster.step()
    assert not cluster.objects
    cluster.step()
    assert not cluster.finalized


def test_deletion_needs_neither_a_valid_spec_nor_the_source_secret() -> None:
    cluster = Simulation()
    cluster.settle()
    cluster.edit(upstream={"host": "a\nb"})
    cluster.secrets = {}
    cluster.deleting = True
    for _ in range(3):
        cluster.step()
    assert not cluster.objects
    assert not cluster.finalized


_EDITS = st.sampled_from(
    [
        {"pooler": {"replicas": 4}},
        {"pooler": {"mode": "session"}},
        {"pooler": {"parameters": {"stats_period": 7}}},
        {"pooler": {"parameters": {"bogus": 1}}},
        {"consumers": []},
        {"consumers": [{"namespace": "web"}, {"namespace": "closed"}, {"namespace": "data"}]},
        {"consumers": [{"namespaceSelector": {}}]},
        {"consumers": [{"namespace": "nowhere"}]},
    ]
)
_PASSWORDS = st.sampled_from([b"upstream-password", b"rotated", b"wrong", b"", None])


@settings(max_examples=150)
@given(st.lists(st.tuples(_EDITS, _PASSWORDS, st.integers(0, 3)), max_size=6))
def test_planning_on_its_own_result_changes_nothing(
    changes: list[tuple[dict[str, Any], bytes | None, int]],
) -> None:
    cluster = Simulation(accepts={"wrong": "AuthenticationFailed"})
    for edit, password, pods in changes:
        cluster.edit(**edit)
        cluster.secrets = (
            {} if password is None else {"shop-owner": {"username": b"shop_owner", "password": password}}
        )
        cluster.pods = tuple(ready_pod(number) for number in range(pods))
        cluster.settle()
        settled = (copy.deepcopy(cluster.objects), dict(cluster.status), len(cluster.log))
        cluster.settle()
        assert (cluster.objects, cluster.status, len(cluster.log)) == settled
    assert KEY.namespace == "data"


def test_withdrawn_consent_counts_even_while_the_spec_is_invalid() -> None:
    cluster = Simulation()
    cluster.settle()
    cluster.edit(pooler={"parameters": {"bogus": 1}})
    cluster.namespaces["web"] = Namespace({}, "", terminating=False)
    cluster.settle()
    assert not [ref for ref in cluster.objects if ref.namespace == "web"]
    assert Ref("Deployment", "data", "shop-pooler") in cluster.objects


def test_what_an_earlier_resource_of_the_same_name_left_behind_is_made_anew() -> None:
    cluster = Simulation()
    cluster.settle()
    cluster.stale = {Ref("Service", "data", "shop-pooler")}
    steps = cluster.plan()
    assert [ref for ref, _ in steps.delete] == [Ref("Service", "data", "shop-pooler")]


def test_logins_that_are_not_all_made_are_stored_and_nothing_else_happens() -> None:
    cluster = Simulation(resource=of_spec(consumers=[{"namespace": "web"}, {"namespace": "data"}]))
    cluster.settle()
    world = cluster.world()
    one, *_ = sorted(world.logins.consumers)
    known = replace(world.logins, consumers={one: world.logins.consumers[one]})
    steps = plan(KEY, replace(world, logins=known), SETTINGS, NOW)
    assert [obj["metadata"]["name"] for obj in steps.apply] == [names.logins_name("shop")]
    assert not steps.delete
    refusal = ApiRefusal("Invalid", "too long")
    refused = {Ref("Secret", "data", names.logins_name("shop")): refusal}
    steps = plan(KEY, replace(world, logins=known, refusals=refused), SETTINGS, NOW)
    assert steps.settled, "a consumer without a login keeps its Secrets"
    assert steps.requeue is not None


def test_nothing_is_repaired_in_a_namespace_that_is_being_deleted() -> None:
    cluster = Simulation()
    cluster.settle()
    cluster.namespaces["data"] = Namespace({}, "", terminating=True)
    del cluster.objects[Ref("Service", "data", "shop-pooler")]
    steps = cluster.plan()
    assert steps.settled
    assert steps.status is None
