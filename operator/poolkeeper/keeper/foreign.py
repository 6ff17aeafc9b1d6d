"""What keepers run in another namespace than the PooledDatabase's: there the platform decides, not the spec.

A keeper runs in the app's pod, with that pod's network identity, in the quota of its namespace. Within its own
namespace a PooledDatabase may choose its image and resources; elsewhere the chart's values bound both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.settings import Settings
from poolkeeper.spec.parse import PooledDatabase
from poolkeeper.spec.values import quantity


def bounded(
    template: KeeperTemplate, database: PooledDatabase, namespace: str, settings: Settings
) -> KeeperTemplate:
    """The template of the keepers in a namespace, made from the one that the spec asks for."""
    if namespace == database.namespace:
        return template
    return replace(
        template,
        image=template.image if _allowed(template.image, settings) else settings.keeper_image,
        resources=_bounded(template.resources or {}, _most(settings)) or None,
    )


def restrictions(
    template: KeeperTemplate, database: PooledDatabase, namespaces: Iterable[str], settings: Settings
) -> Iterator[tuple[str, str]]:
    """What the spec asks for and keepers in other namespaces don't get, as (reason, message)."""
    others = sorted({namespace for namespace in namespaces if namespace != database.namespace})
    if not others:
        return
    given = bounded(template, database, others[0], settings)
    where = f"in other namespaces than {database.namespace} ({_listed(others)})"
    if given.image != template.image:
        yield (
            "ImageNotAllowed",
            f"keepers {where} run {given.image}: the chart allows spec.keeper.image {template.image} in "
            f"{database.namespace} only; add it to the chart's keeper.allowedImages, or remove "
            "spec.keeper.image",
        )
    if (given.resources or {}) != (template.resources or {}):
        yield (
            "ResourcesBounded",
            f"keepers {where} get less than spec.keeper.resources, at most cpu {settings.keeper_max_cpu} and "
            f"memory {settings.keeper_max_memory} and no other resource; raise the chart's "
            "keeper.maxResources, or lower spec.keeper.resources",
        )


def _allowed(chosen: str, settings: Settings) -> bool:
    """Whether an image is the chart's or in its list, where an item with `*` at its end stands for any end."""
    return chosen == settings.keeper_image or any(
        chosen.startswith(item[:-1]) if item.endswith("*") else chosen == item
        for item in settings.keeper_allowed_images
    )


def _most(settings: Settings) -> Mapping[str, str]:
    return {"cpu": settings.keeper_max_cpu, "memory": settings.keeper_max_memory}


def _bounded(chosen: Mapping[str, Any], most: Mapping[str, str]) -> dict[str, Any]:
    """The chosen amounts, each at most what `most` has of it, and nothing that `most` lacks."""
    kept = {
        kind: {name: _least(amount, most[name]) for name, amount in amounts.items() if name in most}
        for kind, amounts in chosen.items()
    }
    return {kind: amounts for kind, amounts in kept.items() if amounts}


def _least(amount: str, most: str) -> str:
    wanted, limit = quantity(amount), quantity(most)
    return amount if wanted is not None and limit is not None and wanted <= limit else most


def _listed(namespaces: list[str]) -> str:
    more = f" and {len(namespaces) - 1} more" if len(namespaces) > 1 else ""
    return f"{namespaces[0]}{more}"
