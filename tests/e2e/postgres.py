"""A PostgreSQL 17 for the tests, with TLS beside plain connections."""

from __future__ import annotations

import json
from pathlib import Path

from e2e import kube
from e2e.cluster.pki import Pair
from e2e.cluster.shell import ClusterError
from e2e.images.catalog import recipe
from e2e.kube import Object, kubectl
from tests.e2e.kit import restricted_pod, wait_until

NAME = "pg"
_STARTED = ["psql", "-U", "postgres", "-h", "/tmp", "-Atc", "SELECT pg_postmaster_start_time()"]
_RESTART_SECONDS = 20.0
_AGAIN = ["sh", "-c", 'while entrypoint.sh "$@"; do sleep 2; done', "sh"]
"""Starts it again, 2 s after it was stopped in order. The pod has to stay, since its data live as long, and
kubelet waits ever longer before it starts a container again."""


def start(
    namespace: str,
    password: str,
    certificate: Pair | None = None,
    replicas: int = 1,
    name: str = NAME,
    max_connections: int | None = 200,
) -> str:
    """Create the server; with ``replicas`` 0 it is there by name and down. Returns its host name.

    With ``max_connections`` None it is PostgreSQL's own default, which ALTER SYSTEM can change.
    """
    files = {"password": password}
    arguments = ["-c", "fsync=off"]
    if max_connections is not None:
        arguments += ["-c", f"max_connections={max_connections}"]
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


def restart(namespace: str) -> None:
    """Stop it as for maintenance, which ends every connection; it is back some seconds later."""
    pod = ("-n", namespace, "exec", f"deployment/{NAME}", "--")
    begun = kubectl(*pod, *_STARTED)
    kubectl(*pod, "pg_ctl", "stop", "--mode=fast", "--no-wait", "--silent")
    wait_until(lambda: _started(pod) not in ("", begun), _RESTART_SECONDS, "PostgreSQL to be back")


def log(namespace: str, name: str = NAME) -> str:
    """All that it has logged."""
    return kubectl("-n", namespace, "logs", f"deployment/{name}", "--tail=-1")


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
        _AGAIN,
        args=arguments,
        env=[{"name": "POSTGRES_PASSWORD_FILE", "value": "/run/pg/password"}],
        # Its Service leads to it over a restart too, so that clients reach it as soon as it takes connections.
        readinessProbe={"tcpSocket": {"port": 5432}, "periodSeconds": 1, "failureThreshold": 10},
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


def _started(pod: tuple[str, ...]) -> str:
    """When the server that takes connections now was started, empty if there is none."""
    try:
        return kubectl(*pod, *_STARTED)
    except ClusterError:
        return ""


def _text(path: Path) -> str:
    return path.read_text()
