"""The pooler Deployment: PgBouncer, restricted, rolled surge-first."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from poolkeeper import names
from poolkeeper.credentials.logins import Login
from poolkeeper.desired.metadata import Object, metadata, owner
from poolkeeper.pgbouncer.configuration import POD_FILE
from poolkeeper.settings import Settings
from poolkeeper.spec.parameters import PARAMETERS
from poolkeeper.spec.parse import PooledDatabase

LEAVE_ENDPOINTS_SECONDS = 5
"""How long a terminating pod waits before PgBouncer gets SIGTERM: its listener closes as soon as the shutdown
begins, so every kube-proxy must have taken the pod out of the Service by then."""
_USER = 65532
_DEFAULT_RESOURCES = {"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}}


def image(database: PooledDatabase, settings: Settings) -> str:
    """The image of the poolers."""
    return database.pooler.image or settings.pooler_image


def scale(replicas: int, most_pods: int | None) -> tuple[int, int]:
    """(the number of pods to run, how many more a rollout may add) of `replicas` wanted ones; the budget has
    room for `most_pods`, None: not known yet.

    If there is no room for one pod more, a rollout takes one away first: the new pod would never be admitted.
    """
    if most_pods is None:
        return replicas, 1
    return min(replicas, most_pods), 0 if replicas >= most_pods else 1


def render(
    database: PooledDatabase, settings: Settings, console: Login, most_pods: int | None, borrowed: str = ""
) -> Object:
    """The Deployment of a PooledDatabase. `console` is the operator's login at the poolers' consoles; the
    budget has room for `most_pods`, None: not known yet. `borrowed` is Rollout.borrowed.
    """
    pooler = database.pooler
    replicas, surge = scale(pooler.replicas, most_pods)
    meta = metadata(database, names.ROLE_POOLER, names.pooler_name(database.name))
    selector = names.pod_selector(database.uid)
    digest = _restart_digest(database, console)
    # One label less is another template, and replaces every pod: that waits for a change that does so anyway.
    borrows = {names.BORROWED_LABEL: names.owner_label(database.name)} if borrowed == digest else {}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 2,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1 - surge},
            },
            "selector": {"matchLabels": selector},
            "template": {
                "metadata": {
                    "labels": {
                        **pooler.pod_labels,
                        **meta["labels"],
                        **borrows,
                    },
                    "annotations": {
                        **pooler.pod_annotations,
                        **owner(database),
                        names.RESTART_ANNOTATION: digest,
                    },
                },
                "spec": _pod_spec(database, settings, selector),
            },
        },
    }


def _pod_spec(database: PooledDatabase, settings: Settings, selector: dict[str, str]) -> Object:
    pooler = database.pooler
    optional: Object = {
        "nodeSelector": dict(pooler.node_selector),
        "tolerations": _as_stored(pooler.tolerations),
        "affinity": _as_stored(pooler.affinity),
        "priorityClassName": pooler.priority_class_name,
        "imagePullSecrets": [{"name": name} for name in pooler.image_pull_secrets],
    }
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "readinessGates": [{"conditionType": names.GATE}],
        "terminationGracePeriodSeconds": LEAVE_ENDPOINTS_SECONDS + pooler.drain_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            **({} if settings.assigned_users else dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), _USER)),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector},
                "matchLabelKeys": ["pod-template-hash"],
            }
        ],
        "containers": [_container(database, settings)],
        "volumes": [{"name": "config", "projected": _files(database)}],
        **{key: value for key, value in optional.items() if value},
    }


def _files(database: PooledDatabase) -> Object:
    """One projected volume, so that all files change at the same moment."""
    own = {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{names.PEER_ANNOTATION}']"}}
    return {
        "defaultMode": 0o440,
        "sources": [
            {"secret": {"name": names.config_name(database.name)}},
            {"downwardAPI": {"items": [{"path": POD_FILE, **own}]}},
        ],
    }


def _as_stored(value: Any) -> Any:
    """The value without the empty texts, lists and nulls that Kubernetes' types leave out (`omitempty`): with
    them, the stored object would never equal the wanted one. In a map of labels an empty text has a meaning."""
    if isinstance(value, dict):
        return {
            key: item if key == "matchLabels" else _as_stored(item)
            for key, item in value.items()
            if item is not None and item != "" and item != [] and (key, item) != ("matchLabels", {})
        }
    return [_as_stored(item) for item in value] if isinstance(value, list) else value


def _container(database: PooledDatabase, settings: Settings) -> Object:
    probe = {"tcpSocket": {"port": "postgres"}, "timeoutSeconds": 2}
    return {
        "name": names.POOLER_CONTAINER,
        "image": image(database, settings),
        "imagePullPolicy": settings.pooler_image_pull_policy,
        "command": ["pgbouncer", f"{names.CONFIG_DIRECTORY}/pgbouncer.ini"],
        "ports": [{"name": "postgres", "containerPort": names.POOLER_PORT, "protocol": "TCP"}],
        "startupProbe": {**probe, "periodSeconds": 1, "failureThreshold": 30},
        "readinessProbe": {**probe, "periodSeconds": 2, "failureThreshold": 2},
        "livenessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"sleep": {"seconds": LEAVE_ENDPOINTS_SECONDS}}},
        "resources": database.pooler.resources or _DEFAULT_RESOURCES,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "config", "mountPath": names.CONFIG_DIRECTORY, "readOnly": True}],
    }


def _restart_digest(database: PooledDatabase, console: Login) -> str:
    """Digest of what a RELOAD can't change (`changeable = no` in SHOW CONFIG) or must not under live clients:
    if the pool mode changes, or prepared statements go on or off, PgBouncer loses track of what clients have
    prepared.

    It also covers the console's login: if that had to be made again, the running poolers can't be given it.
    """
    parameters = database.pooler.parameters
    settings: dict[str, Any] = {
        "mode": database.pooler.mode,
        "console": console.verifier,
        "prepared_statements": parameters.get("max_prepared_statements") != "0",
        **{name: value for name, value in parameters.items() if PARAMETERS[name].restart},
        # Only what is written: a new default of the operator's waits for another reason to replace the pods.
        **({"startup_parameters": dict(chosen)} if (chosen := database.pooler.startup_parameters) else {}),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
