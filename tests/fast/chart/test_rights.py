"""What the chart lets the operator and others do. A change of rights has to be stated here as well."""

from __future__ import annotations

import json

import pytest

from poolkeeper import names
from tests.fast.helm_chart import (
    BOTH_MODES,
    NAMESPACE,
    WATCHING,
    Object,
    hook,
    installed,
    only,
    render,
    rights,
    select,
)

READ = frozenset({"get", "list", "watch"})
CHILD = READ | {"create", "patch", "delete"}

WORK_RIGHTS = {
    "poolkeeper.io/pooleddatabases": READ | {"patch"},
    "poolkeeper.io/pooleddatabases/status": frozenset({"patch"}),
    "apps/deployments": CHILD,
    "/services": CHILD,
    "policy/poddisruptionbudgets": CHILD,
    "autoscaling/horizontalpodautoscalers": CHILD,
    "networking.k8s.io/networkpolicies": CHILD,
    "/secrets": CHILD,
    "/pods": READ,
    "/pods/status": frozenset({"patch"}),
    "/pods/eviction": frozenset({"create"}),
    "discovery.k8s.io/endpointslices": frozenset({"list", "watch"}),
    "/events": frozenset({"create"}),
}
NAMESPACE_RIGHTS = {"/namespaces": READ}
LEASE_RIGHTS = {
    "coordination.k8s.io/leases[poolkeeper]": frozenset({"get", "update"}),
    "coordination.k8s.io/leases": frozenset({"create"}),
}
WEBHOOK_RIGHTS = {
    "admissionregistration.k8s.io/mutatingwebhookconfigurations[poolkeeper-webhook]": frozenset(
        {"get", "patch"}
    )
}
WEBHOOK_SECRET_RIGHTS = {"/secrets[poolkeeper-webhook]": frozenset({"get", "create", "patch"})}
OWN_RIGHTS = LEASE_RIGHTS | WEBHOOK_SECRET_RIGHTS
EVENT_RIGHTS = {"/events": frozenset({"create"})}
"""Every right of the operator. Whoever changes the chart's RBAC states it here as well: never by accident."""


def granted(objects: list[Object], account: str = "poolkeeper") -> dict[str, dict[str, frozenset[str]]]:
    """What the bindings let this account do, by scope: "*" for the whole cluster, else a namespace."""
    roles = {
        (obj["kind"], obj["metadata"].get("namespace"), obj["metadata"]["name"]): obj
        for obj in objects
        if obj["kind"] in ("Role", "ClusterRole")
    }
    subject = {"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}
    found: dict[str, dict[str, frozenset[str]]] = {}
    for binding in select(objects, "RoleBinding") + select(objects, "ClusterRoleBinding"):
        assert binding["subjects"] == [subject]
        namespace = binding["metadata"].get("namespace")
        role = roles[(binding["roleRef"]["kind"], namespace, binding["roleRef"]["name"])]
        scope = found.setdefault(namespace or "*", {})
        for key, verbs in rights(role).items():
            assert key not in scope
            scope[key] = verbs
    return found


def test_rights_cluster_wide() -> None:
    assert granted(installed(render())) == {
        "*": WORK_RIGHTS | NAMESPACE_RIGHTS | WEBHOOK_RIGHTS,
        NAMESPACE: OWN_RIGHTS,
    }


def test_rights_in_watched_namespaces() -> None:
    assert granted(installed(render(*WATCHING))) == {
        "data": WORK_RIGHTS,
        "web": WORK_RIGHTS,
        "*": NAMESPACE_RIGHTS | WEBHOOK_RIGHTS,
        NAMESPACE: OWN_RIGHTS | EVENT_RIGHTS,
    }


def test_rights_in_watched_namespaces_without_selectors_and_webhook_end_there() -> None:
    switches = "namespaceSelectors=false,webhook.enabled=false"
    found = granted(installed(render(*WATCHING, "--set", switches)))
    assert found == {"data": WORK_RIGHTS, "web": WORK_RIGHTS, NAMESPACE: LEASE_RIGHTS | EVENT_RIGHTS}


@pytest.mark.parametrize("source", ["CertManager", "Secret"])
def test_a_certificate_of_others_takes_no_right_of_ours(source: str) -> None:
    values = f"webhook.certificate.source={source},webhook.certificate.secretName=own"
    pem = "webhook.certificate.caBundle=-----BEGIN CERTIFICATE-----"
    found = granted(installed(render("--set", values, "--set", pem)))
    assert found == {"*": WORK_RIGHTS | NAMESPACE_RIGHTS, NAMESPACE: LEASE_RIGHTS}


def test_a_right_to_restart_workloads_is_given_on_request_only() -> None:
    restarting = ("--set", "keeper.restartWorkloads=true")
    work = WORK_RIGHTS | {
        "apps/statefulsets": frozenset({"get", "patch"}),
        "apps/daemonsets": frozenset({"get", "patch"}),
        "apps/replicasets": frozenset({"get"}),
    }
    found = granted(installed(render(*restarting)))
    assert found == {"*": work | NAMESPACE_RIGHTS | WEBHOOK_RIGHTS, NAMESPACE: OWN_RIGHTS}
    found = granted(installed(render(*WATCHING, *restarting)))
    assert (found["data"], found["web"]) == (work, work)


def test_the_own_namespace_can_be_watched_too() -> None:
    found = granted(installed(render("--set", f"watchNamespaces={{{NAMESPACE}}}")))
    assert found == {"*": NAMESPACE_RIGHTS | WEBHOOK_RIGHTS, NAMESPACE: WORK_RIGHTS | OWN_RIGHTS}


def at(event: str, objects: list[Object]) -> list[Object]:
    return [obj for obj in objects if hook(obj) == event]


def test_helm_test_may_read_one_lease() -> None:
    found = granted(at("test", render()), "poolkeeper-test")
    assert found == {NAMESPACE: {"coordination.k8s.io/leases[poolkeeper]": frozenset({"get"})}}


def test_the_uninstallation_may_take_finalizers_off_where_the_operator_worked() -> None:
    rights_then = {"poolkeeper.io/pooleddatabases": frozenset({"list", "patch"})}
    assert granted(at("post-delete", render()), "poolkeeper-uninstall") == {"*": rights_then}
    found = granted(at("post-delete", render(*WATCHING)), "poolkeeper-uninstall")
    assert found == {"data": rights_then, "web": rights_then}


@BOTH_MODES
def test_no_role_holds_a_wildcard_or_a_way_to_more_rights(mode: tuple[str, ...]) -> None:
    roles = [obj for obj in render(*mode) if obj["kind"] in ("Role", "ClusterRole")]
    assert len(roles) >= 6
    for role in roles:
        assert "aggregationRule" not in role
        for rule in role["rules"]:
            assert "nonResourceURLs" not in rule
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
            assert not {"pods/exec", "pods/attach", "pods/portforward", "serviceaccounts/token"} & set(
                rule["resources"]
            )
            assert "rbac.authorization.k8s.io" not in rule["apiGroups"]


def test_roles_for_users_are_aggregated_and_bound_to_nobody() -> None:
    roles = {obj["metadata"]["name"]: obj for obj in select(render(), "ClusterRole")}

    def joins(name: str) -> set[str]:
        labels = roles[name]["metadata"]["labels"]
        prefix = "rbac.authorization.k8s.io/aggregate-to-"
        return {key.removeprefix(prefix) for key in labels if key.startswith(prefix) and labels[key] == "true"}

    assert joins("poolkeeper-view") == {"view", "edit", "admin"}
    assert rights(roles["poolkeeper-view"]) == {
        "poolkeeper.io/pooleddatabases": READ,
        "poolkeeper.io/pooleddatabases/status": frozenset({"get"}),
        "poolkeeper.io/pooleddatabases/scale": frozenset({"get"}),
    }
    assert joins("poolkeeper-edit") == {"edit", "admin"}
    assert rights(roles["poolkeeper-edit"]) == {
        "poolkeeper.io/pooleddatabases": frozenset({"create", "update", "patch", "delete", "deletecollection"}),
        "poolkeeper.io/pooleddatabases/scale": frozenset({"update", "patch"}),
    }
    for name in ("poolkeeper", "poolkeeper-namespaces", "poolkeeper-service-binding"):
        assert joins(name) == set()
    bound = {binding["roleRef"]["name"] for binding in select(installed(render()), "ClusterRoleBinding")}
    assert bound == {"poolkeeper", "poolkeeper-namespaces", "poolkeeper-webhook"}


def test_service_binding_controllers_may_read() -> None:
    [role] = [
        obj
        for obj in select(render(), "ClusterRole")
        if obj["metadata"]["labels"].get("servicebinding.io/controller") == "true"
    ]
    assert rights(role) == {"poolkeeper.io/pooleddatabases": READ}


@pytest.mark.parametrize(
    ("name", "resources"),
    [
        ("poolkeeper-pod-status", ["pods/status"]),
        ("poolkeeper-pod-eviction", ["pods/eviction"]),
        ("poolkeeper-webhook-bundle", ["mutatingwebhookconfigurations"]),
        ("poolkeeper-workload-restart", ["deployments", "statefulsets", "daemonsets"]),
        ("poolkeeper-deployments", ["deployments"]),
        (
            "poolkeeper-children",
            ["services", "poddisruptionbudgets", "horizontalpodautoscalers", "networkpolicies"],
        ),
        ("poolkeeper-secrets", ["secrets"]),
        ("poolkeeper-resource", ["pooleddatabases"]),
    ],
)
def test_each_admission_policy_speaks_of_the_operators_account(name: str, resources: list[str]) -> None:
    """Its expressions run in the API server; here only that it meets the right account and denies."""
    restarting = "keeper.restartWorkloads=true"
    objects = render("--set", f"serviceAccount.name=keeper-of-pools,{restarting}")
    [policy] = [obj for obj in select(objects, "ValidatingAdmissionPolicy") if obj["metadata"]["name"] == name]
    condition = policy["spec"]["matchConditions"][0]
    user = f"system:serviceaccount:{NAMESPACE}:keeper-of-pools"
    assert condition["expression"] == f'request.userInfo.username == "{user}"'
    assert only(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "keeper-of-pools"
    assert policy["spec"]["failurePolicy"] == "Fail"
    rules = policy["spec"]["matchConstraints"]["resourceRules"]
    assert [resource for rule in rules for resource in rule["resources"]] == resources
    [binding] = [
        obj for obj in select(objects, "ValidatingAdmissionPolicyBinding") if obj["metadata"]["name"] == name
    ]
    assert binding["spec"] == {"policyName": name, "validationActions": ["Deny"]}
    without = render("--set", f"admissionPolicy.enabled=false,{restarting}")
    assert not [obj for obj in without if obj["kind"].startswith("ValidatingAdmissionPolicy")]


def test_the_policy_on_workloads_knows_our_annotations_and_labels() -> None:
    [policy] = [
        obj
        for obj in select(render("--set", "keeper.restartWorkloads=true"), "ValidatingAdmissionPolicy")
        if obj["metadata"]["name"] == "poolkeeper-workload-restart"
    ]
    prefix = names.RESTARTED_FOR_ANNOTATION.format("")
    assert f'startsWith("{prefix}")' in policy["spec"]["validations"][0]["expression"]
    [_, exempt] = policy["spec"]["matchConditions"]
    assert f'[?"{names.ROLE_LABEL}"].orValue("") == "{names.ROLE_POOLER}"' in exempt["expression"]
    assert "workload-restart" not in str(render())


def test_the_policy_on_pods_knows_the_prefix_of_our_annotations() -> None:
    [policy] = [
        obj
        for obj in select(render(), "ValidatingAdmissionPolicy")
        if obj["metadata"]["name"] == "poolkeeper-pod-status"
    ]
    assert names.GENERATION_ANNOTATION.startswith(f"{names.GROUP}/")
    assert f'startsWith("{names.GROUP}/")' in policy["spec"]["validations"][0]["expression"]


def test_the_policy_on_pods_knows_the_gate_and_the_label_of_poolers() -> None:
    [policy] = [
        obj
        for obj in select(render(), "ValidatingAdmissionPolicy")
        if obj["metadata"]["name"] == "poolkeeper-pod-status"
    ]
    text = str(policy["spec"])
    assert text.count(f'"{names.GATE}"') == 4
    assert f'[?"{names.ROLE_LABEL}"].orValue("") == "{names.ROLE_POOLER}"' in text


def test_every_kind_that_the_operator_may_create_in_a_namespace_is_held_by_a_policy() -> None:
    """Events and Leases apart: they run nothing and select nothing."""
    held = {
        resource
        for policy in select(render(), "ValidatingAdmissionPolicy")
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]
        for resource in rule["resources"]
    }
    created = {right.rpartition("/")[2] for right, verbs in WORK_RIGHTS.items() if "create" in verbs}
    assert created - {"events", "eviction"} <= held
    assert "pods/eviction" in held


def test_the_policy_on_deployments_knows_what_a_pooler_runs() -> None:
    [policy] = [
        obj
        for obj in select(render(), "ValidatingAdmissionPolicy")
        if obj["metadata"]["name"] == "poolkeeper-deployments"
    ]
    assert f'["pgbouncer", "{names.CONFIG_DIRECTORY}/pgbouncer.ini"]' in str(policy["spec"])
    assert len(policy["spec"]["matchConditions"]) == 1
    restarting = render("--set", "keeper.restartWorkloads=true")
    [policy] = [obj for obj in restarting if obj["metadata"]["name"] == policy["metadata"]["name"]][:1]
    assert len(policy["spec"]["matchConditions"]) == 2


def test_the_policy_on_secrets_knows_every_role_of_ours() -> None:
    [policy] = [
        obj
        for obj in select(render(), "ValidatingAdmissionPolicy")
        if obj["metadata"]["name"] == "poolkeeper-secrets"
    ]
    own = next(item for item in policy["spec"]["variables"] if item["name"] == "own")["expression"]
    roles = {value for name, value in vars(names).items() if name.startswith("ROLE_") and name != "ROLE_LABEL"}
    assert set(json.loads(own)) == roles - {names.ROLE_SOURCE, names.ROLE_POOLER}
