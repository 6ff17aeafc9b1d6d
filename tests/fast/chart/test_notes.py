"""What the chart tells after an installation (NOTES.txt), and the scripts that it runs then and at the end."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from poolkeeper import names
from tests.fast.helm_chart import (
    CHART,
    CLUSTER_WIDE,
    CRD_FILE,
    NAMESPACE,
    WATCHING,
    Object,
    environment,
    pods,
    render,
    template,
)


@pytest.mark.parametrize(
    ("mode", "watched"), [(CLUSTER_WIDE, ""), (WATCHING, "data,web")], ids=["cluster-wide", "watching"]
)
def test_pods_carry_their_scripts_unchanged(mode: tuple[str, ...], watched: str) -> None:
    objects = render(*mode)
    _, test, uninstall = pods(objects)
    for pod, file in ((test, "helm_test.py"), (uninstall, "release_finalizers.py")):
        [container] = pod["spec"]["containers"]
        [script] = container["args"]
        assert [line.rstrip() for line in script.splitlines()] == (
            CHART / "files" / file
        ).read_text().splitlines()
        compile(script, file, "exec")
        assert {variable["name"]: variable["value"] for variable in container["env"]} == {
            "POOLKEEPER_NAMESPACE": NAMESPACE,
            "POOLKEEPER_LEASE": environment(objects)["POOLKEEPER_LEASE"],
            "POOLKEEPER_WATCH_NAMESPACES": watched,
        }


def test_scripts_run_with_accounts_of_their_own() -> None:
    accounts = [pod["spec"]["serviceAccountName"] for pod in pods(render())]
    assert accounts == ["poolkeeper", "poolkeeper-test", "poolkeeper-uninstall"]


def notes(tmp_path: Path, *arguments: str) -> str:
    """NOTES.txt, rendered. Only an installation prints it, so a copy of the chart carries it in an object."""
    chart = tmp_path / "chart"
    if not chart.exists():
        shutil.copytree(CHART, chart)
        shutil.copy(chart / "templates" / "NOTES.txt", chart / "notes.txt")
        probe = 'kind: Notes\ntext: {{ tpl (.Files.Get "notes.txt") . | toJson }}\n'
        (chart / "templates" / "notes-probe.yaml").write_text(probe)
    result = template("--show-only", "templates/notes-probe.yaml", *arguments, chart=chart)
    assert result.returncode == 0, result.stderr
    text = yaml.safe_load(result.stdout)["text"]
    assert isinstance(text, str)
    return text


def pasted(text: str) -> Object:
    """The manifest between the lines that a shell takes as a here document."""
    found = re.search(r"^  kubectl apply -f - <<'EOF'\n(.*?)^EOF$", text, flags=re.DOTALL | re.MULTILINE)
    assert found is not None, text
    document = yaml.safe_load(found[1])
    assert isinstance(document, dict)
    return document


def strict(schema: Any) -> Any:
    """A structural schema as JSON schema that refuses what the API server would prune."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        closed["type"] = ["integer", "string"]
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def complaints(manifest: Object, tmp_path: Path) -> str:
    """What the CRD's schema has against a manifest, which helm validates as values of a chart with it."""
    crd = yaml.safe_load(CRD_FILE.read_text())
    [version] = crd["spec"]["versions"]
    judge = tmp_path / "judge"
    judge.mkdir(exist_ok=True)
    (judge / "Chart.yaml").write_text("apiVersion: v2\nname: judge\nversion: 0.0.1\n")
    (judge / "values.schema.json").write_text(json.dumps(strict(version["schema"]["openAPIV3Schema"])))
    (judge / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return template("--values", str(judge / "manifest.yaml"), chart=judge).stderr


@pytest.mark.parametrize(
    ("arguments", "namespace", "consumer"),
    [
        (CLUSTER_WIDE, "data", "web"),
        (WATCHING, "data", "web"),
        (("--set", "watchNamespaces={data}"), "data", "data"),
        ((*WATCHING, "--set", "namespaceSelectors=false"), "data", "data"),
    ],
    ids=["cluster-wide", "watchNamespaces", "one namespace", "no selectors"],
)
def test_notes_hold_a_valid_pooleddatabase_for_the_mode(
    tmp_path: Path, arguments: tuple[str, ...], namespace: str, consumer: str
) -> None:
    text = notes(tmp_path, *arguments)
    manifest = pasted(text)
    assert complaints(manifest, tmp_path) == ""
    assert manifest["apiVersion"] == f"{names.GROUP}/{names.VERSION}"
    assert manifest["metadata"]["namespace"] == namespace
    assert [rule["namespace"] for rule in manifest["spec"]["consumers"]] == [consumer]
    consent = f"kubectl annotate namespace {consumer} {names.ACCEPT_FROM_ANNOTATION}={namespace}"
    assert (consent in text) == (namespace != consumer)
    assert not re.search(r"  kubectl[^\n]* (-n|namespace)  ", text), "a namespace is missing in a command"


def test_a_manifest_with_a_typo_would_be_noticed(tmp_path: Path) -> None:
    manifest = pasted(notes(tmp_path))
    unknown = copy.deepcopy(manifest)
    unknown["spec"]["upstream"]["hostname"] = "postgres.example.com"
    assert "hostname" in complaints(unknown, tmp_path)
    mistyped = copy.deepcopy(manifest)
    mistyped["spec"]["pooler"]["mode"] = "transactions"
    assert "mode" in complaints(mistyped, tmp_path)
