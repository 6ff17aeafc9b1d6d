"""What the API server itself refuses, with words that help, and what it does with what it accepts."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.utils import parse_quantity

from e2e.cluster import binaries
from poolkeeper.spec.parameters import OWNED_REMEDIES, PARAMETERS, Parameter, validate
from poolkeeper.spec.parse import parse
from poolkeeper.spec.values import SpecError
from tests import specs
from tests.apiserver.client import Api, Refused
from tests.specs import (
    BY_HOST,
    BY_SECRET,
    BY_URL,
    CONTROL_CHARACTERS,
    MINIMAL,
    Bad,
    body,
    changed,
    consumers,
    parameter,
)

CRD: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "crds" / "pooleddatabases.yaml").read_text())


def collection(namespace: str) -> str:
    return f"/apis/poolkeeper.io/v1alpha1/namespaces/{namespace}/pooleddatabases"


def admitted(api: Api, spec: specs.Spec, name: str = "shop") -> dict[str, Any]:
    """What the API server would store."""
    return api.create(collection("default"), {**body(spec), "metadata": {"name": name}}, dry_run=True)


def shop_resource() -> dict[str, Any]:
    return {**body(MINIMAL), "metadata": {"name": "shop"}}


def refusal(api: Api, spec: specs.Spec, name: str = "shop") -> str:
    with pytest.raises(Refused) as refused:
        admitted(api, spec, name)
    assert refused.value.code == 422
    return refused.value.message


def assert_refused(api: Api, bad: Bad) -> None:
    message = refusal(api, bad.spec)
    for word in bad.words:
        assert word in message


def rows(bad: tuple[Bad, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bad", bad, ids=lambda row: row.id)


@pytest.mark.parametrize("character", CONTROL_CHARACTERS.values(), ids=list(CONTROL_CHARACTERS))
def test_line_feed_cr_nul_and_u2028_in_any_value_are_refused_at_admission(api: Api, character: str) -> None:
    for spec in (BY_HOST, BY_URL, BY_SECRET):
        for path in specs.texts(spec):
            if path[:2] == ("pooler", "affinity"):
                continue  # free-form in the schema; parse() looks inside
            message = refusal(api, specs.with_character(spec, path, character))
            where = [str(step) for step in path if not isinstance(step, int)]
            assert re.search(r".*".join(re.escape(step) for step in where[:3]), message), (path, message)


def test_the_specs_of_these_tests_use_every_text_of_the_schema() -> None:
    schema = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    used = {_shape(path) for spec in (BY_HOST, BY_URL, BY_SECRET) for path in specs.texts(spec)}
    refused_anyway = {path for path in _texts_of(schema) if path.endswith("Ref.namespace")}
    assert set(_texts_of(schema)) - refused_anyway - used == set()


def _shape(path: specs.Path) -> str:
    free = {"parameters", "startupParameters", "requests", "limits", "podLabels", "podAnnotations"}
    free |= {"serviceAnnotations", "nodeSelector", "matchLabels"}
    steps = ["[]" if isinstance(step, int) else step for step in path]
    return ".".join("*" if before in free else step for before, step in zip(["", *steps], steps, strict=False))


def _texts_of(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    if schema.get("type") == "string" or schema.get("x-kubernetes-int-or-string") or "pattern" in schema:
        yield path
    children = dict(schema.get("properties", {}))
    if "additionalProperties" in schema:
        children["*"] = schema["additionalProperties"]
    if "items" in schema:
        children["[]"] = schema["items"]
    for key, child in children.items():
        yield from _texts_of(child, f"{path}.{key}" if path else key)


@rows(specs.PARAMETER_NAMES)
def test_include_section_unknown_and_operator_owned_parameters_are_refused_at_admission(
    api: Api, bad: Bad
) -> None:
    assert_refused(api, bad)


@pytest.mark.parametrize("name", OWNED_REMEDIES)
def test_every_operator_owned_parameter_is_refused_by_name_with_its_remedy(api: Api, name: str) -> None:
    message = refusal(api, parameter(name, 1))
    assert f"spec.pooler.parameters.{name}: belongs to the operator; {OWNED_REMEDIES[name]}" in message


@rows(specs.DATABASES)
def test_database_named_pgbouncer_or_star_or_of_64_bytes_is_refused_at_admission(api: Api, bad: Bad) -> None:
    assert_refused(api, bad)


def test_database_name_of_63_bytes_is_accepted(api: Api) -> None:
    admitted(api, changed("upstream.database", "ä" * 31 + "x"))


@rows(specs.CLIENT_LIMITS)
def test_client_limit_minus_1_or_0_or_1e9_or_quoted_20_is_refused_at_admission(api: Api, bad: Bad) -> None:
    assert_refused(api, bad)


@rows(specs.PARAMETER_VALUES)
def test_parameter_value_of_the_wrong_kind_is_refused_at_admission(api: Api, bad: Bad) -> None:
    assert_refused(api, bad)


@rows(specs.NEWER_PARAMETERS)
def test_a_parameter_that_the_operators_own_image_lacks_is_refused_at_admission(api: Api, bad: Bad) -> None:
    assert_refused(api, bad)


@rows(specs.VERIFYING_WITHOUT_CA)
def test_verify_full_without_ca_is_refused_at_admission(api: Api, bad: Bad) -> None:
    assert_refused(api, bad)


@rows(specs.CA_WITHOUT_TLS)
def test_a_ca_without_tls_is_refused_at_admission(api: Api, bad: Bad) -> None:
    assert_refused(api, bad)


@rows(specs.SECRETS_OF_ANOTHER_NAMESPACE)
def test_a_secret_of_another_namespace_as_source_is_refused_at_admission(api: Api, bad: Bad) -> None:
    assert_refused(api, bad)


@rows(specs.SYSTEM_NAMESPACES)
def test_target_namespace_kube_system_is_refused_at_admission(api: Api, bad: Bad) -> None:
    assert_refused(api, bad)


@rows(specs.CONSUMERS)
def test_consumers_that_repeat_or_collide_are_refused_at_admission(api: Api, bad: Bad) -> None:
    assert_refused(api, bad)


@rows(specs.SECRET_NAMES)
def test_secret_name_that_no_secret_can_have_is_refused_at_admission(api: Api, bad: Bad) -> None:
    assert_refused(api, bad)


@rows(specs.UPSTREAMS)
def test_upstream_without_exactly_one_source_or_with_a_bad_host_is_refused_at_admission(
    api: Api, bad: Bad
) -> None:
    assert_refused(api, bad)


@rows(specs.POOLERS)
def test_negative_drain_and_other_pooler_faults_are_refused_at_admission(api: Api, bad: Bad) -> None:
    assert_refused(api, bad)


@rows(specs.KEEPERS)
def test_keeper_with_a_pool_of_0_or_a_bad_image_is_refused_at_admission(api: Api, bad: Bad) -> None:
    assert_refused(api, bad)


@rows(specs.QUANTITIES)
def test_a_text_or_number_that_is_no_quantity_is_refused_at_admission(api: Api, bad: Bad) -> None:
    message = refusal(api, bad.spec)
    assert f"{bad.words[0]}.memory in body should" in message


@rows((*specs.SHAPELESS_QUANTITIES, *specs.REQUESTS_ABOVE_LIMITS))
def test_what_no_pattern_can_refuse_is_left_to_the_condition(api: Api, bad: Bad) -> None:
    stored = admitted(api, bad.spec)
    with pytest.raises(SpecError, match=re.escape(bad.words[0])):
        parse(stored)


@pytest.mark.parametrize(
    "written", [0.5, 1, 1.0, 0, 1e-3, "0.5", "500m", ".5", "1.", "1e3", "12E2", "1E", "0.5Gi"]
)
@pytest.mark.parametrize("who", ["pooler", "keeper"])
def test_a_quantity_is_accepted_as_in_any_container_also_as_a_number_without_quotes(
    api: Api, who: str, written: object
) -> None:
    stored = parse(admitted(api, specs.resources(who, requests={"cpu": written})))
    found = (stored.pooler if who == "pooler" else stored.keeper).resources
    assert found is not None
    assert parse_quantity(found["requests"]["cpu"]) == parse_quantity(str(written))


@rows(specs.BUDGETS)
def test_budget_that_is_no_number_or_can_never_be_enough_is_refused_at_admission(api: Api, bad: Bad) -> None:
    assert_refused(api, bad)


@pytest.mark.parametrize("name", ["1shop", "my.shop"])
def test_a_name_that_cannot_begin_a_service_name_is_refused_at_admission(api: Api, name: str) -> None:
    message = refusal(api, MINIMAL, name)
    assert "metadata.name" in message
    assert "starting with a letter" in message


def test_a_name_as_long_as_kubernetes_allows_is_accepted(api: Api) -> None:
    admitted(api, MINIMAL, "a" * 253)


@pytest.mark.parametrize("entry", PARAMETERS.values(), ids=list(PARAMETERS))
def test_both_ends_of_every_range_are_accepted_and_what_lies_beyond_is_refused(
    api: Api, entry: Parameter
) -> None:
    if entry.kind in ("text", "list"):
        good = (
            entry.choices[0]
            if entry.choices
            else "SELECT"
            if entry.kind == "list"
            else "SELECT 1; -- 'x' \"y\" %"
        )
        assert admitted(api, parameter(entry.name, good))["spec"]["pooler"]["parameters"][entry.name] == good
        assert validate(entry.name, good) == good
        message = refusal(api, parameter(entry.name, 1))
    else:
        for value in (entry.minimum, entry.maximum):
            admitted(api, parameter(entry.name, value))
            assert validate(entry.name, value) == str(value)
        refusal(api, parameter(entry.name, entry.maximum + 1))
        message = refusal(api, parameter(entry.name, entry.minimum - 1))
    assert f"spec.pooler.parameters.{entry.name}: must be {entry.expectation}; {entry.remedy}" in message


@pytest.mark.parametrize(
    "spec",
    [
        MINIMAL,
        BY_HOST,
        BY_URL,
        BY_SECRET,
        changed("upstream.host", "2001:db8::1"),
        changed("upstream.host", "db_1.internal."),
        changed("upstream.tls.mode", "disable"),
        consumers({"namespaceSelector": {}}, {"namespaceSelector": {"matchLabels": {"a": "b"}}}),
        consumers({"namespace": "web"}, {"namespace": "api"}, {"namespace": "web", "secretName": "second"}),
        consumers({"namespace": "web"}, {"namespace": "api", "secretName": "database-binding"}),
        consumers({"namespace": "web"}, {"namespace": "api", "secretName": "database-keeper"}),
        changed("keeper", {"enabled": False}),
        consumers(*({"namespace": f"team-{number}"} for number in range(128))),
        changed("budget", {"maxConnections": 262143, "reserve": 0, "weight": 1}),
        changed("budget", {"maxConnections": 3}, consumers({"namespace": "web"}, {"namespaceSelector": {}})),
        consumers({"namespace": "web", "limits": {"maxConnections": 3}}),
        consumers({"namespace": "web", "limits": {"maxConnections": 1, "sessionConnections": 0}}),
        changed("pooler.tolerations", [{"operator": "Exists"}]),
        changed("pooler.replicas", 0),
        changed("pooler.replicas", 100),
    ],
    ids=lambda spec: ",".join(spec) if len(spec) < 3 else "everything",
)
def test_what_the_api_server_accepts_the_operator_reads(api: Api, spec: specs.Spec) -> None:
    stored = admitted(api, spec)
    assert parse(stored).name == "shop"


def test_an_empty_text_is_accepted_in_every_optional_field(api: Api) -> None:
    for field, base in specs.EMPTY:
        parse(admitted(api, changed(field, "", base)))
    parse(admitted(api, consumers({"namespace": "web", "secretName": ""})))


def test_defaults_are_filled_in_where_nothing_is_written(api: Api) -> None:
    stored = admitted(api, {**MINIMAL, "consumers": [{"namespace": "web"}]})["spec"]
    assert stored["pooler"] == {"replicas": 2, "mode": "transaction", "drainSeconds": 30}
    assert stored["keeper"] == {"enabled": True, "auth": "Trust", "poolSize": 10, "rollout": "Manual"}
    assert stored["budget"] == {"maxConnections": "auto", "reserve": 5, "weight": 100}
    assert stored["consumers"] == [
        {
            "namespace": "web",
            "secretName": "database",
            "weight": 100,
            "limits": {"sessionConnections": 2},
        }
    ]
    assert stored["upstream"]["credentialsSecretRef"] == {
        "name": "shop-owner",
        "usernameKey": "username",
        "passwordKey": "password",
    }


def test_an_autoscaler_finds_replicas_and_selector_and_scales_from_0_to_100(api: Api, namespace: str) -> None:
    api.create(collection(namespace), shop_resource())
    shop = f"{collection(namespace)}/shop"
    selector = "poolkeeper.io/owner=shop"
    api.merge(f"{shop}/status", {"status": {"replicas": 2, "selector": selector}})

    scale = api.get(f"{shop}/scale")
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"] == {"replicas": 2, "selector": selector}

    for replicas in (0, 100):
        api.merge(f"{shop}/scale", {"spec": {"replicas": replicas}})
        assert api.get(shop)["spec"]["pooler"]["replicas"] == replicas
    with pytest.raises(Refused) as refused:
        api.merge(f"{shop}/scale", {"spec": {"replicas": 101}})
    assert "spec.pooler.replicas" in refused.value.message


def test_the_status_is_written_apart_from_the_spec(api: Api, namespace: str) -> None:
    created = api.create(collection(namespace), shop_resource())
    shop = f"{collection(namespace)}/shop"
    status = {
        "observedGeneration": 1,
        "replicas": 2,
        "readyReplicas": 2,
        "selector": "a=b",
        "appliedConfig": "0123",
        "binding": {"name": "database-binding"},
        "endpoints": {"host": "shop-pooler.data.svc", "port": 6432},
        "budget": {
            "summary": "38/40",
            "server": "0123abcd",
            "maxConnections": 100,
            "others": 7,
            "reserve": 5,
            "usable": 85,
            "arithmetic": "100 (max_connections) - 3 (...) = 85",
            "sharedWith": 1,
            "share": 40,
            "held": 38,
            "pods": [{"name": "shop-pooler-1", "connections": 38}],
            "waitingPods": 1,
        },
        "consumers": {
            "total": 2,
            "synced": 1,
            "failing": [{"namespace": "web", "secretName": "database", "reason": "NoConsent", "message": "m"}],
        },
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
                "reason": "AllGood",
                "message": "m",
            }
        ],
    }
    api.merge(f"{shop}/status", {"status": status, "spec": {"pooler": {"replicas": 9}}})
    stored = api.get(shop)
    assert stored["status"] == status
    assert stored["metadata"]["generation"] == created["metadata"]["generation"]
    assert stored["spec"] == created["spec"]


def test_two_managers_own_their_own_conditions(api: Api, namespace: str) -> None:
    api.create(collection(namespace), shop_resource())
    path = f"{collection(namespace)}/shop/status"
    for kind in ("Ready", "SpecValid"):
        condition = {"type": kind, "status": "True", "reason": "R", "message": "m"}
        condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        status = {
            "apiVersion": "poolkeeper.io/v1alpha1",
            "kind": "PooledDatabase",
            "metadata": {"name": "shop"},
        }
        api.apply(path, {**status, "status": {"conditions": [condition]}}, manager=f"manager-of-{kind.lower()}")
    stored = api.get(path)["status"]["conditions"]
    assert [condition["type"] for condition in stored] == ["Ready", "SpecValid"]


def kubectl(api: Api, *arguments: str) -> str:
    return subprocess.run(
        [str(binaries.location("kubectl")), "--kubeconfig", str(api.kubeconfig), *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"HOME": str(api.kubeconfig.parent)},
    ).stdout


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("pooleddatabase", "hands a pooled DATABASE_URL"),
        ("pooldb.spec.upstream.tls.mode", "verify-full"),
        ("pooldbs.spec.pooler.drainSeconds", "seconds"),
        ("pooldb.spec.pooler.parameters", "without quotes"),
        ("pooldb.spec.keeper.poolSize", "wait in the keeper"),
        ("pooldb.spec.consumers", "poolkeeper.io/accept-from"),
        ("pooldb.spec.budget.reserve", "stay free on the server"),
        ("pooldb.spec.consumers.limits.sessionConnections", "on each pooler pod"),
        ("pooldb.status.conditions", "UpstreamReachable"),
        ("pooldb.status.budget.arithmetic", "usable"),
    ],
)
def test_kubectl_explain_reads_like_documentation(api: Api, field: str, words: str) -> None:
    assert words in " ".join(kubectl(api, "explain", field).split())


def test_kubectl_get_shows_the_columns_and_knows_the_category(api: Api, namespace: str) -> None:
    api.create(collection(namespace), shop_resource())
    condition = {"type": "Ready", "status": "False", "reason": "UpstreamUnreachable", "message": "m"}
    condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    status = {"readyReplicas": 1, "consumers": {"synced": 3}, "conditions": [condition]}
    status["budget"] = {"summary": "38/40"}
    api.merge(f"{collection(namespace)}/shop/status", {"status": status})

    header, line = kubectl(api, "get", "pooled", "-n", namespace).splitlines()
    assert header.split() == ["NAME", "READY", "MODE", "PODS", "CONSUMERS", "BUDGET", "REASON", "AGE"]
    assert line.split()[:7] == ["shop", "False", "transaction", "1", "3", "38/40", "UpstreamUnreachable"]


def test_kubectl_get_wide_shows_which_part_it_is_and_what_to_do(api: Api, namespace: str) -> None:
    api.create(collection(namespace), shop_resource())
    reasons = {
        "Ready": "UpstreamUnreachable",
        "UpstreamReachable": "DnsFailed",
        "KeepersCurrent": "NoKeepers",
        "PoolerImage": "KnownFault",
    }
    conditions = [
        {"type": kind, "status": "False", "reason": reason, "message": f"{kind}: do this"}
        | {"lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind, reason in reasons.items()
    ]
    status = {"conditions": conditions, "endpoints": {"host": "shop-pooler.data.svc"}}
    api.merge(f"{collection(namespace)}/shop/status", {"status": status})
    header, line = kubectl(api, "get", "pooled", "-n", namespace, "-o", "wide").splitlines()
    assert header.split()[7:] == ["UPSTREAM", "KEEPERS", "IMAGE", "ENDPOINT", "AGE", "MESSAGE"]
    for shown in ("DnsFailed", "NoKeepers", "KnownFault", "shop-pooler.data.svc"):
        assert shown in line.split()
    assert line.endswith("Ready: do this")


def test_service_binding_tools_recognise_the_resource(api: Api) -> None:
    crd = api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD['metadata']['name']}")
    assert crd["metadata"]["labels"]["servicebinding.io/provisioned-service"] == "true"
    conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert "NonStructuralSchema" not in conditions
