"""The parts of a pod for one keeper: a native sidecar and its volume.

This module knows neither the pod around them (injection.py) nor the app's variables (variables.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from poolkeeper import names
from poolkeeper.desired.metadata import Object
from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.names import CONFIG_DIRECTORY
from poolkeeper.pgbouncer.configuration import POD_FILE
from poolkeeper.pgbouncer.keeper_configuration import start_file

DEFAULT_RESOURCES = {"requests": {"cpu": "10m", "memory": "32Mi"}}
_USER = 65532
_ACCOUNT_DIRECTORY = "/var/run/secrets/kubernetes.io/serviceaccount"


def container(name: str, port: int, template: KeeperTemplate) -> Object:
    """The sidecar, an init container that keeps running: later containers wait until it listens.

    It meets the Pod Security standard "restricted", whatever the rest of the pod does.
    https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/
    """
    return {
        "name": name,
        "image": template.image,
        "imagePullPolicy": template.image_pull_policy,
        "restartPolicy": "Always",
        "command": ["pgbouncer", start_file(template.auth)],
        "ports": [{"name": name, "containerPort": port, "protocol": "TCP"}],
        "startupProbe": {
            "tcpSocket": {"port": port},
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": 60,
        },
        "resources": template.resources or DEFAULT_RESOURCES,
        "securityContext": {
            "runAsNonRoot": True,
            **({} if template.assigned_user else {"runAsUser": _USER, "runAsGroup": _USER}),
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": name, "mountPath": CONFIG_DIRECTORY, "readOnly": True},
            # The API server mounts the pod's token there in every container that mounts nothing there.
            {"name": name, "mountPath": _ACCOUNT_DIRECTORY, "readOnly": True},
        ],
    }


def volume(name: str, secret_name: str) -> Object:
    """The keeper's Secret and the pod's own file, as one volume so that they change together.

    Every user of the container may read it, since the pod's fsGroup is not ours to set: the keeper runs as
    another user than the files' owner. No other container mounts the files.
    """
    return {
        "name": name,
        "projected": {
            "defaultMode": 0o444,
            "sources": [
                {"secret": {"name": names.keeper_name(secret_name)}},
                {
                    "downwardAPI": {
                        "items": [
                            {
                                "path": POD_FILE,
                                "fieldRef": {
                                    "apiVersion": "v1",
                                    "fieldPath": f"metadata.annotations['{listen_annotation(name)}']",
                                },
                            }
                        ]
                    }
                },
            ],
        },
    }


def missing_pull_secrets(spec: Object, templates: Iterable[KeeperTemplate]) -> list[Object]:
    """The pull Secrets that a pod needs for its keepers' images in addition to its own, which are those of its
    service account if it names none itself."""
    present = spec.get("imagePullSecrets") or []
    names_of_all = {name: None for template in templates for name in template.image_pull_secrets}
    return [{"name": name} for name in names_of_all if {"name": name} not in present]


def listen_annotation(name: str) -> str:
    """The pod's annotation that the container's own file is made from."""
    return f"{names.GROUP}/{name}-listen"


def listen(port: int) -> str:
    """The annotation's value: a line of PgBouncer's configuration."""
    return f"listen_port = {port}"
