"""A PostgreSQL 17 for the tests, with TLS beside plain connections."""

from __future__ import annotations

import json
from pathlib import Path

from e2e import kube
from e2e.cluster.pki import Pair
from e2e.images.catalog import recipe
from e2e.kube import Object, kubectl
from tests.e2e.kit import restricted_pod

NAME = "pg"


def start(
    namespace: str, password: str, certificate: Pair | None = None, replicas: int = 1, name: str = NAME
) -> str:
    """Create the server; with ``replicas`` 0 it is there by name and down. Returns its host name."""
    files = {"password": password}
    arguments = ["-c", "fsync=off", "-c", "max_connections=200"]
    if certificate is not None:
        files |= {"tls.crt": _text(certificate.certificate), "tls.key": _text(certificate.key)}
        arguments += [
            "-c",
            "ssl=on",
            "-c",
            "ssl_cert_file=/run/pg/tls.crt",
            "-c",
            "ssl_key_file=/run/pg/tls.key",
        ]
    bodies = [
        kube.secret(namespace, name, files),
        service(namespace, name, name),
        _deployment(namespace, name, arguments),
    ]
    bodies[-1]["spec"]["replicas"] = replicas
    kube.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": bodies}))
    return f"{name}.{namespace}.svc"


def wait(namespace: str, name: str = NAME) -> None:
    """Wait until it takes connections."""
    kubectl("-n", namespace, "rollout", "status", f"deployment/{name}", "--timeout=60s", timeout=70)


def service(namespace: str, name: str, server: str = NAME) -> Object:
    """A Service for it, under any name."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"selector": {"app": server}, "ports": [{"port": 5432}]},
    }


def _deployment(namespace: str, name: str, arguments: list[str]) -> Object:
    pod = restricted_pod(
        recipe("postgres").reference,
        [],
        args=arguments,
        env=[{"name": "POSTGRES_PASSWORD_FILE", "value": "/run/pg/password"}],
        readinessProbe={"tcpSocket": {"port": 5432}, "periodSeconds": 1},
        volumeMounts=[
            {"name": "data", "mountPath": "/var/lib/postgresql/data"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "files", "mountPath": "/run/pg", "readOnly": True},
        ],
    )
    pod["volumes"] = [
        {"name": "data", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        # PostgreSQL takes a key that belongs to root if only its group may read it.
        {"name": "files", "secret": {"secretName": name, "defaultMode": 0o440}},
    ]
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _text(path: Path) -> str:
    return path.read_text()
