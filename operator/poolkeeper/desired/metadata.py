"""Metadata that every object of a PooledDatabase shares."""

from __future__ import annotations

from typing import Any

from poolkeeper import names
from poolkeeper.spec.parse import PooledDatabase

Object = dict[str, Any]


def metadata(database: PooledDatabase, role: str, name: str, namespace: str | None = None) -> Object:
    """Name, labels, the owner's full name and, within its namespace, the controller reference.

    Across namespaces Kubernetes allows no owner reference; there the finalizer does the clean-up.
    """
    own = namespace is None or namespace == database.namespace
    reference = {
        "apiVersion": f"{names.GROUP}/{names.VERSION}",
        "kind": names.KIND,
        "name": database.name,
        "uid": database.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {
        "name": name,
        "namespace": namespace or database.namespace,
        "labels": names.child_labels(database.namespace, database.name, database.uid, role),
        "annotations": {names.OWNER_ANNOTATION: f"{database.namespace}/{database.name}"},
        **({"ownerReferences": [reference]} if own else {}),
    }
