"""Renders the Helm chart with the real helm, and finds things in what comes out."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster import binaries

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "poolkeeper"
CRD_FILE = ROOT / "crds" / "pooleddatabases.yaml"
NAMESPACE = "poolkeeper-system"
KUBE_VERSION = "1.34.0"
"""What `helm template` is told to render for; without a cluster it would assume an ancient one."""

CLUSTER_WIDE: tuple[str, ...] = ()
WATCHING = ("--set", "watchNamespaces={data,web}")
BOTH_MODES = pytest.mark.parametrize("mode", [CLUSTER_WIDE, WATCHING], ids=["cluster-wide", "watching"])

Object = dict[str, Any]


@functools.cache
def helm_program() -> str:
    """The pinned helm of the cluster's tools. A missing one fails: an unrendered chart is an untested one."""
    program = binaries.location("helm")
    if not program.exists():
        pytest.fail(f"helm is missing at {program}; `make cluster` builds it once", pytrace=False)
    return str(program)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm_program(), *arguments], capture_output=True, text=True, timeout=60, check=False)


def template(
    *arguments: str, chart: Path = CHART, kube_version: str = KUBE_VERSION
) -> subprocess.CompletedProcess[str]:
    release = ("poolkeeper", str(chart), "--namespace", NAMESPACE, "--kube-version", kube_version)
    return helm("template", *release, *arguments)


@functools.cache
def _rendered(arguments: tuple[str, ...]) -> str:
    result = template(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def render(*arguments: str) -> list[Object]:
    return [document for document in yaml.safe_load_all(_rendered(arguments)) if document]


def refusal(*arguments: str) -> str:
    result = template(*arguments)
    assert result.returncode != 0, f"accepted: {arguments}"
    return result.stderr


def select(objects: list[Object], kind: str) -> list[Object]:
    return [obj for obj in objects if obj["kind"] == kind]


def only(objects: list[Object], kind: str) -> Object:
    [found] = select(objects, kind)
    return found


def hook(obj: Object) -> str:
    """At what event helm creates the object; empty if it is there from the installation on."""
    return str(obj["metadata"].get("annotations", {}).get("helm.sh/hook", ""))


def installed(objects: list[Object]) -> list[Object]:
    return [obj for obj in objects if not hook(obj)]


def pods(objects: list[Object]) -> list[Object]:
    """The pods of the operator, of `helm test` and of the uninstallation."""
    operator, uninstall = only(objects, "Deployment"), only(objects, "Job")
    return [operator["spec"]["template"], only(objects, "Pod"), uninstall["spec"]["template"]]


def environment(objects: list[Object]) -> dict[str, str]:
    """The operator's variables; those of the downward API as the path they come from."""
    [container] = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    found: dict[str, str] = {}
    for variable in container["env"]:
        assert variable["name"] not in found
        value = variable.get("value")
        found[variable["name"]] = variable["valueFrom"]["fieldRef"]["fieldPath"] if value is None else value
    return found


def rights(role: Object) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                limited = f"[{','.join(rule['resourceNames'])}]" if "resourceNames" in rule else ""
                key = f"{group}/{resource}{limited}"
                assert key not in found, f"{key} is granted twice in {role['metadata']['name']}"
                found[key] = frozenset(rule["verbs"])
    return found
