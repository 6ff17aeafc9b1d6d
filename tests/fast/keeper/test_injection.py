"""Keepers in pods: what a labelled pod becomes, what it keeps, and what is refused with which remedy."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from poolkeeper.keeper.injection import (
    KEEPER_PORT_ANNOTATION,
    KEPT_ANNOTATION,
    Refusal,
    databases,
    inject,
    injected,
)
from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.names import DATABASE_LABEL, DATABASES_ANNOTATION

Pod = dict[str, Any]

SHOP = KeeperTemplate("poolkeeper/pgbouncer:1", "IfNotPresent", None, "shop", "shop.session")
ORDERS = KeeperTemplate("poolkeeper/pgbouncer:1", "IfNotPresent", None, "orders", "orders.session")
TEMPLATES = {"database": SHOP, "orders-db": ORDERS}
URL = "postgresql://app@127.0.0.1:6432/shop?sslmode=disable"
VARIABLES = {
    "DATABASE_URL": URL,
    "DATABASE_SESSION_URL": "postgresql://app@127.0.0.1:6432/shop.session?sslmode=disable",
    "PGHOST": "127.0.0.1",
    "PGPORT": "6432",
    "PGUSER": "app",
    "PGDATABASE": "shop",
    "PGSSLMODE": "disable",
}
BOTH = {DATABASES_ANNOTATION: "database, orders-db"}


def pod(*containers: Pod, annotations: dict[str, str] | None = None, **spec: Any) -> Pod:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "web-",
            "labels": {"app": "web", DATABASE_LABEL: "database"},
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": {"containers": list(containers) or [{"name": "web", "image": "web:1"}], **spec},
    }


def made(before: Pod) -> Pod:
    return inject(before, TEMPLATES).pod


def variables(container: Pod) -> dict[str, Any]:
    env = container.get("env", [])
    assert len({item["name"] for item in env}) == len(env)
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in env}


def refusal(before: Pod) -> str:
    with pytest.raises(Refusal) as caught:
        made(before)
    return str(caught.value)


def test_a_labelled_pod_gets_a_keeper_before_everything_else_and_the_variables() -> None:
    before = pod(initContainers=[{"name": "migrate", "image": "web:1"}], volumes=[{"name": "data"}])
    spec = made(before)["spec"]
    assert [item["name"] for item in spec["initContainers"]] == ["keeper", "migrate"]
    assert [item["name"] for item in spec["volumes"]] == ["data", "keeper"]
    assert variables(spec["containers"][0]) == VARIABLES
    assert variables(spec["initContainers"][1]) == VARIABLES
    assert "env" not in spec["initContainers"][0]


def test_the_keeper_is_a_native_sidecar_that_passes_pod_security_restricted() -> None:
    [keeper] = made(pod())["spec"]["initContainers"]
    assert keeper == {
        "name": "keeper",
        "image": "poolkeeper/pgbouncer:1",
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "command": ["pgbouncer", "/etc/poolkeeper/pgbouncer.ini"],
        "ports": [{"name": "keeper", "containerPort": 6432, "protocol": "TCP"}],
        "startupProbe": {
            "tcpSocket": {"port": 6432},
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": 60,
        },
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": "keeper", "mountPath": "/etc/poolkeeper", "readOnly": True},
            {"name": "keeper", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True},
        ],
    }


def test_the_volume_is_the_keepers_secret_and_the_pods_port() -> None:
    after = made(pod())
    [volume] = after["spec"]["volumes"]
    secret, downward = volume["projected"]["sources"]
    assert volume["projected"]["defaultMode"] == 0o444
    assert secret == {"secret": {"name": "database-keeper"}}
    [item] = downward["downwardAPI"]["items"]
    assert item["path"] == "pod.ini"
    assert item["fieldRef"]["fieldPath"] == "metadata.annotations['poolkeeper.io/keeper-listen']"
    assert after["metadata"]["annotations"]["poolkeeper.io/keeper-listen"] == "listen_port = 6432"


def test_nothing_else_of_the_pod_changes() -> None:
    before = pod(
        {"name": "web", "image": "web:1", "env": [{"name": "A", "value": "$(DATABASE_URL)"}], "stdin": True},
        annotations={"example.com/a": "b"},
        restartPolicy="Never",
        imagePullSecrets=[{"name": "registry"}],
        securityContext={"runAsUser": 0, "fsGroup": 7},
    )
    original = copy.deepcopy(before)
    after = made(before)
    assert before == original
    for field in ("restartPolicy", "imagePullSecrets", "securityContext"):
        assert after["spec"][field] == original["spec"][field]
    [web] = after["spec"]["containers"]
    assert web["env"][-1] == {"name": "A", "value": "$(DATABASE_URL)"}
    assert {**web, "env": original["spec"]["containers"][0]["env"]} == original["spec"]["containers"][0]
    assert after["metadata"]["annotations"]["example.com/a"] == "b"
    assert after["metadata"]["labels"] == original["metadata"]["labels"]


def test_a_pod_without_the_label_wants_nothing() -> None:
    before = pod(annotations=BOTH)
    del before["metadata"]["labels"][DATABASE_LABEL]
    assert databases(before) == ()
    assert databases({"metadata": {}, "spec": {"containers": []}}) == ()


def test_the_templates_image_and_resources_count() -> None:
    resources = {"limits": {"memory": "64Mi"}}
    template = KeeperTemplate("example.com/keeper:2", "Always", resources, "shop", "shop.session")
    [keeper] = inject(pod(), {"database": template}).pod["spec"]["initContainers"]
    assert (keeper["image"], keeper["imagePullPolicy"]) == ("example.com/keeper:2", "Always")
    assert keeper["resources"] == resources


def test_a_keeper_names_no_user_where_the_cluster_assigns_one() -> None:
    """The restricted-v2 of OpenShift refuses every user but those of the namespace's range."""
    template = replace(SHOP, assigned_user=True)
    [keeper] = inject(pod(), {"database": template}).pod["spec"]["initContainers"]
    assert keeper["securityContext"]["runAsNonRoot"] is True
    assert not {"runAsUser", "runAsGroup"} & keeper["securityContext"].keys()


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ([], ["shared", "shop"]),
        ([{"name": "web"}], ["web", "shared", "shop"]),
        ([{"name": "shop"}, {"name": "web"}], ["shop", "web", "shared"]),
    ],
)
def test_pull_secrets_come_beside_the_pods_own_and_each_once(own: list[Pod], expected: list[str]) -> None:
    templates = {
        "database": replace(SHOP, image_pull_secrets=("shared", "shop")),
        "orders-db": replace(ORDERS, image_pull_secrets=("shared",)),
    }
    before = pod(annotations=BOTH, **({"imagePullSecrets": own} if own else {}))
    once = inject(before, templates).pod
    assert [item["name"] for item in once["spec"]["imagePullSecrets"]] == expected
    assert inject(once, templates).pod == once
    assert "imagePullSecrets" not in made(pod())["spec"]


# What containers set themselves


def test_a_container_with_a_url_of_its_own_keeps_it_and_gets_nothing_and_the_pod_says_so() -> None:
    own = [{"name": "DATABASE_URL", "value": "postgres://u:p@elsewhere/db"}]
    done = inject(pod({"name": "web", "env": own}, {"name": "worker"}), TEMPLATES)
    web, worker = done.pod["spec"]["containers"]
    assert web["env"] == own
    assert variables(worker) == VARIABLES
    assert done.pod["metadata"]["annotations"][KEPT_ANNOTATION] == "web: DATABASE_URL"
    [warning] = done.warnings
    assert "web" in warning
    assert "DATABASE_URL" in warning
    assert "elsewhere" not in warning


def test_a_variable_from_a_secret_counts_as_set() -> None:
    own = [{"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "url"}}}]
    [web] = made(pod({"name": "web", "env": own}))["spec"]["containers"]
    assert web["env"] == own


@pytest.mark.parametrize("name", ["PGHOST", "PGSERVICE", "PGPORT", "PGUSER", "PGDATABASE", "PGSSLMODE"])
def test_a_container_whose_libpq_variables_name_a_server_gets_the_urls_alone(name: str) -> None:
    after = made(pod({"name": "web", "env": [{"name": name, "value": "elsewhere"}]}))
    urls = {key: value for key, value in VARIABLES.items() if key.endswith("URL")}
    assert variables(after["spec"]["containers"][0]) == {**urls, name: "elsewhere"}
    assert after["metadata"]["annotations"][KEPT_ANNOTATION] == f"web: {name}"


@pytest.mark.parametrize("name", ["DATABASE_SESSION_URL", "PGHOSTADDR"])
def test_a_container_gets_nothing_where_our_url_would_not_be_the_one_that_counts(name: str) -> None:
    own = [{"name": "PGDATABASE", "value": "other"}, {"name": name, "value": "x"}]
    after = made(pod({"name": "web", "env": own}))
    assert after["spec"]["containers"][0]["env"] == own
    assert after["metadata"]["annotations"][KEPT_ANNOTATION] == "web: " + ", ".join(
        sorted(["PGDATABASE", name])
    )


def test_a_session_url_of_its_own_goes_with_our_url_where_we_have_none() -> None:
    templates = {"database": replace(SHOP, session_database="")}
    own = [{"name": "DATABASE_SESSION_URL", "value": "x"}]
    [web] = inject(pod({"name": "web", "env": own}), templates).pod["spec"]["containers"]
    assert variables(web) == {"DATABASE_URL": URL, "DATABASE_SESSION_URL": "x"}


def test_nothing_kept_leaves_no_annotation_and_no_warning() -> None:
    done = inject(pod(annotations={KEPT_ANNOTATION: "web: DATABASE_URL"}), TEMPLATES)
    assert KEPT_ANNOTATION not in done.pod["metadata"]["annotations"]
    assert done.warnings == ()


# Keepers that demand a password

SCRAM = {name: replace(template, auth="Scram") for name, template in TEMPLATES.items()}
REFERENCE = {"secretKeyRef": {"name": "database-keeper", "key": "app-password"}}
SCRAM_VARIABLES = {
    **VARIABLES,
    "KEEPER_PASSWORD": REFERENCE,
    "PGPASSWORD": REFERENCE,
    "DATABASE_URL": "postgresql://app:$(KEEPER_PASSWORD)@127.0.0.1:6432/shop?sslmode=disable",
    "DATABASE_SESSION_URL": "postgresql://app:$(KEEPER_PASSWORD)@127.0.0.1:6432/shop.session?sslmode=disable",
}


def demanding(before: Pod) -> Pod:
    return inject(before, SCRAM).pod


def test_a_password_is_referred_to_before_the_urls_that_hold_it() -> None:
    [web] = demanding(pod({"name": "web", "env": [{"name": "A", "value": "$(DATABASE_URL)"}]}))["spec"][
        "containers"
    ]
    assert variables(web) == {**SCRAM_VARIABLES, "A": "$(DATABASE_URL)"}
    order = [item["name"] for item in web["env"]]
    assert order.index("KEEPER_PASSWORD") < order.index("DATABASE_URL") < order.index("A")
    assert order.index("KEEPER_PASSWORD") < order.index("DATABASE_SESSION_URL")


def test_a_keeper_that_demands_a_password_is_started_with_another_file() -> None:
    after = demanding(pod())
    [keeper] = after["spec"]["initContainers"]
    assert keeper["command"] == ["pgbouncer", "/etc/poolkeeper/scram.ini"]
    assert "env" not in keeper
    assert [one.auth for one in injected(after)] == ["Scram"]
    assert [one.auth for one in injected(made(pod()))] == ["Trust"]


def test_each_database_has_a_password_of_its_own() -> None:
    found = variables(demanding(pod(annotations=BOTH))["spec"]["containers"][0])
    assert found["KEEPER_PASSWORD"]["secretKeyRef"]["name"] == "database-keeper"
    assert found["ORDERS_DB_KEEPER_PASSWORD"]["secretKeyRef"]["name"] == "orders-db-keeper"
    assert found["ORDERS_DB_PGPASSWORD"] == found["ORDERS_DB_KEEPER_PASSWORD"]
    assert found["ORDERS_DB_DATABASE_URL"].startswith("postgresql://app:$(ORDERS_DB_KEEPER_PASSWORD)@")
    mixed = inject(pod(annotations=BOTH), {**TEMPLATES, "orders-db": SCRAM["orders-db"]}).pod
    found = variables(mixed["spec"]["containers"][0])
    assert (found["DATABASE_URL"], "PGPASSWORD" in found) == (URL, False)
    assert found["ORDERS_DB_DATABASE_URL"].startswith("postgresql://app:$(ORDERS_DB_KEEPER_PASSWORD)@")


@pytest.mark.parametrize("name", ["PGPASSWORD", "PGHOST"])
def test_our_password_does_not_go_with_a_server_or_a_password_of_the_containers_own(name: str) -> None:
    after = demanding(pod({"name": "web", "env": [{"name": name, "value": "theirs"}]}))
    ours = {key: SCRAM_VARIABLES[key] for key in ("KEEPER_PASSWORD", "DATABASE_URL", "DATABASE_SESSION_URL")}
    assert variables(after["spec"]["containers"][0]) == {**ours, name: "theirs"}
    assert after["metadata"]["annotations"][KEPT_ANNOTATION] == f"web: {name}"


def test_where_no_password_is_needed_that_of_the_container_is_nobodys_business() -> None:
    after = made(pod({"name": "web", "env": [{"name": "PGPASSWORD", "value": "theirs"}]}))
    assert variables(after["spec"]["containers"][0]) == {**VARIABLES, "PGPASSWORD": "theirs"}
    assert KEPT_ANNOTATION not in after["metadata"]["annotations"]


@pytest.mark.parametrize("name", ["DATABASE_URL", "KEEPER_PASSWORD"])
def test_a_url_or_its_password_of_the_containers_own_stays_alone(name: str) -> None:
    after = demanding(pod({"name": "web", "env": [{"name": name, "value": "theirs"}]}))
    assert variables(after["spec"]["containers"][0]) == {name: "theirs"}
    assert after["metadata"]["annotations"][KEPT_ANNOTATION] == f"web: {name}"


@pytest.mark.parametrize(("first", "second"), [(SCRAM, SCRAM), (TEMPLATES, SCRAM), (SCRAM, TEMPLATES)])
def test_the_last_injection_decides_whether_a_password_is_needed(first: Any, second: Any) -> None:
    before = pod(annotations=BOTH, initContainers=[{"name": "migrate"}])
    assert inject(inject(before, first).pod, second).pod == inject(before, second).pod


# Several databases


def test_each_further_database_has_its_own_keeper_port_and_prefix() -> None:
    after = made(pod(annotations=BOTH))
    spec, annotations = after["spec"], after["metadata"]["annotations"]
    assert [item["name"] for item in spec["initContainers"]] == ["keeper", "keeper-2"]
    assert [item["name"] for item in spec["volumes"]] == ["keeper", "keeper-2"]
    second = spec["volumes"][1]["projected"]["sources"]
    assert second[0]["secret"]["name"] == "orders-db-keeper"
    assert second[1]["downwardAPI"]["items"][0]["fieldRef"]["fieldPath"] == (
        "metadata.annotations['poolkeeper.io/keeper-2-listen']"
    )
    assert annotations["poolkeeper.io/keeper-2-listen"] == "listen_port = 6433"
    found = variables(spec["containers"][0])
    assert found["DATABASE_URL"] == URL
    assert found["ORDERS_DB_DATABASE_URL"] == "postgresql://app@127.0.0.1:6433/orders?sslmode=disable"
    assert (found["ORDERS_DB_PGPORT"], found["ORDERS_DB_PGDATABASE"]) == ("6433", "orders")
    assert len(found) == 2 * len(VARIABLES)


def test_the_labels_database_has_the_plain_names_wherever_it_is_listed() -> None:
    assert databases(pod(annotations={DATABASES_ANNOTATION: "orders-db,database"})) == ("database", "orders-db")


def test_a_url_of_its_own_for_one_database_does_not_touch_the_other() -> None:
    own = [{"name": "ORDERS_DB_DATABASE_URL", "value": "x"}]
    after = made(pod({"name": "web", "env": own}, annotations=BOTH))
    assert variables(after["spec"]["containers"][0]) == {**VARIABLES, "ORDERS_DB_DATABASE_URL": "x"}


def test_a_further_keeper_takes_the_next_port_that_is_free() -> None:
    after = made(pod({"name": "web", "ports": [{"containerPort": 6433}]}, annotations=BOTH))
    assert [keeper.port for keeper in injected(after)] == [6432, 6434]


def test_databases_that_would_share_variables_are_refused() -> None:
    before = pod(annotations={DATABASES_ANNOTATION: "database,a.b,a-b"})
    message = refusal(before)
    assert "A_B_" in message
    assert "rename" in message


def test_a_name_that_begins_with_a_digit_still_makes_variables() -> None:
    before = pod(annotations={DATABASES_ANNOTATION: "database,2nd"})
    after = inject(before, {**TEMPLATES, "2nd": ORDERS}).pod
    assert "_2ND_DATABASE_URL" in variables(after["spec"]["containers"][0])


# Twice


@pytest.mark.parametrize(
    "before",
    [
        pod(),
        pod({"name": "web", "env": [{"name": "PGHOST", "value": "x"}]}, {"name": "other"}),
        pod(annotations=BOTH, initContainers=[{"name": "migrate"}]),
        pod({"name": "web", "ports": [{"containerPort": 6433}]}, annotations=BOTH),
        pod(annotations={KEEPER_PORT_ANNOTATION: "7000"}),
    ],
    ids=["plain", "own variables", "two databases", "taken port", "own port"],
)
def test_injecting_twice_changes_nothing(before: Pod) -> None:
    once = made(before)
    assert made(once) == once


def test_a_container_that_another_webhook_added_meanwhile_gets_its_variables() -> None:
    once = made(pod(annotations=BOTH))
    once["spec"]["containers"].append({"name": "late", "ports": [{"containerPort": 6433}]})
    again = made(once)
    assert [keeper.port for keeper in injected(again)] == [6432, 6434]
    for container in again["spec"]["containers"]:
        found = variables(container)
        assert (found["DATABASE_URL"], found["ORDERS_DB_PGPORT"]) == (URL, "6434")
    assert KEPT_ANNOTATION not in again["metadata"]["annotations"]
    assert len(again["spec"]["initContainers"]) == len(again["spec"]["volumes"]) == 2


def test_what_others_added_to_a_keeper_meanwhile_stays() -> None:
    """Limits by a LimitRange, a mesh's files, defaults: then the API server asks again."""
    once = made(pod(annotations=BOTH, initContainers=[{"name": "migrate"}]))
    keeper, second, _ = once["spec"]["initContainers"]
    keeper["resources"] = {"requests": {"cpu": "10m"}, "limits": {"memory": "100Mi"}}
    keeper["terminationMessagePolicy"] = "File"
    keeper["startupProbe"]["successThreshold"] = 1
    keeper["volumeMounts"].append({"name": "mesh", "mountPath": "/var/run/mesh"})
    once["spec"]["initContainers"] = [{"name": "mesh", "restartPolicy": "Always"}, second, keeper]
    again = made(once)
    assert again["spec"]["volumes"] == once["spec"]["volumes"]
    assert again["spec"]["initContainers"][1:] == once["spec"]["initContainers"][1:]
    assert "DATABASE_URL" in variables(again["spec"]["initContainers"][0])


def test_a_keeper_of_an_older_image_is_replaced_when_the_pod_is_made_anew() -> None:
    newer = KeeperTemplate("poolkeeper/pgbouncer:2", "IfNotPresent", None, "shop", "shop.session")
    [keeper] = inject(made(pod()), {"database": newer}).pod["spec"]["initContainers"]
    assert keeper["image"] == "poolkeeper/pgbouncer:2"


# What a pod shows


def test_the_keepers_of_a_pod_can_be_read_from_it() -> None:
    after = made(pod(annotations=BOTH, initContainers=[{"name": "migrate", "image": "x"}]))
    assert [(one.container, one.secret_name, one.image, one.port) for one in injected(after)] == [
        ("keeper", "database", "poolkeeper/pgbouncer:1", 6432),
        ("keeper-2", "orders-db", "poolkeeper/pgbouncer:1", 6433),
    ]
    assert injected(pod()) == ()


def test_no_password_gets_into_a_pod() -> None:
    assert ":@" not in str(made(pod(annotations=BOTH)))
    for container in made(pod(annotations=BOTH))["spec"]["containers"]:
        assert not [name for name in variables(container) if "PASSWORD" in name]


def test_service_meshes_leave_the_ports_alone() -> None:
    key = "traffic.sidecar.istio.io/excludeInboundPorts"
    annotations = made(pod(annotations={**BOTH, key: "9000,6432"}))["metadata"]["annotations"]
    assert annotations[key] == "9000,6432,6433"
    assert annotations["traffic.sidecar.istio.io/excludeOutboundPorts"] == "6432"
    assert annotations["config.linkerd.io/skip-inbound-ports"] == "6432,6433"


# Refusals


def test_a_pod_on_the_nodes_network_is_refused() -> None:
    message = refusal(pod(hostNetwork=True))
    assert "hostNetwork" in message
    assert f"take the label {DATABASE_LABEL} off" in message


def test_a_static_pod_is_refused() -> None:
    assert "static pod" in refusal(pod(annotations={"kubernetes.io/config.mirror": "x"}))


CLUSTERS_DNS = ("10.96.0.10", "fd00:10:96::a")


def _servers(*addresses: str) -> dict[str, Any]:
    return {"dnsPolicy": "None", "dnsConfig": {"nameservers": list(addresses)}}


@pytest.mark.parametrize(
    "spec",
    [
        {"dnsPolicy": "Default"},
        {"dnsPolicy": "Default", "dnsConfig": {"nameservers": ["10.96.0.10"]}},
        {"dnsPolicy": "None"},
        {"dnsPolicy": "None", "dnsConfig": {}},
        {"dnsPolicy": "None", "dnsConfig": {"nameservers": None}},
        _servers("8.8.8.8"),
        _servers("8.8.8.8", "10.96.0.10"),
        _servers("10.96.0.1"),
        _servers("localhost"),
    ],
)
def test_a_pod_whose_keeper_could_not_resolve_the_poolers_is_refused_f12(spec: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as caught:
        inject(pod(**spec), TEMPLATES, CLUSTERS_DNS)
    message = str(caught.value)
    assert f"dnsPolicy {spec['dnsPolicy']}" in message
    assert "set dnsPolicy to ClusterFirst" in message
    assert f"take the label {DATABASE_LABEL} off" in message
    made(pod(**{**spec, "dnsPolicy": "ClusterFirst"}))
    if spec["dnsPolicy"] == "None":
        assert "put the cluster's DNS first in dnsConfig.nameservers, such as 10.96.0.10" in message
        inject(pod(**_servers("10.96.0.10")), TEMPLATES, CLUSTERS_DNS)


@pytest.mark.parametrize(
    "spec",
    [
        {"dnsPolicy": "ClusterFirst"},
        {"dnsPolicy": "ClusterFirstWithHostNet"},
        {"dnsPolicy": ""},
        {"dnsConfig": {"options": [{"name": "ndots", "value": "1"}], "nameservers": ["8.8.8.8"]}},
        _servers("10.96.0.10"),
        _servers("10.96.0.10", "8.8.8.8"),
        _servers("fd00:10:96::a"),
        _servers("169.254.20.10", "10.96.0.10"),
        _servers("fe80::a"),
    ],
)
def test_a_pod_that_asks_the_clusters_dns_gets_its_keeper(spec: dict[str, Any]) -> None:
    assert injected(inject(pod(**spec), TEMPLATES, CLUSTERS_DNS).pod)


def test_where_the_clusters_dns_is_unknown_the_refusal_names_no_address() -> None:
    assert "dnsConfig.nameservers, or set" in refusal(pod(**_servers("10.96.0.10")))


def test_a_taken_port_is_refused_with_the_annotation_that_sets_another() -> None:
    message = refusal(pod({"name": "web", "ports": [{"containerPort": 6432}, {"containerPort": 6433}]}))
    assert "'web' has port 6432" in message
    assert f'{KEEPER_PORT_ANNOTATION}: "6434"' in message


def test_the_port_of_an_init_container_counts_and_one_of_udp_does_not() -> None:
    udp = {"containerPort": 6432, "protocol": "UDP"}
    made(pod({"name": "web", "ports": [udp]}))
    sidecar = {"name": "proxy", "restartPolicy": "Always", "ports": [{"containerPort": 6432}]}
    assert "'proxy'" in refusal(pod(initContainers=[sidecar]))


def test_the_annotation_moves_the_keeper() -> None:
    taken = {"name": "web", "ports": [{"containerPort": 6432}]}
    after = made(pod(taken, annotations={KEEPER_PORT_ANNOTATION: "6500"}))
    [keeper] = injected(after)
    assert keeper.port == 6500
    assert after["metadata"]["annotations"]["poolkeeper.io/keeper-listen"] == "listen_port = 6500"
    assert variables(after["spec"]["containers"][0])["PGPORT"] == "6500"


@pytest.mark.parametrize("port", ["", "0", "80", "1023", "65536", "6432x", "-1", "1e4", "6432\n"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    assert "write a port number from 1024 to 65535" in refusal(pod(annotations={KEEPER_PORT_ANNOTATION: port}))


def test_no_port_left_is_refused() -> None:
    assert "lower" in refusal(pod(annotations={**BOTH, KEEPER_PORT_ANNOTATION: "65535"}))


def test_an_annotation_without_the_labels_database_is_refused() -> None:
    message = refusal(pod(annotations={DATABASES_ANNOTATION: "orders-db"}))
    assert "lacks database" in message
    assert "list every database" in message


def test_a_database_named_twice_is_refused() -> None:
    assert "name each once" in refusal(pod(annotations={DATABASES_ANNOTATION: "database,database"}))


@pytest.mark.parametrize("named", ["database,", "database,A", "database,a b", "database,a\nb"])
def test_a_name_that_no_secret_has_is_refused(named: str) -> None:
    assert "cannot name the Secret" in refusal(pod(annotations={DATABASES_ANNOTATION: named}))


@pytest.mark.parametrize(
    "before",
    [
        pod({"name": "keeper", "image": "x"}),
        pod(initContainers=[{"name": "keeper", "image": "x"}]),
        pod(initContainers=[{"name": "keeper", "restartPolicy": "Always"}], volumes=[{"name": "keeper"}]),
        pod({"name": "keeper"}, volumes=made(pod())["spec"]["volumes"]),
        pod(volumes=[{"name": "keeper", "emptyDir": {}}]),
        pod({"name": "keeper-2", "image": "x"}, annotations=BOTH),
    ],
    ids=["container", "init container", "sidecar", "with our volume", "volume", "second"],
)
def test_a_container_or_volume_of_the_keepers_name_is_refused(before: Pod) -> None:
    message = refusal(before)
    assert "of its own" in message
    assert "another name" in message


def test_a_container_of_another_keepers_name_is_nobodys_business() -> None:
    made(pod({"name": "keeper-2"}))
