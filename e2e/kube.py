"""kubectl and helm on the cluster that ``make cluster`` left a kubeconfig for, whichever adapter made it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from typing import Any, cast

from e2e.cluster.paths import BIN_DIR, KUBECONFIG
from e2e.cluster.shell import ClusterError, run

Object = dict[str, Any]


def environment() -> dict[str, str]:
    """The environment for kubectl and helm. Raises ClusterError where there is no cluster to talk to."""
    if not KUBECONFIG.exists() or not (BIN_DIR / "kubectl").exists():
        raise ClusterError("there is no cluster; run `make cluster` first")
    return {**os.environ, "KUBECONFIG": str(KUBECONFIG)}


def argv(program: str, *words: str) -> list[str]:
    """The command line of kubectl or helm, for callers that run it themselves (with ``environment``)."""
    return [str(BIN_DIR / program), *words]


def kubectl(*words: str, text_input: str | None = None, timeout: float = 60.0) -> str:
    """Run kubectl to its end and return what it printed. Raises ClusterError with its last words."""
    return run(argv("kubectl", *words), text_input=text_input, env=environment(), timeout=timeout)


def helm(*words: str, timeout: float = 180.0) -> str:
    """Run helm to its end and return what it printed. Raises ClusterError with its last words."""
    return run(argv("helm", *words), env=environment(), timeout=timeout)


def get(kind: str, namespace: str, name: str) -> Object | None:
    """An object, or None if it does not exist."""
    text = kubectl("-n", namespace, "get", kind, name, "--ignore-not-found", "-o", "json")
    return cast(Object, json.loads(text)) if text.strip() else None


def items(kind: str, namespace: str, selector: str = "") -> list[Object]:
    """The objects of a kind in a namespace, in the order of their names."""
    text = kubectl("-n", namespace, "get", kind, "-l", selector, "-o", "json")
    return cast(list[Object], json.loads(text)["items"])


def apply(text: str) -> None:
    """Apply YAML or JSON."""
    kubectl("apply", "-f", "-", text_input=text)


def secret(namespace: str, name: str, values: Mapping[str, str]) -> Object:
    """The body of a Secret."""
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    metadata = {"namespace": namespace, "name": name}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}


def secret_values(body: Object) -> dict[str, str]:
    """A Secret's values in plain text. They are never for printing."""
    return {key: base64.b64decode(value).decode() for key, value in body.get("data", {}).items()}


def with_images(text: str, images: Mapping[str, str]) -> str:
    """YAML with the references of the images that were loaded; ``images`` maps those of the text to them."""
    for plain, reference in images.items():
        text = text.replace(f"image: {plain}\n", f"image: {reference}\n")
    return text
