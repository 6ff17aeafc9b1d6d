"""The variables that lead an app to its keeper, and how they combine with a container's own variables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from poolkeeper.consumers.database_url import url
from poolkeeper.desired.metadata import Object
from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.names import APP_PASSWORD_KEY, APP_USER, keeper_name
from poolkeeper.spec.types import SCRAM

_HOST = "127.0.0.1"
_URL = "DATABASE_URL"
_URLS = (_URL, "DATABASE_SESSION_URL")
_PASSWORD = "KEEPER_PASSWORD"  # noqa: S105
"""The variable that URLs refer to. Not PGPASSWORD: a container may have that for another server."""
_LIBPQ_PASSWORD = "PGPASSWORD"  # noqa: S105
_ELSEWHERE = ("PGHOST", "PGHOSTADDR", "PGSERVICE")
"""libpq's variables that name a server: a container that sets one of them means another server."""


def prefixes(secret_names: Sequence[str]) -> dict[str, str]:
    """The prefix of each database's variables: none for the first, `ORDERS_DB_` for orders-db, and so on.

    Raises ValueError, to be shown to the pod's owner, if two databases would share one.
    """
    made = {secret_names[0]: ""}
    for name in secret_names[1:]:
        readable = re.sub(r"[^A-Z0-9]", "_", name.upper())
        # A variable's name can't begin with a digit.
        prefix = f"_{readable}_" if readable[0].isdigit() else f"{readable}_"
        for other in (other for other, taken in made.items() if taken == prefix):
            raise ValueError(
                f"the variables of {other} and {name} would both begin with {prefix}; rename one of the two "
                "consumers' Secrets (spec.consumers.secretName)"
            )
        made[name] = prefix
    return made


def variables(prefix: str, port: int, template: KeeperTemplate, secret_name: str) -> dict[str, Object]:
    """The URLs, and the same as libpq's variables: items of a container's `env` by name.

    If the keeper trusts its own pod, there is no password; otherwise there is a reference to it. It comes
    before the URLs, since kubelet puts it into them
    (https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/).
    TLS is explicitly off: libpq would try it first.
    """
    urls = {
        name: url(_HOST, port, APP_USER, "", database, sslmode="disable")
        for name, database in zip(_URLS, (template.database, template.session_database), strict=True)
        if database
    }
    values = {
        **urls,
        "PGHOST": _HOST,
        "PGPORT": str(port),
        "PGUSER": APP_USER,
        "PGDATABASE": template.database,
        "PGSSLMODE": "disable",
    }
    passwords: dict[str, Object] = {}
    if template.auth == SCRAM:
        reference = {"secretKeyRef": {"name": keeper_name(secret_name), "key": APP_PASSWORD_KEY}}
        passwords = {
            f"{prefix}{name}": {"name": f"{prefix}{name}", "valueFrom": reference}
            for name in (_PASSWORD, _LIBPQ_PASSWORD)
        }
        for name in urls:
            values[name] = values[name].replace(f"{APP_USER}@", f"{APP_USER}:$({prefix}{_PASSWORD})@", 1)
    return passwords | {
        f"{prefix}{name}": {"name": f"{prefix}{name}", "value": value} for name, value in values.items()
    }


def put(container: Object, prefix: str, ours: Mapping[str, Object]) -> set[str]:
    """Add those of `ours` that the container doesn't set itself; returns the names of those that it does.

    Half of ours with half of its own would lead to neither database. So a container with a URL or keeper
    password of its own gets nothing (PGSSLMODE would change what that URL means). A container whose libpq
    variables name a server, or a password if ours do, gets only the URLs. Variables from envFrom do not count:
    `env` overrides them.
    """
    env = container.get("env") or []
    own = {item["name"] for item in env}
    elsewhere = {f"{prefix}{name}" for name in _ELSEWHERE} | ({f"{prefix}{_LIBPQ_PASSWORD}"} & ours.keys())
    if own & ({f"{prefix}{_URL}", f"{prefix}{_PASSWORD}"} & ours.keys()):
        wanted: Iterable[str] = ()
    elif own & elsewhere:
        wanted = [name for item in (_PASSWORD, *_URLS) if (name := f"{prefix}{item}") in ours]
    else:
        wanted = ours
    added = [ours[name] for name in wanted if name not in own]
    if added:
        # First, so that the container's own variables can refer to them as $(DATABASE_URL).
        container["env"] = [*added, *env]
    return own & (ours.keys() | elsewhere)


def take_out(container: Object, ours: Mapping[str, Object]) -> None:
    """Undo put() for exactly these values."""
    if container.get("env"):
        container["env"] = [item for item in container["env"] if item != ours.get(item["name"])]
