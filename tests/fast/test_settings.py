"""What the operator's environment may hold, and what it says about what it may not."""

import pytest

from poolkeeper.credentials import certificates, mint
from poolkeeper.dns import Dns
from poolkeeper.settings import Settings, SettingsError, Webhook, from_environment

AUTHORITY = certificates.authority("api", mint.authority_key()).certificate
MINIMAL = {"POOLKEEPER_NAMESPACE": "poolkeeper", "POOLKEEPER_POD": "poolkeeper-abc"}


def test_the_defaults_watch_everything() -> None:
    own = from_environment(MINIMAL)
    assert own == Settings(namespace="poolkeeper", identity="poolkeeper-abc")
    assert own.watches("anything")


def test_every_variable_is_read() -> None:
    own = from_environment(
        {
            **MINIMAL,
            "POOLKEEPER_LEASE": "other",
            "POOLKEEPER_WATCH_NAMESPACES": " web, data,,web ",
            "POOLKEEPER_NAMESPACE_SELECTORS": "False",
            "POOLKEEPER_POOLER_IMAGE": "example.com/pgbouncer:1",
            "POOLKEEPER_POOLER_IMAGE_PULL_POLICY": "Always",
            "POOLKEEPER_KEEPER_IMAGE": "example.com/keeper:1",
            "POOLKEEPER_KEEPER_IMAGE_PULL_POLICY": "Never",
            "POOLKEEPER_KEEPER_ALLOWED_IMAGES": "example.com/b:*, example.com/a:1,",
            "POOLKEEPER_KEEPER_MAX_CPU": "500m",
            "POOLKEEPER_KEEPER_MAX_MEMORY": "1.5Gi",
            "POOLKEEPER_WEBHOOK": "pods",
            "POOLKEEPER_WEBHOOK_PORT": "9000",
            "POOLKEEPER_WEBHOOK_CERTIFICATES": "/certificates",
            "POOLKEEPER_WEBHOOK_CLIENT_CA": AUTHORITY,
            "POOLKEEPER_WEBHOOK_CLIENT_NAME": "api-server",
            "POOLKEEPER_LOG_LEVEL": "debug",
            "POOLKEEPER_HEALTH_PORT": "9090",
            "POOLKEEPER_POD_IP": "2001:db8::7",
            "POOLKEEPER_CLUSTER_DOMAIN": "k8s.example.com",
        }
    )
    assert own == Settings(
        namespace="poolkeeper",
        identity="poolkeeper-abc",
        lease="other",
        watch_namespaces=("data", "web"),
        reads_namespaces=False,
        pooler_image="example.com/pgbouncer:1",
        pooler_image_pull_policy="Always",
        keeper_image="example.com/keeper:1",
        keeper_image_pull_policy="Never",
        keeper_allowed_images=("example.com/a:1", "example.com/b:*"),
        keeper_max_cpu="500m",
        keeper_max_memory="1.5Gi",
        webhook=Webhook("pods", 9000, "/certificates", AUTHORITY.strip(), "api-server"),
        log_level="DEBUG",
        health_port=9090,
        health_address="::",
        dns=Dns("k8s.example.com"),
    )
    assert own.watches("web")
    assert not own.watches("webs")


def test_keepers_run_the_poolers_image_unless_they_have_their_own() -> None:
    poolers = {"POOLKEEPER_POOLER_IMAGE": "example.com/p:1", "POOLKEEPER_POOLER_IMAGE_PULL_POLICY": "Always"}
    own = from_environment({**MINIMAL, **poolers})
    assert (own.keeper_image, own.keeper_image_pull_policy) == ("example.com/p:1", "Always")


@pytest.mark.parametrize("missing", MINIMAL)
@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_variable_without_a_default_has_to_be_set(missing: str, value: str | None) -> None:
    environment = {name: text for name, text in MINIMAL.items() if name != missing}
    with pytest.raises(SettingsError, match=f"{missing} is not set; the Helm chart sets it"):
        from_environment(environment if value is None else {**environment, missing: value})


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("NAMESPACE_SELECTORS", "yes", "set it to true or false"),
        ("HEALTH_PORT", "0", "from 1 to 65535"),
        ("HEALTH_PORT", "65536", "from 1 to 65535"),
        ("HEALTH_PORT", "-1", "from 1 to 65535"),
        ("HEALTH_PORT", "http", "from 1 to 65535"),
        ("WEBHOOK_PORT", "0", "from 1 to 65535"),
        ("CLUSTER_DOMAIN", "cluster.local.", "without a final dot"),
        ("CLUSTER_DOMAIN", "Cluster.local", "lower-case letters"),
        ("CLUSTER_DOMAIN", "svc..local", "such as cluster.local"),
        ("CLUSTER_DOMAIN", ".".join(["label"] * 23), "at most 132"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_its_remedy(name: str, value: str, remedy: str) -> None:
    with pytest.raises(SettingsError, match=remedy) as refusal:
        from_environment({**MINIMAL, f"POOLKEEPER_{name}": value})
    assert f"POOLKEEPER_{name} is '{value}'" in str(refusal.value)


def test_an_empty_value_of_the_chart_means_the_default() -> None:
    assert (
        from_environment({**MINIMAL, "POOLKEEPER_LEASE": "", "POOLKEEPER_LOG_LEVEL": ""}).lease == "poolkeeper"
    )


@pytest.mark.parametrize(
    ("authority", "name", "problem"),
    [(AUTHORITY, "", "CLIENT_NAME is not set"), ("x", "api-server", "CLIENT_CA holds no certificate")],
)
def test_a_clients_certificate_takes_an_authority_and_a_name(authority: str, name: str, problem: str) -> None:
    demand = {"POOLKEEPER_WEBHOOK_CLIENT_CA": authority, "POOLKEEPER_WEBHOOK_CLIENT_NAME": name}
    with pytest.raises(SettingsError, match=problem):
        from_environment({**MINIMAL, **demand})


@pytest.mark.parametrize("name", ["CPU", "MEMORY"])
@pytest.mark.parametrize("value", ["x", "-1", "1 Gi", "1e3", "infinity"])
def test_the_most_for_keepers_is_an_amount(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"POOLKEEPER_KEEPER_MAX_{name}.*256Mi"):
        from_environment({**MINIMAL, f"POOLKEEPER_KEEPER_MAX_{name}": value})
