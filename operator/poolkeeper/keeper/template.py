"""The data that a keeper's injection needs: written on the keeper's Secret, read at the admission of a pod.

The admission of a pod reads that one Secret and nothing else, so every replica of the operator can serve it,
even one that has observed nothing yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from poolkeeper.spec.types import AUTHS, TRUST


@dataclass(frozen=True)
class KeeperTemplate:
    """One database's keeper. `database` and `session_database` are the names that apps connect to; the second
    is empty if the consumer has no session endpoint. `assigned_user`: it names no user of its own."""

    image: str
    image_pull_policy: str
    resources: Mapping[str, Any] | None
    database: str
    session_database: str
    auth: str = TRUST
    image_pull_secrets: tuple[str, ...] = ()
    assigned_user: bool = False


def dump(template: KeeperTemplate) -> str:
    """The template as text for an annotation. The same template gives the same text."""
    return json.dumps(asdict(template), sort_keys=True, separators=(",", ":"))


def parse(text: str) -> KeeperTemplate:
    """Read what dump() wrote. Raises ValueError for anything else."""
    match json.loads(text):
        case {
            "image": str(image),
            "image_pull_policy": str(policy),
            "resources": (dict() | None) as resources,
            "database": str(database),
            "session_database": str(session),
            **rest,
        }:
            # If a field is missing, a version of the operator that did not know it wrote the text.
            auth, secrets = rest.get("auth", TRUST), rest.get("image_pull_secrets", [])
            assigned = rest.get("assigned_user", False)
            if (
                auth in AUTHS
                and isinstance(secrets, list)
                and all(isinstance(name, str) for name in secrets)
                and isinstance(assigned, bool)
            ):
                return KeeperTemplate(
                    image, policy, resources, database, session, auth, tuple(secrets), assigned
                )
    raise ValueError("it is not a keeper's template")
