"""Names, labels and annotations of everything the operator creates.

Kubernetes limits names (RFC 1123 labels of 63 characters for Services and label values, 253 for most objects).
So a derived name that would not fit is cut and ends with a hash of the whole name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

GROUP = "poolkeeper.io"
VERSION = "v1alpha1"
KIND = "PooledDatabase"
PLURAL = "pooleddatabases"

MANAGER = "poolkeeper"
"""Field manager of everything that the operator applies."""
FINALIZER_MANAGER = "poolkeeper-finalizer"
"""Field manager of the finalizer alone, so that applying it never touches another field of the resource."""
SOURCE_MANAGER = "poolkeeper-source"
"""Field manager of the one label that marks a source Secret, which the operator reads."""

BUDGET_MANAGER = "poolkeeper-budget"
"""Field manager of the budget's data in the poolers' Secret, which other writes must not restore."""

APP_USER = "app"
"""The user name that apps send to their keeper. It must differ from every pooler login: PgBouncer keeps one
record per user name, for clients and servers alike."""
CONSOLE_DATABASE = "pgbouncer"
CONFIG_DIRECTORY = "/etc/poolkeeper"
"""Where poolers and keepers find their files."""
POOLER_CONTAINER = "pgbouncer"

FINALIZER = f"{GROUP}/cleanup"
OWNER_LABEL = f"{GROUP}/owner"
OWNER_NAMESPACE_LABEL = f"{GROUP}/owner-namespace"
OWNER_UID_LABEL = f"{GROUP}/owner-uid"
ROLE_LABEL = f"{GROUP}/role"
"""On every object that the operator watches: the object's role. The watches select by the label's presence."""
OWNER_ANNOTATION = f"{GROUP}/owner"
"""`namespace/name` of the PooledDatabase in full, since a label value holds 63 characters only."""
ORIGIN_ANNOTATION = f"{GROUP}/origin"
"""`namespace/name` of the object itself, as the operator created it. A copy brings it along, and so names
another place than its own (observed/origin.py)."""
RECONNECT_ANNOTATION = f"{GROUP}/reconnect"
"""On a PooledDatabase: each new value is a request to renew server connections."""
ACCEPT_FROM_ANNOTATION = f"{GROUP}/accept-from"
BUDGET_WEIGHT_ANNOTATION = f"{GROUP}/budget-weight"
"""On a Namespace: its weight in the division of a server's connections among namespaces."""
GENERATION_ANNOTATION = f"{GROUP}/config-generation"
"""On a pooler pod: the configuration it has to show. A change makes kubelet refresh its volumes at once."""
KEEPER_GENERATION_ANNOTATION = f"{GROUP}/{{container}}-generation"
"""The same on an app pod, one for each of its keepers."""
RESTART_ANNOTATION = f"{GROUP}/restart-digest"
"""On the pod template: digest of the settings that PgBouncer reads only at its start."""

PEER_ANNOTATION = f"{GROUP}/peer"
"""On a pooler pod: its own lines of PgBouncer's configuration; the pod reads them as a file."""
ALLOTMENT_ANNOTATION = f"{GROUP}/allotment"
"""On a pooler pod: the revision of its table of caps. A change makes kubelet deliver the table at once."""
GATE = f"{GROUP}/within-budget"
"""Readiness gate of pooler pods: the pod has its share of the server's connections, so clients may connect."""
DATABASE_LABEL = f"{GROUP}/database"
"""On an app pod, set by its owner: the consumer's Secret whose database the pod needs a keeper for."""
DATABASES_ANNOTATION = f"{GROUP}/databases"
"""On an app pod, set by its owner: more such Secrets."""
KEEPER_ANNOTATION = f"{GROUP}/keeper"
"""On a keeper's Secret: what injection needs in addition to the Secret's name."""

RESTARTED_FOR_ANNOTATION = f"{GROUP}/restarted-for-{{}}"
"""In an app's pod template: for which keeper the operator last restarted it, one for each consumer's Secret."""
RESTARTED_FOR_LIMIT = 63 - len("restarted-for-")
"""Maximum length of the Secret's name there, in characters."""
APP_PASSWORD_KEY = "app-password"  # noqa: S105
"""In a keeper's Secret: the app's password at a keeper that demands one. Containers refer to it."""

ROLE_SOURCE = "source"
ROLE_POOLER = "pooler"
ROLE_CONFIG = "config"
ROLE_LOGINS = "logins"
ROLE_CONSUMER = "consumer"
ROLE_BINDING = "binding"
ROLE_KEEPER = "keeper"
CONSUMER_ROLES = frozenset({ROLE_CONSUMER, ROLE_BINDING, ROLE_KEEPER})
"""Of the Secrets that a consumer gets."""

MANAGED_BY = "app.kubernetes.io/managed-by"
BORROWED_LABEL = "app.kubernetes.io/instance"
"""GitOps tools take it for theirs. Pooler pods that an older operator made have it (desired/deployment.py)."""
POOLER_PORT = 6432
KEEPER_PORT = 6432
CONSOLE_LOGIN = "poolkeeper"

_LABEL_LIMIT = 63
_DEPLOYMENT_LIMIT = 52
"""A Deployment's name with the pod-template hash and the pod's suffix must fit a label of 63 characters."""


def fit(name: str, limit: int) -> str:
    """`name` itself, or its beginning and eight hex digits of its SHA-256 if it is longer than `limit`."""
    if len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: limit - 9].rstrip('-.')}-{digest}"


def pooler_name(owner: str) -> str:
    """Name of the Deployment, Service, PodDisruptionBudget, NetworkPolicy and HorizontalPodAutoscaler.

    A Service's name is an RFC 1035 label, so the name of a PooledDatabase has to be one too (spec/parse.py).
    """
    return fit(f"{owner}-pooler", _DEPLOYMENT_LIMIT)


def pooler_host(namespace: str, owner: str, domain: str) -> str:
    """Name of the pooler Service in URLs, with the cluster's domain. Only so does it resolve in every pod: musl
    completes no name with as many dots as the pod's ndots."""
    return f"{short_pooler_host(namespace, owner)}.{domain}"


def short_pooler_host(namespace: str, owner: str) -> str:
    """The same without the domain. Every certificate of a pooler has this name, whatever the domain is: by it
    the operator verifies consoles, and URLs of earlier versions of the operator have it."""
    return f"{pooler_name(owner)}.{namespace}.svc"


def config_name(owner: str) -> str:
    """Name of the Secret that the pooler pods mount."""
    return f"{pooler_name(owner)}-config"


def logins_name(owner: str) -> str:
    """Name of the operator's own Secret, which holds every login."""
    return f"{pooler_name(owner)}-logins"


def binding_name(secret_name: str) -> str:
    """Name of the Service Binding Secret that goes with a consumer's Secret."""
    return f"{secret_name}-binding"


def keeper_name(secret_name: str) -> str:
    """Name of the Secret that goes with a consumer's Secret and that its keepers mount."""
    return f"{secret_name}-keeper"


def consumer_secrets(secret_name: str) -> tuple[str, str, str]:
    """Names of all Secrets that a consumer gets."""
    return secret_name, binding_name(secret_name), keeper_name(secret_name)


def own_secrets(owner: str) -> tuple[str, str]:
    """Names of all Secrets that a PooledDatabase has in its own namespace, its consumers' aside."""
    return config_name(owner), logins_name(owner)


def owner_key(annotations: Mapping[str, str]) -> tuple[str, str] | None:
    """(namespace, name) of the PooledDatabase that an object names as its owner, or None."""
    namespace, slash, name = annotations.get(OWNER_ANNOTATION, "").partition("/")
    return (namespace, name) if slash and namespace and name else None


def owner_label(owner: str) -> str:
    """The PooledDatabase's name as the value of a label."""
    return fit(owner, _LABEL_LIMIT)


def child_labels(namespace: str, name: str, uid: str, role: str) -> dict[str, str]:
    """Labels of one object that the operator creates for a PooledDatabase.

    BORROWED_LABEL is not among them: GitOps tools delete an object that carries it, has no owner, and is not in
    their repository (docs/gitops.md).
    """
    return {
        MANAGED_BY: "poolkeeper",
        "app.kubernetes.io/name": "pgbouncer",
        OWNER_LABEL: owner_label(name),
        OWNER_NAMESPACE_LABEL: namespace,
        OWNER_UID_LABEL: uid,
        ROLE_LABEL: role,
    }


def pod_selector(uid: str) -> dict[str, str]:
    """Labels that select the pooler pods of one PooledDatabase."""
    return {OWNER_UID_LABEL: uid, ROLE_LABEL: ROLE_POOLER}
