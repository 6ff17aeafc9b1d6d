"""The variables that lead an app to its keeper, and how they combine with a container's own variables."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

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
_LIBPQ = ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGSSLMODE")
"""libpq's variables that lead to the keeper, each worth nothing without the others."""
_ELSEWHERE = ("PGHOSTADDR", "PGSERVICE")
"""libpq's variables that name a server in another way."""
_HOST_ADDRESS = "PGHOSTADDR"
"""An address that libpq connects to in place of the host of any URL."""
_NAMED = 3
"""How many variables a warning names; the pod's annotation names all."""
SECRET_KEYS = (*_URLS, "PGHOST", "PGPORT", "PGUSER", _LIBPQ_PASSWORD, "PGDATABASE")
"""The keys of a consumer's Secret (desired/secrets.py)."""


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


@dataclass(frozen=True)
class Kept:
    """What a container sets itself of a keeper's variables, and what it got of them all the same."""

    own: frozenset[str]
    given: tuple[str, ...]


def put(
    container: Object, prefix: str, ours: Mapping[str, Object], brought: Collection[str] = ()
) -> Kept | None:
    """Add those of `ours` that make a whole; None if the container got all of them.

    Half of ours with half of its own would lead to neither database. Each URL is whole, and so are libpq's
    variables together. A container gets both, or the URLs if it sets any of libpq's variables itself, or
    nothing if it sets a URL or keeper password itself (PGSSLMODE would change what that URL means) or
    PGHOSTADDR (which libpq follows in place of the host of any URL).
    `brought` are variables that it gets from envFrom and that count as its own. Others from envFrom do not:
    `env` overrides them, and all of ours override as many.
    """
    env = container.get("env") or []
    own = {item["name"] for item in env if item != ours.get(item["name"])} | {*brought}
    urls = {f"{prefix}{name}" for name in (*_URLS, _PASSWORD)} & ours.keys() | {_HOST_ADDRESS}
    # A session URL of its own where there is none of ours: libpq's variables would change what it means.
    libpq = {f"{prefix}{name}" for name in (*_LIBPQ, *_ELSEWHERE, *_URLS)}
    libpq |= {f"{prefix}{_LIBPQ_PASSWORD}"} & ours.keys()
    if own & urls:
        given: tuple[str, ...] = ()
    elif own & libpq:
        given = tuple(name for item in (_PASSWORD, *_URLS) if (name := f"{prefix}{item}") in ours)
    else:
        given = tuple(ours)
    if given:
        # First, so that the container's own variables can refer to them as $(DATABASE_URL).
        container["env"] = [
            *(ours[name] for name in given),
            *(item for item in env if item["name"] not in given),
        ]
    return Kept(frozenset(own & (libpq | urls)), given) if len(given) < len(ours) else None


def brought(container: Object, secret_names: Iterable[str]) -> frozenset[str]:
    """The variables that a container gets by envFrom from these consumers' Secrets."""
    known = {*secret_names}
    return frozenset(
        f"{item.get('prefix') or ''}{key}"
        for item in container.get("envFrom") or ()
        if (item.get("secretRef") or {}).get("name") in known
        for key in SECRET_KEYS
    )


def own_names(kept: Iterable[Kept]) -> list[str]:
    """All that a container sets itself, in order."""
    return sorted({name for part in kept for name in part.own})


def warning(container: Object, kept: Collection[Kept], secret_names: Iterable[str]) -> str:
    """For the pod's owner: why the container lacks variables, and what to do about it."""
    given = "only the URLs" if any(part.given for part in kept) else "none"
    names = own_names(kept)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    sources = ", ".join(_unknown_sources(container, secret_names))
    unknown = f"; what {sources} adds by envFrom is not known" if sources else ""
    return (
        f"container {container['name']} sets {', '.join(names[:_NAMED])}{more} itself and so gets {given} of "
        f"the keeper's variables; its own lead past the keeper: remove them to connect through it{unknown}"
    )


def _unknown_sources(container: Object, secret_names: Iterable[str]) -> tuple[str, ...]:
    """The sources of envFrom whose variables are not known, for people."""
    known = {*secret_names}
    return tuple(
        f"{kind} {name}"
        for item in container.get("envFrom") or ()
        for field, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap"))
        if (name := (item.get(field) or {}).get("name")) is not None
        if kind == "ConfigMap" or name not in known
    )


def take_out(container: Object, prefix: str, ours: Mapping[str, Object]) -> None:
    """Undo put() for exactly these values. What it added is there as a whole: a single variable with the value
    of ours may be the container's own."""
    env = container.get("env") or []
    urls = {f"{prefix}{name}" for name in (*_URLS, _PASSWORD)} & ours.keys()
    same = {item["name"] for item in env if item == ours.get(item["name"])}
    added = {name for whole in (urls, ours.keys() - urls) if whole <= same for name in whole}
    if added:
        container["env"] = [item for item in env if item["name"] not in added]
