"""Injection of keepers into an app pod: a pod and its databases' templates in, the pod with keepers out.

Pure: webhook/review.py fetches the templates and answers the API server. No password is held here or gets into
the pod: the keeper's Secret is mounted, or referred to, by name.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from poolkeeper.keeper import container as keeper_container
from poolkeeper.keeper import resolution
from poolkeeper.keeper import variables as keeper_variables
from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.keeper.variables import Kept
from poolkeeper.names import DATABASE_LABEL, DATABASES_ANNOTATION, GROUP, KEEPER_PORT, POOLER_PORT, keeper_name
from poolkeeper.pgbouncer import keeper_configuration
from poolkeeper.spec.fields import SECRET_NAME
from poolkeeper.spec.values import SpecError

Object = dict[str, Any]

KEEPER_PORT_ANNOTATION = f"{GROUP}/keeper-port"
"""On an app pod, by its owner: the port of the (first) keeper, if its own port is taken."""
KEPT_ANNOTATION = f"{GROUP}/kept-variables"
"""On an app pod: variables that containers set themselves and so kept (`web: DATABASE_URL; worker: PGHOST`)."""
CONTAINER = "keeper"

_MOST_DATABASES = 16
"""Maximum number of keepers in a pod. The Secret of each is read while the pod's creation waits."""
_MIRROR_ANNOTATION = "kubernetes.io/config.mirror"
_LOWEST_PORT = 1024
"""The lowest port for a keeper: a process without capabilities can't count on those below."""
# Loopback and the poolers' own TLS need no mesh, and a mesh's proxy would answer in their place.
_MESH_INBOUND = ("traffic.sidecar.istio.io/excludeInboundPorts", "config.linkerd.io/skip-inbound-ports")
_MESH_OUTBOUND = ("traffic.sidecar.istio.io/excludeOutboundPorts", "config.linkerd.io/skip-outbound-ports")


class Refusal(Exception):
    """The pod can't have its keepers; the text names the problem and the remedy."""


@dataclass(frozen=True)
class Injection:
    """The pod with its keepers, and warnings for its owner."""

    pod: Object
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class InjectedKeeper:
    """A keeper as a pod has it: its container, its consumer's Secret, its image, what it demands of the app
    (Trust or Scram), and its port."""

    container: str
    secret_name: str
    image: str
    auth: str
    port: int


def databases(pod: Mapping[str, Any]) -> tuple[str, ...]:
    """The consumers' Secrets whose databases the pod asks keepers for, the label's first; none without it.

    Raises Refusal if label and annotation are invalid.
    """
    label = _metadata(pod, "labels").get(DATABASE_LABEL)
    if label is None:
        return ()
    written = _metadata(pod, "annotations").get(DATABASES_ANNOTATION, label)
    named = [item.strip() for item in written.split(",")]
    for name in (label, *named):
        try:
            SECRET_NAME.check(name, "")
        except SpecError:
            raise Refusal(
                f"{name!r} (label {DATABASE_LABEL} or annotation {DATABASES_ANNOTATION}) cannot name the "
                "Secret of a database; write a consumer's secretName, several with commas in the annotation"
            ) from None
    if label not in named:
        raise Refusal(
            f"annotation {DATABASES_ANNOTATION} ({written}) lacks {label}, which label {DATABASE_LABEL} names; "
            "list every database in the annotation, the label's too"
        )
    if len(named) > _MOST_DATABASES:
        raise Refusal(
            f"annotation {DATABASES_ANNOTATION} names {len(named)} databases; name at most {_MOST_DATABASES}"
        )
    if len(set(named)) < len(named):
        raise Refusal(f"annotation {DATABASES_ANNOTATION} ({written}) names a database twice; name each once")
    return (label, *(name for name in named if name != label))


def inject(
    pod: Mapping[str, Any], templates: Mapping[str, KeeperTemplate], nameservers: Collection[str] = ()
) -> Injection:
    """The pod with a keeper for each of databases(pod), whose templates are all in `templates`. `nameservers`
    are the cluster's.

    A pod that has them already stays as it is, unless the templates have changed. Raises Refusal.
    """
    wanted = databases(pod)
    _check_pod(pod)
    if found := resolution.obstacle(pod["spec"], nameservers):
        raise Refusal(f"the pod {found}")
    new: Object = copy.deepcopy(dict(pod))
    spec, annotations = new["spec"], new["metadata"].setdefault("annotations", {})
    try:
        prefixes = keeper_variables.prefixes(wanted)
    except ValueError as error:
        raise Refusal(str(error)) from None
    keepers = dict(zip(_container_names(len(wanted)), wanted, strict=True))
    _check_names(spec, keepers)
    apps = [item for item in _containers(spec) if item["name"] not in keepers]
    for before in injected(pod):
        if keepers.get(before.container) == before.secret_name:
            template = replace(templates[before.secret_name], auth=before.auth)
            old = keeper_variables.variables(
                prefixes[before.secret_name], before.port, template, before.secret_name
            )
            for container in apps:
                keeper_variables.take_out(container, prefixes[before.secret_name], old)
    ports = dict(zip(keepers, _ports(apps, annotations, len(keepers)), strict=True))
    kept: dict[str, list[Kept]] = {}
    for name, secret_name in reversed(keepers.items()):
        ours = keeper_variables.variables(
            prefixes[secret_name], ports[name], templates[secret_name], secret_name
        )
        for container in apps:
            brought = keeper_variables.brought(container, set(wanted) - {secret_name})
            own = keeper_variables.put(container, prefixes[secret_name], ours, brought)
            if own is not None:
                kept.setdefault(container["name"], []).append(own)
        annotations[keeper_container.listen_annotation(name)] = keeper_container.listen(ports[name])
    sidecars = [keeper_container.container(name, ports[name], templates[keepers[name]]) for name in keepers]
    volumes = [keeper_container.volume(name, secret_name) for name, secret_name in keepers.items()]
    new_ones, others = _overlaid(sidecars, spec.get("initContainers") or [])
    spec["initContainers"] = [*new_ones, *others]
    new_ones, others = _overlaid(volumes, spec.get("volumes") or [])
    spec["volumes"] = [*others, *new_ones]
    pulled = keeper_container.missing_pull_secrets(spec, [templates[secret_name] for secret_name in wanted])
    if pulled:
        spec["imagePullSecrets"] = [*(spec.get("imagePullSecrets") or []), *pulled]
    _exclude_from_meshes(annotations, ports.values())
    annotations.pop(KEPT_ANNOTATION, None)
    if kept:
        annotations[KEPT_ANNOTATION] = "; ".join(
            f"{container}: {', '.join(keeper_variables.own_names(parts))}"
            for container, parts in sorted(kept.items())
        )
    return Injection(
        new,
        tuple(
            keeper_variables.warning(item, kept[item["name"]], wanted) for item in apps if item["name"] in kept
        ),
    )


def injected(pod: Mapping[str, Any]) -> tuple[InjectedKeeper, ...]:
    """The keepers that a pod has, in the order of its containers."""
    secrets = {
        volume["name"]: secret_name
        for volume in pod["spec"].get("volumes") or ()
        if (secret_name := _keeper_secret(volume)) is not None
    }
    return tuple(
        InjectedKeeper(
            container["name"],
            secrets[container["name"]],
            container["image"],
            keeper_configuration.auth_of(container.get("command") or ()),
            ports[0]["containerPort"],
        )
        for container in pod["spec"].get("initContainers") or ()
        if container["name"] in secrets
        and container.get("restartPolicy") == "Always"
        and (ports := container.get("ports"))
    )


def _check_pod(pod: Mapping[str, Any]) -> None:
    if pod["spec"].get("hostNetwork"):
        raise Refusal(
            "a pod with hostNetwork can have no keeper, since loopback is the node's there and a keeper trusts "
            f"every client on it; take the label {DATABASE_LABEL} off and use DATABASE_URL from the "
            "consumer's Secret, or do without hostNetwork"
        )
    if _MIRROR_ANNOTATION in _metadata(pod, "annotations"):
        raise Refusal(
            "a static pod can have no keeper, since nothing can be added to it; "
            f"take the label {DATABASE_LABEL} off"
        )


def _container_names(count: int) -> list[str]:
    return [CONTAINER, *(f"{CONTAINER}-{number}" for number in range(2, count + 1))][:count]


def _check_names(spec: Object, keepers: Mapping[str, str]) -> None:
    """Raise Refusal for containers and volumes with keepers' names that no injection has made."""
    ours = {volume["name"] for volume in spec.get("volumes") or () if _keeper_secret(volume)}
    for field, what in (("containers", "container"), ("volumes", "volume"), ("initContainers", "container")):
        for item in spec.get(field) or ():
            sidecar = field == "initContainers" and item.get("restartPolicy") == "Always"
            made = item["name"] in ours and (sidecar or field == "volumes")
            if item["name"] in keepers and not made:
                raise Refusal(
                    f"the pod has a {what} {item['name']!r} of its own, and a keeper is to be called that; "
                    f"give the pod's {what} another name"
                )


def _overlaid(
    wanted: list[Object], present: list[Object], by: str = "name"
) -> tuple[list[Object], list[Object]]:
    """(the new items of `wanted`, `present` with the rest of `wanted` updated in place).

    Whatever else was added to them meanwhile stays: the limits of a LimitRange, a mesh's files.
    """
    fresh = {item[by]: item for item in wanted}
    updated = [_overlay(item, fresh.pop(item[by], {})) for item in present]
    return [item for item in wanted if item[by] in fresh], updated


def _overlay(present: Any, wanted: Any, field: str = "") -> Any:
    """`present` with all that `wanted` says; in lists, items with names are matched by name, mounts by path."""
    by = "mountPath" if field == "volumeMounts" else "name"
    if field == "resources":
        return present
    if isinstance(present, dict) and isinstance(wanted, dict):
        met = {key: _overlay(present[key], wanted[key], key) for key in wanted.keys() & present.keys()}
        return {**present, **wanted, **met}
    if isinstance(present, list) and present and all(isinstance(item, dict) and by in item for item in present):
        new_ones, others = _overlaid(wanted, present, by)
        return [*others, *new_ones]
    return wanted


def _keeper_secret(volume: Mapping[str, Any]) -> str | None:
    """The consumer's Secret whose keeper has this volume; None for any other volume."""
    sources = (volume.get("projected") or {}).get("sources") or [{}]
    mounted: str = (sources[0].get("secret") or {}).get("name", "")
    suffix = keeper_name("")
    return mounted.removesuffix(suffix) if mounted.endswith(suffix) and len(sources) == 2 else None


def _ports(apps: list[Object], annotations: Mapping[str, str], count: int) -> Iterator[int]:
    """A port for each keeper: the first from the annotation, otherwise its own; then the next free ones."""
    taken = {
        port["containerPort"]: container["name"]
        for container in apps
        for port in container.get("ports") or ()
        if port.get("protocol", "TCP") == "TCP"
    }
    port = _first_port(annotations.get(KEEPER_PORT_ANNOTATION))
    if port in taken:
        raise Refusal(
            f"container {taken[port]!r} has port {port}, which the keeper is to listen on; give the keeper "
            f"another one by annotation, such as {KEEPER_PORT_ANNOTATION}: "
            f'"{next(free for free in range(KEEPER_PORT + 1, 65536) if free not in taken)}"'
        )
    for _ in range(count):
        while port in taken:
            port += 1
        if port > 65535:
            raise Refusal(f"no port is left for a keeper; lower the one in annotation {KEEPER_PORT_ANNOTATION}")
        yield port
        port += 1


def _first_port(written: str | None) -> int:
    if written is None:
        return KEEPER_PORT
    if not re.fullmatch(r"[0-9]{1,5}", written) or not _LOWEST_PORT <= int(written) <= 65535:
        raise Refusal(
            f"annotation {KEEPER_PORT_ANNOTATION} is {written!r}; "
            f"write a port number from {_LOWEST_PORT} to 65535"
        )
    return int(written)


def _containers(spec: Object) -> list[Object]:
    return [*(spec.get("initContainers") or ()), *spec["containers"]]


def _exclude_from_meshes(annotations: dict[str, str], ports: Any) -> None:
    for keys, wanted in ((_MESH_INBOUND, [*ports]), (_MESH_OUTBOUND, [POOLER_PORT])):
        for key in keys:
            present = [item for item in annotations.get(key, "").split(",") if item]
            missing = [str(port) for port in wanted if str(port) not in present]
            annotations[key] = ",".join([*present, *missing])


def _metadata(pod: Mapping[str, Any], field: str) -> Mapping[str, str]:
    found: Mapping[str, str] = (pod.get("metadata") or {}).get(field) or {}
    return found
