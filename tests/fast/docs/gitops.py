"""What GitOps tools compute: defaults, Argo CD's comparison, kstatus; and the page's snippets for them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "gitops.md").read_text()
CRD: Object = yaml.safe_load((ROOT / "crds" / "pooleddatabases.yaml").read_text())
SCHEMA: Object = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


def snippets(language: str) -> list[str]:
    """The page's blocks of code, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def documents() -> list[tuple[str, Object]]:
    """Every YAML document of the page, with the kind that its comment names."""
    found = []
    for snippet in snippets("yaml"):
        for part in snippet.split("---\n"):
            title = re.match(r"# (\w+)", part)
            found.append((title[1] if title else "", yaml.safe_load(part)))
    return found


def document(kind: str, key: str) -> Any:
    """The value of `key` in the spec of the page's only document of this kind that has it."""
    [value] = [
        item["spec"][key] for title, item in documents() if title == kind and key in item.get("spec", {})
    ]
    return value


def defaulted(value: Any, schema: Object) -> Any:
    """What the API server makes of a value by its structural schema.
    https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#defaulting
    """
    if isinstance(value, dict) and "properties" in schema:
        made = dict(value)
        for name, below in schema["properties"].items():
            if name not in made and "default" in below:
                made[name] = copy.deepcopy(below["default"])
            if name in made:
                made[name] = defaulted(made[name], below)
        return made
    if isinstance(value, list) and "items" in schema:
        return [defaulted(item, schema["items"]) for item in value]
    return value


def list_defaults(schema: Object = SCHEMA, path: str = ".spec", inside: bool = False) -> Iterator[str]:
    """Paths, as jq writes them, of the fields with a default that an item of a list may leave out."""
    for name, below in schema.get("properties", {}).items():
        if inside and "default" in below:
            yield f"{path}.{name}"
        yield from list_defaults(below, f"{path}.{name}", inside)
    if isinstance(schema.get("items"), dict):
        yield from list_defaults(schema["items"], f"{path}[]?", True)


def merged(live: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386): maps are merged, lists replaced. Argo CD predicts the live state of a custom
    resource with it, from the manifest and the manifest that was applied last, which are the same here."""
    if not isinstance(patch, dict):
        return patch
    made = dict(live) if isinstance(live, dict) else {}
    for name, value in patch.items():
        made[name] = merged(made.get(name), value)
    return made


_EXPRESSION = re.compile(r"(?P<path>[\w.?\[\]]+) \| select\((?P<tests>\. == .+)\)")


def without(obj: Object, expression: str) -> Object:
    """jq's del(expression), for the expressions of the page: a path, and the values to delete there."""
    match = _EXPRESSION.fullmatch(expression)
    assert match, expression
    values = [json.loads(test.removeprefix(". == ")) for test in match["tests"].split(" or ")]
    made = copy.deepcopy(obj)
    *steps, last = match["path"].removeprefix(".").split(".")
    for holder in _holders(made, steps):
        if any(type(holder.get(last)) is type(value) and holder[last] == value for value in values):
            del holder[last]
    return made


def _holders(value: Any, steps: list[str]) -> Iterator[Object]:
    if not steps:
        yield from [value] if isinstance(value, dict) else []
        return
    name = steps[0].removesuffix("?").removesuffix("[]")
    below = value.get(name) if isinstance(value, dict) else None
    for item in (below or []) if "[]" in steps[0] else [below]:
        yield from _holders(item, steps[1:])


def drift(manifest: Object, live: Object, ignored: list[str]) -> bool:
    """Whether Argo CD's default comparison shows a difference."""
    predicted: Object = merged(live, manifest)
    for expression in ignored:
        predicted, live = without(predicted, expression), without(live, expression)
    return predicted != live


def kstatus(resource: Object) -> str:
    """What Flux makes of a custom resource.
    https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md
    """
    status, metadata = resource.get("status", {}), resource["metadata"]
    if "deletionTimestamp" in metadata:
        return "Terminating"
    if status.get("observedGeneration", metadata["generation"]) != metadata["generation"]:
        return "InProgress"
    for condition in status.get("conditions", ()):
        if (condition["type"], condition["status"]) == ("Reconciling", "True"):
            return "InProgress"
        if (condition["type"], condition["status"]) == ("Stalled", "True"):
            return "Failed"
    ready = [item["status"] for item in status.get("conditions", ()) if item["type"] == "Ready"]
    return "Current" if ready in ([], ["True"]) else "InProgress"
