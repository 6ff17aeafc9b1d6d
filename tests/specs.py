"""PooledDatabases for the tests of the API: good ones that use every field, bad ones with what they must hear.

The fast tests show them to parse(), the tests of the CRD to a real API server: both must answer the same.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from poolkeeper.engine.known_faults import KNOWN

Spec = dict[str, Any]

# Line ends and other characters that would begin a new line, or end a text, in one of PgBouncer's files.
CONTROL_CHARACTERS = {
    "line feed": "\n",
    "carriage return": "\r",
    "NUL": "\x00",
    "escape": "\x1b",
    "DEL": "\x7f",
    "next line": "\u0085",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
}

MINIMAL: Spec = {
    "upstream": {"host": "pg.data.svc", "database": "shop", "credentialsSecretRef": {"name": "shop-owner"}}
}

# Between them BY_HOST, BY_URL and BY_SECRET use every field of the spec.
BY_HOST: Spec = {
    "upstream": {
        "host": "pg.data.svc",
        "port": 5433,
        "database": "shop",
        "credentialsSecretRef": {"name": "shop-owner", "usernameKey": "login", "passwordKey": "secret"},
        "tls": {"mode": "verify-full", "caSecretRef": {"name": "shop-ca", "key": "root.crt"}},
    },
    "pooler": {
        "replicas": 3,
        "mode": "session",
        "parameters": {
            "max_client_conn": 40,
            "query_wait_timeout": "0.5",
            "server_reset_query": "DISCARD ALL",
            "server_tls_ciphers": "ECDHE-RSA-AES128-GCM-SHA256:AES128-GCM-SHA256",
            "server_tls13_ciphers": "TLS_AES_128_GCM_SHA256",
            "server_tls_protocols": "tlsv1.2,tlsv1.3",
        },
        "startupParameters": {"jit": "Apply", "lock_timeout": "Refuse", "shop.tenant": "Ignore"},
        "isolation": "Fast",
        "image": "registry.example:5000/pgbouncer:1.26.1@sha256:00",
        "allowKnownFaults": ["cached-login-error", "CVE-2026-6666"],
        "imagePullSecrets": [{"name": "registry"}],
        "resources": {"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": 1, "memory": "64Mi"}},
        "podLabels": {"team": "shop"},
        "podAnnotations": {"example.com/owner": "Shop team <shop@example.com>"},
        "serviceAnnotations": {"service.kubernetes.io/topology-mode": "Auto"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [
            {
                "key": "dedicated",
                "operator": "Equal",
                "value": "db",
                "effect": "NoExecute",
                "tolerationSeconds": 60,
            }
        ],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "high",
        "drainSeconds": 300,
        "autoscaling": {"min": 2, "max": 6},
    },
    "keeper": {
        "enabled": True,
        "image": "registry.example:5000/keeper:1.26.1@sha256:00",
        "resources": {"requests": {"cpu": "20m"}, "limits": {"cpu": "500m", "memory": "64Mi"}},
        "poolSize": 5,
        "auth": "Scram",
        "imagePullSecrets": [{"name": "registry"}],
        "rollout": "Workload",
    },
    "budget": {"maxConnections": 60, "reserve": 10, "weight": 200},
    "consumers": [
        {
            "namespace": "web",
            "secretName": "shop-database",
            "weight": 300,
            "limits": {"maxConnections": 40, "maxClientConnections": 500, "sessionConnections": 4},
        }
    ],
    "paused": True,
    "pauseTimeoutSeconds": 300,
}
BY_URL: Spec = {
    "upstream": {"uriSecretRef": {"name": "shop-url", "key": "url"}, "tls": {"mode": "require"}},
    "budget": {"maxConnections": "auto"},
    "consumers": [
        {
            "namespaceSelector": {
                "matchLabels": {"tier": "apps"},
                "matchExpressions": [{"key": "env", "operator": "In", "values": ["prod", "test"]}],
            }
        }
    ],
}
BY_SECRET: Spec = {
    "upstream": {
        "credentialsSecretRef": {
            "name": "shop-db",
            "hostKey": "host",
            "portKey": "port",
            "databaseKey": "dbname",
        }
    }
}

EMPTY = (
    ("upstream.host", BY_URL),
    ("upstream.database", BY_URL),
    ("upstream.host", BY_SECRET),
    ("upstream.database", BY_SECRET),
    ("upstream.credentialsSecretRef.usernameKey", MINIMAL),
    ("upstream.credentialsSecretRef.passwordKey", MINIMAL),
    ("upstream.credentialsSecretRef.hostKey", MINIMAL),
    ("upstream.credentialsSecretRef.portKey", MINIMAL),
    ("upstream.credentialsSecretRef.databaseKey", MINIMAL),
    ("upstream.uriSecretRef.key", BY_URL),
    ("upstream.tls.mode", MINIMAL),
    ("upstream.tls.caSecretRef.key", BY_HOST),
    ("pooler.mode", MINIMAL),
    ("pooler.isolation", MINIMAL),
    ("pooler.image", MINIMAL),
    ("pooler.priorityClassName", MINIMAL),
    ("keeper.image", MINIMAL),
    ("keeper.auth", MINIMAL),
    ("keeper.rollout", MINIMAL),
)
"""Every optional text field, with a spec that takes it: templates write "" for a value that is not set."""

Path = tuple[str | int, ...]


def changed(path: str, value: Any, base: Spec = MINIMAL) -> Spec:
    """A copy of `base` with `value` at the dotted path; what is missing on the way is made."""
    spec = copy.deepcopy(base)
    *way, last = path.split(".")
    target = spec
    for step in way:
        target = target.setdefault(step, {})
    target[last] = value
    return spec


def parameter(name: str, value: Any) -> Spec:
    """With an image of the user's own, which may know every parameter."""
    return {**MINIMAL, "pooler": {"image": "pgbouncer:1.26.1", "parameters": {name: value}}}


def consumers(*items: Spec) -> Spec:
    return {**MINIMAL, "consumers": list(items)}


def with_character(spec: Spec, path: Path, character: str) -> Spec:
    """A copy of `spec` whose text at `path` holds `character` in the middle."""
    spec = copy.deepcopy(spec)
    target: Any = spec
    for step in path[:-1]:
        target = target[step]
    text = target[path[-1]]
    target[path[-1]] = f"{text[:1]}{character}{text[1:]}"
    return spec


def texts(value: Any, path: Path = ()) -> Iterator[Path]:
    """The paths of all texts in a spec."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from texts(item, (*path, index))


def body(spec: Spec, name: str = "shop", namespace: str = "data") -> dict[str, Any]:
    """The spec as a whole object; parse() wants what the API server adds, too."""
    return {
        "apiVersion": "poolkeeper.io/v1alpha1",
        "kind": "PooledDatabase",
        "metadata": {"name": name, "namespace": namespace, "uid": "0-1-2", "generation": 1},
        "spec": spec,
    }


@dataclass(frozen=True)
class Bad:
    """A spec that must be refused, with words that the refusal must hold: the field first, then the remedy."""

    id: str
    spec: Spec = field(repr=False)
    words: tuple[str, ...]


PARAMETER_NAMES = (
    Bad("include", parameter("%include /etc/passwd", "x"), ("parameters.%include", "use a name from")),
    Bad("section", parameter("[databases]", "x"), ("parameters.[databases]", "use a name from")),
    Bad("section of users", parameter("[users", "x"), ("parameters.[users", "use a name from")),
    Bad("unknown", parameter("max_connections", 1), ("parameters.max_connections", "use a name from")),
    Bad("upper case", parameter("Query_Timeout", 1), ("parameters.Query_Timeout", "use a name from")),
    Bad("line feed", parameter("log_stats\nadmin_users", 1), ("spec.pooler.parameters", "use a name from")),
    Bad("comment", parameter("; x", 1), ("parameters.; x", "use a name from")),
    Bad("admin_users", parameter("admin_users", "me"), ("parameters.admin_users", "belongs", "spec.consumers")),
    Bad("auth_file", parameter("auth_file", "/x"), ("parameters.auth_file", "belongs", "spec.consumers")),
    Bad("auth_query", parameter("auth_query", "x"), ("parameters.auth_query", "belongs", "spec.consumers")),
    Bad("listen_addr", parameter("listen_addr", "*"), ("parameters.listen_addr", "belongs", "remove it")),
    Bad("verbose", parameter("verbose", 1), ("parameters.verbose", "belongs", "passwords into its log")),
    Bad(
        "default_pool_size",
        parameter("default_pool_size", 20),
        ("parameters.default_pool_size", "belongs", "use spec.budget and spec.consumers[].limits"),
    ),
    Bad(
        "max_db_client_connections",
        parameter("max_db_client_connections", 20),
        ("parameters.max_db_client_connections", "belongs", "limits.maxClientConnections"),
    ),
    Bad("pool_mode", parameter("pool_mode", "session"), ("parameters.pool_mode", "use spec.pooler.mode")),
    Bad(
        "server_tls_sslmode",
        parameter("server_tls_sslmode", "disable"),
        ("parameters.server_tls_sslmode", "use spec.upstream.tls"),
    ),
)

_CLIENTS = ("parameters.max_client_conn", "a whole number from 1 to 100000", "write it without quotes")
CLIENT_LIMITS = (
    Bad("-1", parameter("max_client_conn", -1), _CLIENTS),
    Bad("0", parameter("max_client_conn", 0), _CLIENTS),
    Bad("1e9", parameter("max_client_conn", 10**9), _CLIENTS),
    Bad("quoted 20", parameter("max_client_conn", "20"), _CLIENTS),
    Bad("empty", parameter("max_client_conn", ""), _CLIENTS),
    Bad("true", parameter("max_client_conn", True), ("parameters.max_client_conn",)),
    Bad("notify -1", parameter("query_wait_notify", -1), ("parameters.query_wait_notify", "from 0 to 3600")),
)

PARAMETER_VALUES = (
    Bad("switch", parameter("tcp_keepalive", 2), ("parameters.tcp_keepalive", "0 (off) or 1 (on)")),
    Bad("word for a switch", parameter("tcp_keepalive", "on"), ("tcp_keepalive", "0 (off) or 1 (on)")),
    Bad("negative seconds", parameter("query_timeout", -1), ("parameters.query_timeout", "from 0 to 86400")),
    Bad("unit", parameter("query_timeout", "5s"), ("parameters.query_timeout", "without quotes")),
    Bad("quoted seconds", parameter("query_timeout", "5"), ("parameters.query_timeout", "without quotes")),
    Bad("small fraction", parameter("server_connect_timeout", "0.9"), ("server_connect_timeout", "from 1 to")),
    Bad("long fraction", parameter("query_timeout", "0.1234"), ("parameters.query_timeout", "3 digits")),
    Bad("number for text", parameter("server_reset_query", 1), ("server_reset_query", "write it in quotes")),
    Bad("protocol", parameter("server_tls_protocols", "tlsv9"), ("server_tls_protocols", "tlsv1.2")),
    Bad("spaces", parameter("server_tls_protocols", "tlsv1.2, tlsv1.3"), ("server_tls_protocols", "without")),
    Bad(
        "tracked parameters",
        parameter("track_extra_parameters", "search_path"),
        ("track_extra_parameters", "use spec.pooler.startupParameters"),
    ),
    Bad(
        "startup parameter's treatment",
        changed("pooler.startupParameters", {"jit": "Drop"}),
        ("spec.pooler.startupParameters", "Apply"),
    ),
    Bad(
        "startup parameter's name",
        changed("pooler.startupParameters", {"a-b": "Apply"}),
        ("spec.pooler.startupParameters", "letters, digits, '_' and '.'"),
    ),
    Bad(
        "startup parameter of the connection",
        changed("pooler.startupParameters", {"options": "Ignore"}),
        ("spec.pooler.startupParameters", "belong"),
    ),
    Bad("isolation", changed("pooler.isolation", "Snapshot"), ("spec.pooler.isolation", "Strict")),
    Bad("cipher", parameter("server_tls_ciphers", "a b"), ("server_tls_ciphers", "AES128-GCM-SHA256")),
)

NEWER_PARAMETERS = tuple(
    Bad(
        name,
        changed(f"pooler.parameters.{name}", value),
        (
            f"parameters.{name}",
            f"needs PgBouncer {since}, and the operator's own image has 1.24",
            "or set spec.pooler.image",
        ),
    )
    for name, value, since in (
        ("query_wait_notify", 5, "1.25"),
        ("transaction_timeout", 60, "1.25"),
        ("server_tls13_ciphers", "TLS_AES_128_GCM_SHA256", "1.25"),
        ("pool_idle_timeout", 60, "1.26"),
        ("login_notify_message", "hello", "1.26"),
    )
)

DATABASES = (
    Bad(
        "pgbouncer", changed("upstream.database", "pgbouncer"), ("spec.upstream.database", "name the database")
    ),
    Bad("wildcard", changed("upstream.database", "*"), ("spec.upstream.database", "name the database")),
    Bad("64 bytes", changed("upstream.database", "x" * 64), ("spec.upstream.database", "63 bytes")),
    Bad("64 bytes, 32 letters", changed("upstream.database", "ä" * 32), ("spec.upstream.database", "63 bytes")),
    Bad("empty", changed("upstream.database", ""), ("spec.upstream.database", "")),
)

_ONE_SOURCE = ("spec.upstream", "exactly one source", "set host, database and credentialsSecretRef, or else")
UPSTREAMS = (
    Bad("no source", {"upstream": {}}, _ONE_SOURCE),
    Bad("host alone", {"upstream": {"host": "pg", "database": "shop"}}, _ONE_SOURCE),
    Bad("two sources", changed("upstream.uriSecretRef", {"name": "url"}), _ONE_SOURCE),
    Bad(
        "host beside a URL",
        changed("upstream.host", "pg", BY_URL),
        ("spec.upstream.host", "go with uriSecretRef", "remove"),
    ),
    Bad(
        "port beside a URL",
        changed("upstream.port", 5432, BY_URL),
        ("spec.upstream", "port", "go with uriSecretRef", "remove"),
    ),
    Bad(
        "no host",
        {"upstream": {"database": "shop", "credentialsSecretRef": {"name": "owner"}}},
        ("spec.upstream.host", "is missing", "set it"),
    ),
    Bad(
        "no database",
        {"upstream": {"host": "pg", "credentialsSecretRef": {"name": "owner"}}},
        ("spec.upstream.database", "is missing", "set it"),
    ),
    *(
        Bad(
            f"host {host!r}",
            changed("upstream.host", host),
            ("spec.upstream.host", "write the name or address"),
        )
        for host in (
            "pg1,pg2",
            "[::1]",
            "pg:5432",
            "db:5432",
            "/var/run/postgresql",
            "postgres://pg",
            "pg name",
            "@x",
            "pg%",
        )
    ),
    *(
        Bad(
            f"{key} beside what it is for",
            changed(f"upstream.credentialsSecretRef.{key}", "x", changed("upstream.port", 5432)),
            ("spec.upstream.credentialsSecretRef", key, "says itself", "remove one of the two"),
        )
        for key in ("hostKey", "portKey", "databaseKey")
    ),
    Bad(
        "hostKey that is no key",
        changed("upstream.credentialsSecretRef.hostKey", "a/b", BY_SECRET),
        ("spec.upstream.credentialsSecretRef.hostKey", "not a key of a Secret"),
    ),
    Bad(
        "an empty host and no key for it",
        changed("upstream.host", ""),
        ("spec.upstream.host", "is missing", "set it"),
    ),
    Bad(
        "an empty image and a parameter that the operator's own lacks",
        changed("pooler", {"image": "", "parameters": {"transaction_timeout": 5}}),
        ("spec.pooler.parameters.transaction_timeout", "set spec.pooler.image"),
    ),
    Bad("port 0", changed("upstream.port", 0), ("spec.upstream.port", "1")),
    Bad("port 65536", changed("upstream.port", 65536), ("spec.upstream.port", "65535")),
)

VERIFYING_WITHOUT_CA = tuple(
    Bad(
        mode,
        changed("upstream.tls", {"mode": mode}, base),
        ("tls.caSecretRef", "without a CA", "name the Secret"),
    )
    for mode in ("verify-ca", "verify-full")
    for base in (MINIMAL, BY_URL)
)

CA_WITHOUT_TLS = tuple(
    Bad(
        "a CA in mode disable",
        changed("upstream.tls", {"mode": "disable", "caSecretRef": {"name": "ca"}}, base),
        ("tls.caSecretRef", "no effect in mode disable", "remove it, or use mode verify-full"),
    )
    for base in (MINIMAL, BY_URL)
)

SECRETS_OF_ANOTHER_NAMESPACE = tuple(
    Bad(
        reference,
        changed(f"upstream.{reference}.namespace", "other", base),
        (f"spec.upstream.{reference}.namespace", "own namespace", "remove it, and put the Secret there"),
    )
    for reference, base in (
        ("credentialsSecretRef", MINIMAL),
        ("uriSecretRef", BY_URL),
        ("tls.caSecretRef", changed("upstream.tls.caSecretRef", {"name": "ca"})),
    )
)

SYSTEM_NAMESPACES = tuple(
    Bad(
        name,
        consumers({"namespace": name}),
        ("namespace", "cluster itself", "run the app in a namespace of its own"),
    )
    for name in ("kube-system", "kube-public", "kube-node-lease")
)

_COLLIDES_WITH_KEEPER = (
    "secretName",
    "collides with the Secret <secretName>-keeper",
    "choose another secretName",
)
_COLLIDES = ("secretName", "collides with the Secret <secretName>-binding", "choose another secretName")
CONSUMERS = (
    Bad("twice", consumers({"namespace": "web"}, {"namespace": "web"}), ("spec.consumers", "twice", "remove")),
    Bad(
        "twice, once by default",
        consumers({"namespace": "web", "secretName": "database"}, {"namespace": "web"}),
        ("spec.consumers", "twice", "remove"),
    ),
    Bad(
        "binding first",
        consumers({"namespace": "web", "secretName": "database-binding"}, {"namespace": "web"}),
        _COLLIDES,
    ),
    Bad(
        "binding last",
        consumers({"namespace": "web"}, {"namespace": "web", "secretName": "database-binding"}),
        _COLLIDES,
    ),
    Bad(
        "binding selected",
        consumers({"namespaceSelector": {}}, {"namespace": "web", "secretName": "database-binding"}),
        _COLLIDES,
    ),
    Bad(
        "keeper first",
        consumers({"namespace": "web", "secretName": "database-keeper"}, {"namespace": "web"}),
        _COLLIDES_WITH_KEEPER,
    ),
    Bad(
        "keeper last",
        consumers({"namespace": "web"}, {"namespace": "web", "secretName": "database-keeper"}),
        _COLLIDES_WITH_KEEPER,
    ),
    Bad(
        "keeper selected",
        consumers({"namespaceSelector": {}}, {"namespace": "web", "secretName": "database-keeper"}),
        _COLLIDES_WITH_KEEPER,
    ),
    Bad("neither", consumers({"secretName": "x"}), ("spec.consumers", "either namespace or namespaceSelector")),
    Bad(
        "both",
        consumers({"namespace": "web", "namespaceSelector": {}}),
        ("spec.consumers", "either namespace or namespaceSelector", "write exactly one of the two"),
    ),
    Bad(
        "operator's suffix",
        consumers({"namespace": "web", "secretName": "shop-pooler-config"}),
        ("secretName", "of the operator's own", "choose a name"),
    ),
    Bad("not a namespace", consumers({"namespace": "Web"}), ("namespace", "lower-case letters")),
    Bad(
        "values with Exists",
        consumers(
            {"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}
        ),
        ("matchExpressions", "values", "list values with In and NotIn"),
    ),
    Bad(
        "In without values",
        consumers({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
        ("matchExpressions", "values", "list values with In and NotIn"),
    ),
)

_SECRET_NAME = ("secretName", "cannot name the Secrets", "use at most 245 lower-case letters")
SECRET_NAMES = (
    Bad("246 letters", consumers({"namespace": "web", "secretName": "x" * 246}), _SECRET_NAME),
    Bad("upper case", consumers({"namespace": "web", "secretName": "Database"}), _SECRET_NAME),
    Bad("underscore", consumers({"namespace": "web", "secretName": "my_db"}), _SECRET_NAME),
    Bad("dash at the end", consumers({"namespace": "web", "secretName": "db-"}), _SECRET_NAME),
    Bad("two dots", consumers({"namespace": "web", "secretName": "a..b"}), _SECRET_NAME),
)


def autoscaling(least: int, most: int) -> Spec:
    return changed("pooler.autoscaling", {"min": least, "max": most})


def resources(who: str, **kinds: Any) -> Spec:
    return changed(f"{who}.resources", kinds)


def no_quantities(kind: str, *memory: object) -> tuple[Bad, ...]:
    """Each of these amounts of memory, for poolers and for keepers."""
    return tuple(
        Bad(
            f"{who}: {written!r}",
            resources(who, **{kind: {"memory": written}}),
            (f"spec.{who}.resources.{kind}", "quantity", "write an amount such as 250m"),
        )
        for who in ("pooler", "keeper")
        for written in memory
    )


QUANTITIES = no_quantities("limits", "64 MB", "-1", -1, -0.5, "0.5 ", "1e", "")
SHAPELESS_QUANTITIES = no_quantities("requests", True, ["1Gi"], {"amount": "1Gi"})
REQUESTS_ABOVE_LIMITS = tuple(
    Bad(
        f"{who}: {request!r} of {limit!r}",
        resources(who, requests={name: request}, limits={name: limit}),
        (f"spec.{who}.resources.requests", "raise the limit"),
    )
    for who in ("pooler", "keeper")
    for name, request, limit in (("memory", "1Gi", "512Mi"), ("cpu", 0.5, "250m"), ("cpu", 2, 1.5))
)

POOLERS = (
    Bad("negative replicas", changed("pooler.replicas", -1), ("spec.pooler.replicas", "0")),
    Bad("101 replicas", changed("pooler.replicas", 101), ("spec.pooler.replicas", "100")),
    Bad("no pods at least", autoscaling(0, 4), ("spec.pooler.autoscaling.min", "1")),
    Bad("101 pods at most", autoscaling(2, 101), ("spec.pooler.autoscaling.max", "100")),
    Bad("min without max", changed("pooler.autoscaling", {"min": 2}), ("spec.pooler.autoscaling.max",)),
    Bad("max without min", changed("pooler.autoscaling", {"max": 2}), ("spec.pooler.autoscaling.min",)),
    Bad("min above max", autoscaling(5, 4), ("spec.pooler.autoscaling.min", "lower min, or raise max")),
    Bad("negative drain", changed("pooler.drainSeconds", -1), ("spec.pooler.drainSeconds", "0")),
    Bad("long drain", changed("pooler.drainSeconds", 3601), ("spec.pooler.drainSeconds", "3600")),
    Bad(
        "unknown mode",
        changed("pooler.mode", "query"),
        ("spec.pooler.mode", "transaction", "session", "statement"),
    ),
    Bad("unknown tls mode", changed("upstream.tls.mode", "prefer"), ("spec.upstream.tls.mode", "require")),
    Bad("image", changed("pooler.image", "pgbouncer 1.26"), ("spec.pooler.image", "without spaces")),
    Bad(
        "unknown fault",
        changed("pooler.allowKnownFaults", ["cached-login-error", "CVE-2026-1"]),
        ("spec.pooler.allowKnownFaults[1]", *KNOWN),
    ),
    Bad("faults in a text", changed("pooler.allowKnownFaults", "all"), ("spec.pooler.allowKnownFaults",)),
    Bad(
        "label value", changed("pooler.podLabels", {"team": "a b"}), ("spec.pooler.podLabels", "use at most 63")
    ),
    Bad(
        "operator's label",
        changed("pooler.podLabels", {"poolkeeper.io/owner": "x"}),
        ("spec.pooler.podLabels", "belongs to the operator", "use a key with a prefix of your own"),
    ),
    Bad(
        "operator's other label",
        changed("pooler.podLabels", {"app.kubernetes.io/name": "x"}),
        ("spec.pooler.podLabels", "belongs to the operator", "use a key with a prefix of your own"),
    ),
    Bad(
        "operator's annotation",
        changed("pooler.podAnnotations", {"poolkeeper.io/config": "x"}),
        ("spec.pooler.podAnnotations", "belongs to the operator", "use a key with a prefix of your own"),
    ),
    Bad(
        "operator's own annotation of the Service",
        changed("pooler.serviceAnnotations", {"poolkeeper.io/config": "x"}),
        ("spec.pooler.serviceAnnotations", "belongs to the operator", "use a key with a prefix of your own"),
    ),
    Bad(
        "toleration without a key",
        changed("pooler.tolerations", [{"value": "x"}]),
        ("tolerations", "key", "use operator Exists"),
    ),
    Bad(
        "toleration of any value",
        changed("pooler.tolerations", [{"key": "a", "operator": "Exists", "value": "x"}]),
        ("tolerations", "value", "use Equal"),
    ),
    Bad(
        "toleration with a time",
        changed("pooler.tolerations", [{"key": "a", "operator": "Exists", "tolerationSeconds": 1}]),
        ("tolerations", "tolerationSeconds", "NoExecute"),
    ),
)

KEEPERS = (
    Bad("pool of 0", changed("keeper.poolSize", 0), ("spec.keeper.poolSize", "1")),
    Bad("pool of 1001", changed("keeper.poolSize", 1001), ("spec.keeper.poolSize", "1000")),
    Bad("quoted pool", changed("keeper.poolSize", "10"), ("spec.keeper.poolSize",)),
    Bad("quoted pause", changed("paused", "true"), ("spec.paused",)),
    Bad("pause of 4 s", changed("pauseTimeoutSeconds", 4), ("spec.pauseTimeoutSeconds", "5")),
    Bad("pause of 1801 s", changed("pauseTimeoutSeconds", 1801), ("spec.pauseTimeoutSeconds", "1800")),
    Bad(
        "keeper's pull secret",
        changed("keeper.imagePullSecrets", [{"name": "My_Registry"}]),
        ("spec.keeper.imagePullSecrets", "lower-case"),
    ),
    Bad(
        "rollout of another name",
        changed("keeper.rollout", "Auto"),
        ("spec.keeper.rollout", "Manual", "Workload"),
    ),
    Bad("auth of another name", changed("keeper.auth", "scram"), ("spec.keeper.auth", "Trust", "Scram")),
    Bad("word for enabled", changed("keeper.enabled", "yes"), ("spec.keeper.enabled",)),
    Bad("keeper's image", changed("keeper.image", "pgbouncer 1.26"), ("spec.keeper.image", "without spaces")),
)


def limited(**limits: Any) -> Spec:
    return consumers({"namespace": "web", "limits": limits})


_NO_BUDGET = ("spec.budget.maxConnections", "neither auto nor a whole number from 1 to 262143", "write auto")
_TOO_FEW = ("spec.budget.maxConnections", "on one pooler pod", "raise it, lower limits.sessionConnections")
_LIMIT = ("limits.maxConnections", "one pooler pod needs", "raise it", "or lower sessionConnections")
BUDGETS = (
    *(
        Bad(f"budget {value!r}", changed("budget.maxConnections", value), _NO_BUDGET)
        for value in (0, -1, 262144, "Auto", "60", "")
    ),
    Bad("reserve of -1", changed("budget.reserve", -1), ("spec.budget.reserve", "0")),
    Bad("reserve of 1001", changed("budget.reserve", 1001), ("spec.budget.reserve", "1000")),
    Bad("budget's weight", changed("budget.weight", 0), ("spec.budget.weight", "1")),
    Bad("weight of 1001", consumers({"namespace": "web", "weight": 1001}), ("weight", "1000")),
    Bad("limit of 0", limited(maxConnections=0, sessionConnections=0), ("limits.maxConnections", "1")),
    Bad("no clients", limited(maxClientConnections=0), ("limits.maxClientConnections", "1")),
    Bad("sessions of -1", limited(sessionConnections=-1), ("limits.sessionConnections", "0")),
    Bad("101 sessions", limited(sessionConnections=101), ("limits.sessionConnections", "100")),
    Bad("limit below sessions", limited(maxConnections=4, sessionConnections=4), _LIMIT),
    Bad("limit below sessions by default", limited(maxConnections=2), _LIMIT),
    Bad(
        "budget below one pod's",
        changed("budget.maxConnections", 5, consumers({"namespace": "web"}, {"namespace": "api"})),
        _TOO_FEW,
    ),
    Bad(
        "budget below one pod's sessions",
        changed("budget.maxConnections", 5, limited(sessionConnections=5)),
        _TOO_FEW,
    ),
    Bad(
        "twice, with other limits",
        consumers({"namespace": "web"}, {"namespace": "web", "weight": 1}),
        ("spec.consumers", "twice", "remove"),
    ),
)

ALL_BAD = (
    *PARAMETER_NAMES,
    *CLIENT_LIMITS,
    *PARAMETER_VALUES,
    *NEWER_PARAMETERS,
    *DATABASES,
    *UPSTREAMS,
    *VERIFYING_WITHOUT_CA,
    *CA_WITHOUT_TLS,
    *SECRETS_OF_ANOTHER_NAMESPACE,
    *SYSTEM_NAMESPACES,
    *CONSUMERS,
    *SECRET_NAMES,
    *QUANTITIES,
    *SHAPELESS_QUANTITIES,
    *REQUESTS_ABOVE_LIMITS,
    *POOLERS,
    *KEEPERS,
    *BUDGETS,
)
