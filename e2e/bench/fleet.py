"""The fleet that is measured: so many PooledDatabases, each with a Secret and one consumer elsewhere. Pure.

They are spread over pairs of namespaces: `data-<i>` holds PooledDatabases and their Secrets, `apps-<i>` the
consumers, one Secret name each, and accepts them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]

NAMESPACES = 20
API_VERSION = "poolkeeper.io/v1alpha1"
CHILDREN = 9
"""Deployment, Service, PodDisruptionBudget, NetworkPolicy, two Secrets beside them, three for the consumer."""


@dataclass(frozen=True)
class Upstream:
    """The database that all of them pool."""

    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)


def namespaces() -> list[Object]:
    """Both namespaces of every pair, and the one of the operator's Lease."""
    made = [_namespace("poolkeeper")]
    for index in range(NAMESPACES):
        made.append(_namespace(f"data-{index}"))
        made.append(_namespace(f"apps-{index}", {"poolkeeper.io/accept-from": f"data-{index}"}))
    return made


def secrets(first: int, last: int, upstream: Upstream) -> Iterator[Object]:
    """The credentials Secrets of the PooledDatabases `first` to `last` - 1."""
    for number in range(first, last):
        values = {"username": upstream.user, "password": upstream.password}
        yield {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"namespace": _data(number), "name": f"{name(number)}-owner"},
            "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
        }


def pooled_databases(first: int, last: int, upstream: Upstream) -> Iterator[Object]:
    """The PooledDatabases `first` to `last` - 1."""
    for number in range(first, last):
        yield {
            "apiVersion": API_VERSION,
            "kind": "PooledDatabase",
            "metadata": {"namespace": _data(number), "name": name(number)},
            "spec": {
                "upstream": {
                    "host": upstream.host,
                    "port": upstream.port,
                    "database": upstream.database,
                    "credentialsSecretRef": {"name": f"{name(number)}-owner"},
                    "tls": {"mode": "disable"},
                },
                "consumers": [{"namespace": f"apps-{number % NAMESPACES}", "secretName": name(number)}],
            },
        }


def name(number: int) -> str:
    """Of a PooledDatabase and of its consumer's Secret."""
    return f"shop-{number:04d}"


def location(number: int) -> tuple[str, str]:
    """Namespace and name of a PooledDatabase."""
    return _data(number), name(number)


def as_applied(live: Object) -> Object:
    """A live object as somebody who knows it beforehand would apply it: without what the server adds."""
    metadata = {
        key: value
        for key, value in live["metadata"].items()
        if key in ("name", "namespace", "labels", "annotations", "ownerReferences")
    }
    return {
        **{key: value for key, value in live.items() if key not in ("metadata", "status")},
        "metadata": metadata,
    }


def _data(number: int) -> str:
    return f"data-{number % NAMESPACES}"


def _namespace(name: str, annotations: dict[str, str] | None = None) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "annotations": annotations or {}},
    }
