"""The API of the operator: parse() reads a PooledDatabase out of a body of the API server.

parse() repeats every rule of the CRD, since an object or the installed CRD may be older than a rule. A refusal
becomes the condition SpecValid. parse() reads no other object and no clock.
"""

from collections.abc import Mapping
from typing import Any

from poolkeeper.engine import known_faults
from poolkeeper.spec import budget as budget_spec
from poolkeeper.spec import parameters, startup_parameters
from poolkeeper.spec.fields import (
    BINDING_SUFFIX,
    DATABASE,
    FREE,
    HOST,
    IMAGE,
    KEEPER_SUFFIX,
    LABEL_KEY,
    LABEL_VALUE,
    NAMESPACE,
    OBJECT_NAME,
    OWN_NAME,
    SECRET_KEY,
    SECRET_NAME,
    Fields,
    refuse_control_characters,
    refuse_nesting,
)
from poolkeeper.spec.types import (
    AUTHS,
    MANUAL,
    ROLLOUTS,
    TRUST,
    Autoscaling,
    ConsumerRule,
    CredentialsRef,
    Keeper,
    LabelSelector,
    MatchExpression,
    PooledDatabase,
    Pooler,
    SecretKeyRef,
    Tls,
    Upstream,
)
from poolkeeper.spec.values import SpecError, quantity

__all__ = [
    "ConsumerRule",
    "CredentialsRef",
    "Keeper",
    "LabelSelector",
    "MatchExpression",
    "PooledDatabase",
    "Pooler",
    "SecretKeyRef",
    "SpecError",
    "Tls",
    "Upstream",
    "parse",
]

TLS_MODES = ("disable", "require", "verify-ca", "verify-full")
POOL_MODES = ("transaction", "session", "statement")
SYSTEM_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease"})

# Suffixes of the names of a consumer's Secrets, after its secretName.
_SECRET_SUFFIXES = ("", BINDING_SUFFIX, KEEPER_SUFFIX)
# Suffixes of the operator's Secrets in the PooledDatabase's namespace, which may be a consumer's too.
_RESERVED_SUFFIXES = ("-pooler-config", "-pooler-logins")
# Labels by which the operator and its Services find the pods.
_AFFINITY_LEVELS = 16
"""More than the ten that a pod's own may have."""
_RESERVED_LABELS = frozenset({"app.kubernetes.io/name", "app.kubernetes.io/managed-by"})


def parse(body: Mapping[str, Any]) -> PooledDatabase:
    """Read a PooledDatabase as the API server sends it; raises SpecError for the first field that fails."""
    root = Fields(body, "")
    metadata, spec = root.object("metadata"), root.object("spec")
    namespace = metadata.required("namespace", NAMESPACE)
    upstream = _upstream(spec.object("upstream"))
    consumers = _consumers(spec, namespace, upstream)
    budget = budget_spec.budget(spec.object("budget"))
    budget_spec.check_floors(budget.max_connections, consumers)
    return PooledDatabase(
        namespace=namespace,
        name=metadata.required("name", OWN_NAME),
        uid=metadata.required("uid", FREE),
        generation=metadata.integer("generation", 0, 2**63 - 1, default=0),
        deleting=metadata.has("deletionTimestamp"),
        upstream=upstream,
        pooler=_pooler(spec.object("pooler")),
        keeper=_keeper(spec.object("keeper")),
        consumers=consumers,
        paused=spec.boolean("paused", default=False),
        pause_timeout_seconds=spec.integer("pauseTimeoutSeconds", 5, 1800, default=60),
        budget=budget,
    )


def _upstream(fields: Fields) -> Upstream:
    by_host = fields.has("credentialsSecretRef")
    if by_host == fields.has("uriSecretRef"):
        raise SpecError(
            fields.path,
            "needs exactly one source",
            "set host, database and credentialsSecretRef, or else uriSecretRef alone",
        )
    for name in ("host", "port", "database"):
        # The schema sets no default port, so a port that is present was written by a user.
        if not by_host and fields.has(name):
            raise SpecError(
                fields.at(name), "does not go with uriSecretRef", "remove it; the URL in the Secret says it"
            )
    credentials = fields.object("credentialsSecretRef")
    for name in ("host", "port", "database"):
        if fields.has(name) and credentials.has(f"{name}Key"):
            raise SpecError(
                credentials.at(f"{name}Key"),
                f"is for what {fields.at(name)} says itself",
                "remove one of the two",
            )
    return Upstream(
        host=fields.required("host", HOST) if by_host and not credentials.has("hostKey") else None,
        port=fields.integer("port", 1, 65535, default=5432),
        database=fields.required("database", DATABASE)
        if by_host and not credentials.has("databaseKey")
        else None,
        credentials=_credentials(credentials) if by_host else None,
        uri=None if by_host else _secret_key(fields.object("uriSecretRef"), "uri"),
        tls=_tls(fields.object("tls")),
    )


def _tls(fields: Fields) -> Tls:
    mode = fields.choice("mode", TLS_MODES)
    ca = _secret_key(fields.object("caSecretRef"), "ca.crt") if fields.has("caSecretRef") else None
    if ca is None and mode in ("verify-ca", "verify-full"):
        raise SpecError(
            fields.at("caSecretRef"),
            f"is missing, and mode {mode} cannot verify a certificate without a CA",
            "name the Secret that holds the CA certificate, or use mode require",
        )
    if ca is not None and mode == "disable":
        raise SpecError(
            fields.at("caSecretRef"),
            "has no effect in mode disable, which does without TLS",
            "remove it, or use mode verify-full",
        )
    return Tls(mode, ca)


def _own_namespace(fields: Fields) -> None:
    if fields.has("namespace"):
        raise SpecError(
            fields.at("namespace"),
            "is not allowed: Secrets are read in the PooledDatabase's own namespace only",
            "remove it, and put the Secret there",
        )


def _secret_key(fields: Fields, default_key: str) -> SecretKeyRef:
    _own_namespace(fields)
    return SecretKeyRef(fields.required("name", OBJECT_NAME), fields.text("key", SECRET_KEY) or default_key)


def _credentials(fields: Fields) -> CredentialsRef:
    _own_namespace(fields)
    return CredentialsRef(
        fields.required("name", OBJECT_NAME),
        fields.text("usernameKey", SECRET_KEY) or "username",
        fields.text("passwordKey", SECRET_KEY) or "password",
        fields.text("hostKey", SECRET_KEY),
        fields.text("portKey", SECRET_KEY),
        fields.text("databaseKey", SECRET_KEY),
    )


def _pooler(fields: Fields) -> Pooler:
    values = fields.object("parameters")
    labels = fields.texts("podLabels", LABEL_KEY, LABEL_VALUE)
    annotations = fields.texts("podAnnotations", LABEL_KEY, FREE)
    of_service = fields.texts("serviceAnnotations", LABEL_KEY, FREE)
    own = {"podLabels": labels, "podAnnotations": annotations, "serviceAnnotations": of_service}
    for path, keys in own.items():
        for key in keys:
            if key in _RESERVED_LABELS or key.startswith("poolkeeper.io/"):
                raise SpecError(
                    f"{fields.at(path)}.{key}",
                    "belongs to the operator",
                    "use a key with a prefix of your own",
                )
    isolation = fields.choice("isolation", startup_parameters.ISOLATIONS) or startup_parameters.FAST
    startup_parameters.check_isolation(isolation, values.values, values.path)
    affinity = fields.object("affinity").values
    refuse_nesting(affinity, fields.at("affinity"), _AFFINITY_LEVELS)
    refuse_control_characters(affinity, fields.at("affinity"))
    checked = {name: parameters.validate(name, value) for name, value in sorted(values.values.items())}
    if not fields.has("image"):
        parameters.refuse_newer(checked)
    return Pooler(
        replicas=fields.integer("replicas", 0, 100, default=2),
        mode=fields.choice("mode", POOL_MODES) or "transaction",
        parameters=checked,
        image=fields.text("image", IMAGE),
        image_pull_secrets=_names(fields, "imagePullSecrets"),
        resources=_resources(fields.object("resources")),
        pod_labels=labels,
        pod_annotations=annotations,
        service_annotations=of_service,
        node_selector=fields.texts("nodeSelector", LABEL_KEY, LABEL_VALUE),
        tolerations=[_toleration(item) for item in fields.objects("tolerations")],
        affinity=dict(affinity) or None,
        priority_class_name=fields.text("priorityClassName", OBJECT_NAME),
        drain_seconds=fields.integer("drainSeconds", 0, 3600, default=30),
        autoscaling=_autoscaling(fields.object("autoscaling")) if fields.has("autoscaling") else None,
        startup_parameters=startup_parameters.parse(fields),
        isolation=isolation,
        allowed_faults=fields.choices("allowKnownFaults", tuple(known_faults.KNOWN)),
    )


def _autoscaling(fields: Fields) -> Autoscaling:
    for name in ("min", "max"):
        if not fields.has(name):
            raise SpecError(fields.at(name), "is missing", "write a number of pooler pods, 1 to 100")
    scaling = Autoscaling(fields.integer("min", 1, 100, default=1), fields.integer("max", 1, 100, default=1))
    if scaling.min > scaling.max:
        raise SpecError(fields.at("min"), "is more than max", "lower min, or raise max")
    return scaling


def _keeper(fields: Fields) -> Keeper:
    return Keeper(
        enabled=fields.boolean("enabled", default=True),
        image=fields.text("image", IMAGE),
        resources=_resources(fields.object("resources")),
        pool_size=fields.integer("poolSize", 1, 1000, default=10),
        auth=fields.choice("auth", AUTHS) or TRUST,
        image_pull_secrets=_names(fields, "imagePullSecrets"),
        rollout=fields.choice("rollout", ROLLOUTS) or MANUAL,
    )


def _names(fields: Fields, key: str) -> tuple[str, ...]:
    return tuple(item.required("name", OBJECT_NAME) for item in fields.objects(key))


def _toleration(fields: Fields) -> dict[str, Any]:
    operator = fields.choice("operator", ("Exists", "Equal")) or "Equal"
    fields.text("value", LABEL_VALUE)
    effect = fields.choice("effect", ("NoSchedule", "PreferNoSchedule", "NoExecute"))
    if fields.text("key", LABEL_KEY) is None and operator != "Exists":
        raise SpecError(
            fields.at("key"), "is missing", "set it, or use operator Exists to put up with every taint"
        )
    if operator == "Exists" and fields.has("value"):
        raise SpecError(fields.at("value"), "does not go with operator Exists", "remove it, or use Equal")
    if fields.has("tolerationSeconds") and effect != "NoExecute":
        raise SpecError(
            fields.at("tolerationSeconds"),
            "goes with effect NoExecute only",
            "remove it, or set that effect",
        )
    return dict(fields.values)


def _resources(fields: Fields) -> dict[str, Any] | None:
    amounts = {kind: fields.texts(kind, LABEL_KEY, FREE) for kind in ("requests", "limits") if fields.has(kind)}
    for kind, resources in amounts.items():
        for name, written in resources.items():
            amount = quantity(written)
            if amount is None:
                raise SpecError(
                    f"{fields.at(kind)}.{name}",
                    "is not a quantity",
                    "write an amount such as 250m (CPU) or 64Mi (memory)",
                )
            limit = quantity(amounts.get("limits", {}).get(name, written))
            if limit is not None and amount > limit:
                raise SpecError(
                    f"{fields.at('requests')}.{name}",
                    "is more than the limit",
                    "lower it, or raise the limit",
                )
    return dict(amounts) or None


def _consumers(spec: Fields, own_namespace: str, upstream: Upstream) -> tuple[ConsumerRule, ...]:
    rules: list[ConsumerRule] = []
    for fields in spec.objects("consumers"):
        rule = _consumer(fields)
        own = {rule.secret_name + suffix for suffix in _SECRET_SUFFIXES}
        if rule.namespace == own_namespace and own & upstream.secret_names():
            raise SpecError(
                fields.at("secretName"),
                "would overwrite a Secret that spec.upstream reads",
                "choose another secretName",
            )
        for other in rules:
            if rule.namespace is not None and other.namespace is not None and rule.namespace != other.namespace:
                continue
            known = (other.namespace, other.secret_name)
            if rule.namespace is not None and (rule.namespace, rule.secret_name) == known:
                raise SpecError(fields.path, "is listed twice", "remove it, or choose another secretName")
            for suffix in (BINDING_SUFFIX, KEEPER_SUFFIX):
                if (
                    rule.secret_name + suffix == other.secret_name
                    or rule.secret_name == other.secret_name + suffix
                ):
                    raise SpecError(
                        fields.at("secretName"),
                        f"collides with the Secret <secretName>{suffix} of another consumer",
                        "choose another secretName",
                    )
        rules.append(rule)
    return tuple(rules)


def _consumer(fields: Fields) -> ConsumerRule:
    namespace = fields.text("namespace", NAMESPACE)
    if (namespace is None) != fields.has("namespaceSelector"):
        raise SpecError(
            fields.path, "needs either namespace or namespaceSelector", "write exactly one of the two"
        )
    if namespace in SYSTEM_NAMESPACES:
        raise SpecError(
            fields.at("namespace"),
            "is a namespace of the cluster itself, which never becomes a consumer",
            "run the app in a namespace of its own",
        )
    secret_name = fields.text("secretName", SECRET_NAME) or "database"
    if secret_name.endswith(_RESERVED_SUFFIXES):
        raise SpecError(
            fields.at("secretName"),
            "ends like a Secret of the operator's own",
            f"choose a name that does not end with {' or '.join(_RESERVED_SUFFIXES)}",
        )
    selector = _selector(fields.object("namespaceSelector")) if fields.has("namespaceSelector") else None
    return ConsumerRule(namespace, selector, secret_name, budget_spec.terms(fields))


def _selector(fields: Fields) -> LabelSelector:
    return LabelSelector(
        fields.texts("matchLabels", LABEL_KEY, LABEL_VALUE),
        tuple(_expression(item) for item in fields.objects("matchExpressions")),
    )


def _expression(fields: Fields) -> MatchExpression:
    operator = fields.choice("operator", ("In", "NotIn", "Exists", "DoesNotExist"))
    if operator is None:
        raise SpecError(fields.at("operator"), "is missing", "use In, NotIn, Exists or DoesNotExist")
    values = fields.values.get("values") or []
    if not isinstance(values, list) or bool(values) != (operator in ("In", "NotIn")):
        raise SpecError(
            fields.at("values"),
            f"does not fit operator {operator}",
            "list values with In and NotIn, and none with Exists and DoesNotExist",
        )
    checked = tuple(LABEL_VALUE.check(str(value), fields.at("values")) for value in values)
    return MatchExpression(fields.required("key", LABEL_KEY), operator, checked)
