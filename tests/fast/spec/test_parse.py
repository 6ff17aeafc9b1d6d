"""parse(): what it reads, what it fills in, and what it refuses with words that help."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from poolkeeper.spec.parse import (
    ConsumerRule,
    CredentialsRef,
    Keeper,
    LabelSelector,
    MatchExpression,
    SecretKeyRef,
    SpecError,
    Tls,
    parse,
)
from poolkeeper.spec.types import Autoscaling, Budget, Terms
from tests import specs
from tests.specs import BY_HOST, BY_SECRET, BY_URL, MINIMAL, Bad, body, changed, consumers

ROOT = Path(__file__).resolve().parents[3]


def refused(bad: Bad) -> str:
    with pytest.raises(SpecError) as refusal:
        parse(body(bad.spec))
    return str(refusal.value)


@pytest.mark.parametrize("bad", specs.ALL_BAD, ids=lambda bad: bad.id)
def test_what_admission_refuses_is_refused_with_the_same_field_and_remedy(bad: Bad) -> None:
    message = refused(bad)
    assert message.startswith("spec.")
    for word in bad.words:
        assert word in message


@pytest.mark.parametrize("character", specs.CONTROL_CHARACTERS.values(), ids=list(specs.CONTROL_CHARACTERS))
@pytest.mark.parametrize("spec", [BY_HOST, BY_URL, BY_SECRET], ids=["by host", "by url", "by secret"])
def test_a_control_character_in_any_text_is_refused_by_its_field(spec: specs.Spec, character: str) -> None:
    for path in specs.texts(spec):
        with pytest.raises(SpecError) as refusal:
            parse(body(specs.with_character(spec, path, character)))
        assert refusal.value.field.startswith(f"spec.{path[0]}"), path
        assert f"U+{ord(character):04X}" in refusal.value.problem


@pytest.mark.parametrize("key", ["podLabels", "podAnnotations", "serviceAnnotations", "nodeSelector"])
def test_a_control_character_in_a_key_is_refused(key: str) -> None:
    with pytest.raises(SpecError, match="U\\+000A"):
        parse(body(changed(f"pooler.{key}", {"a\nb": "c"})))


def test_a_control_character_deep_in_the_affinity_is_refused() -> None:
    affinity = {"podAffinity": {"x": [{"topologyKey": "a\nb"}]}}
    with pytest.raises(SpecError, match=r"spec\.pooler\.affinity\.podAffinity\.x\[0\]\.topologyKey"):
        parse(body(changed("pooler.affinity", affinity)))


@pytest.mark.parametrize("levels", [20, 900, 9_000])
@pytest.mark.parametrize("wrapped", [lambda inner: {"a": inner}, lambda inner: [inner]], ids=["maps", "lists"])
def test_an_affinity_that_no_pod_has_is_refused(levels: int, wrapped: Callable[[Any], Any]) -> None:
    inner: Any = "x"
    for _ in range(levels):
        inner = wrapped(inner)
    with pytest.raises(
        SpecError, match=r"spec\.pooler\.affinity: is nested more than 16 levels deep; write it as"
    ):
        parse(body(changed("pooler.affinity", {"nodeAffinity": inner})))


def test_defaults_are_those_of_the_documentation() -> None:
    database = parse(body({**MINIMAL, "consumers": [{"namespace": "web"}]}))

    assert (database.namespace, database.name, database.deleting) == ("data", "shop", False)
    assert database.upstream.port == 5432
    assert database.upstream.credentials == CredentialsRef("shop-owner", "username", "password")
    assert database.upstream.tls == Tls(None, None)
    assert (database.pooler.replicas, database.pooler.mode) == (2, "transaction")
    assert database.pooler.drain_seconds == 30
    assert database.pooler.parameters == {}
    assert database.pooler.resources is None
    assert database.pooler.affinity is None
    assert database.pooler.autoscaling is None
    assert database.pooler.allowed_faults == ()
    assert database.keeper == Keeper(
        enabled=True,
        image=None,
        resources=None,
        pool_size=10,
        auth="Trust",
        image_pull_secrets=(),
        rollout="Manual",
    )
    assert database.consumers == (ConsumerRule("web", None, "database"),)
    assert database.consumers[0].terms == Terms(100, None, None, 2)
    assert database.budget == Budget(None, 5, 100)


def test_every_field_is_read() -> None:
    database = parse(body(BY_HOST))
    pooler = database.pooler

    assert database.upstream.port == 5433
    assert database.upstream.credentials == CredentialsRef("shop-owner", "login", "secret")
    assert database.upstream.tls == Tls("verify-full", SecretKeyRef("shop-ca", "root.crt"))
    assert database.upstream.secret_names() == {"shop-owner", "shop-ca"}
    assert (pooler.replicas, pooler.mode, pooler.drain_seconds) == (3, "session", 300)
    assert pooler.parameters["max_client_conn"] == "40"
    assert pooler.parameters["query_wait_timeout"] == "0.5"
    assert pooler.image_pull_secrets == ("registry",)
    assert pooler.resources == {
        "requests": {"cpu": "100m", "memory": "32Mi"},
        "limits": {"cpu": "1", "memory": "64Mi"},
    }
    assert pooler.pod_labels == {"team": "shop"}
    assert database.budget == Budget(60, 10, 200)
    assert database.consumers == (ConsumerRule("web", None, "shop-database", Terms(300, 40, 500, 4)),)
    assert pooler.node_selector == {"kubernetes.io/os": "linux"}
    assert pooler.tolerations == BY_HOST["pooler"]["tolerations"]
    assert pooler.affinity == BY_HOST["pooler"]["affinity"]
    assert pooler.priority_class_name == "high"
    assert pooler.autoscaling == Autoscaling(min=2, max=6)
    assert pooler.allowed_faults == ("cached-login-error", "CVE-2026-6666")
    assert database.keeper == Keeper(
        enabled=True,
        image="registry.example:5000/keeper:1.26.1@sha256:00",
        resources={"requests": {"cpu": "20m"}, "limits": {"cpu": "500m", "memory": "64Mi"}},
        pool_size=5,
        auth="Scram",
        image_pull_secrets=("registry",),
        rollout="Workload",
    )


def test_a_url_is_read_from_its_secret() -> None:
    database = parse(body(BY_URL))

    assert database.upstream.uri == SecretKeyRef("shop-url", "url")
    assert database.upstream.secret_names() == {"shop-url"}
    assert (database.upstream.host, database.upstream.credentials) == (None, None)
    selector = LabelSelector({"tier": "apps"}, (MatchExpression("env", "In", ("prod", "test")),))
    assert database.consumers == (ConsumerRule(None, selector, "database"),)
    assert database.budget.max_connections is None


def test_what_a_selector_may_find_does_not_count_against_the_budget() -> None:
    spec = consumers({"namespace": "web"}, {"namespaceSelector": {}, "limits": {"sessionConnections": 50}})
    assert parse(body(changed("budget.maxConnections", 3, spec))).budget.max_connections == 3


def test_a_deletion_timestamp_shows() -> None:
    dying = body(MINIMAL)
    dying["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert parse(dying).deleting


@pytest.mark.parametrize("name", ["1shop", "my.shop", "Shop", "shop-"])
def test_a_name_that_no_service_can_have_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match=r"metadata\.name"):
        parse(body(MINIMAL, name=name))


@pytest.mark.parametrize("secret_name", ["shop-owner", "shop", "shop-key"])
def test_a_consumer_beside_the_database_cannot_overwrite_what_the_upstream_reads(secret_name: str) -> None:
    spec = consumers({"namespace": "data", "secretName": secret_name})
    ca = "shop-key-keeper" if secret_name == "shop-key" else "shop-binding"
    spec = changed("upstream.tls.caSecretRef", {"name": ca}, spec)
    with pytest.raises(SpecError, match="choose another secretName"):
        parse(body(spec))


def test_two_selectors_may_name_the_same_secret() -> None:
    spec = consumers({"namespaceSelector": {}}, {"namespaceSelector": {"matchLabels": {"a": "b"}}})
    assert len(parse(body(spec)).consumers) == 2


@pytest.mark.parametrize(
    ("expression", "labels", "expected"),
    [
        (MatchExpression("env", "In", ("prod",)), {"env": "prod"}, True),
        (MatchExpression("env", "In", ("prod",)), {}, False),
        (MatchExpression("env", "NotIn", ("prod",)), {"env": "prod"}, False),
        (MatchExpression("env", "NotIn", ("prod",)), {}, True),
        (MatchExpression("env", "Exists"), {"env": ""}, True),
        (MatchExpression("env", "Exists"), {}, False),
        (MatchExpression("env", "DoesNotExist"), {"env": ""}, False),
        (MatchExpression("env", "DoesNotExist"), {}, True),
    ],
)
def test_an_expression_matches_as_in_kubernetes(
    expression: MatchExpression, labels: dict[str, str], expected: bool
) -> None:
    assert LabelSelector({}, (expression,)).matches(labels) is expected


def test_a_selector_needs_every_label_and_the_empty_one_matches_all() -> None:
    both = LabelSelector({"a": "1", "b": "2"})
    assert both.matches({"a": "1", "b": "2", "c": "3"})
    assert not both.matches({"a": "1"})
    assert LabelSelector().matches({})


@pytest.mark.parametrize("value", ["text", 5, []])
def test_a_body_of_the_wrong_shape_is_refused_by_its_field(value: object) -> None:
    with pytest.raises(SpecError, match=r"spec\.upstream: is not an object"):
        parse(body({"upstream": value}))


@pytest.mark.parametrize(("field", "base"), specs.EMPTY)
def test_an_empty_text_is_an_absent_one(field: str, base: specs.Spec) -> None:
    without = changed(field, None, base)
    assert parse(body(changed(field, "", base))) == parse(body(without))


def test_an_empty_secret_name_is_the_default_one() -> None:
    assert parse(body(consumers({"namespace": "web", "secretName": ""}))) == parse(
        body(consumers({"namespace": "web"}))
    )


def _optional_texts(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Every text field, outside of lists and maps, that an object need not have."""
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        if field.get("type") == "string" and name not in schema.get("required", ()):
            yield here
        yield from _optional_texts(field, here)


def test_every_optional_text_field_of_the_schema_takes_an_empty_one() -> None:
    crd = yaml.safe_load((ROOT / "crds/pooleddatabases.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    # A namespace is refused there whatever it is.
    fields = {path for path in _optional_texts(schema) if not path.endswith("Ref.namespace")}
    assert fields == {field for field, _ in specs.EMPTY}


def test_the_keys_of_host_port_and_database_stand_for_the_fields() -> None:
    upstream = parse(body(BY_SECRET)).upstream
    assert (upstream.host, upstream.port, upstream.database) == (None, 5432, None)
    assert upstream.credentials == CredentialsRef("shop-db", "username", "password", "host", "port", "dbname")
    host_alone = {"credentialsSecretRef": {"name": "shop-db", "hostKey": "endpoint"}, "database": "shop"}
    upstream = parse(body({"upstream": host_alone})).upstream
    assert (upstream.host, upstream.database) == (None, "shop")
