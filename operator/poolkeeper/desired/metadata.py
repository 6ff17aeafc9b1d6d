"""Metadata that every object of a PooledDatabase shares."""

from __future__ import annotations

from typing import Any

from poolkeeper import names
from poolkeeper.spec.parse import PooledDatabase

Object = dict[str, Any]


def metadata(database: PooledDatabase, role: str, name: str, namespace: str | None = None) -> Object:
    """Name, labels, the owner's full name, the object's own place and, within the owner's namespace, the
    controller reference.

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
    where = namespace or database.namespace
    return {
        "name": name,
        "namespace": where,
        "labels": names.child_labels(database.namespace, database.name, database.uid, role),
        "annotations": {**owner(database), names.ORIGIN_ANNOTATION: f"{where}/{name}"},
        **({"ownerReferences": [reference]} if own else {}),
    }


def owner(database: PooledDatabase) -> dict[str, str]:
    """The annotation that names the owner in full; pods carry it too."""
    return {names.OWNER_ANNOTATION: f"{database.namespace}/{database.name}"}
