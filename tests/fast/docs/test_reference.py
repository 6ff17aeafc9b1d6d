"""docs/reference.md: current, complete, and its generator's --check notices when it is not."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from docs import generate_reference
from poolkeeper.spec.parameters import OPERATOR_OWNED, PARAMETERS

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "docs/generate_reference.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_reference_and_the_crd_are_current() -> None:
    result = run("--check")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_check_notices_a_page_and_a_crd_that_are_not_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    crd, copy, page = tmp_path / "crd.yaml", tmp_path / "copy.yaml", tmp_path / "reference.md"
    crd.write_text(generate_reference.CRD.read_text().replace("from 1 to 10000", "from 1 to 99", 1))
    monkeypatch.setattr(generate_reference, "ROOT", tmp_path)
    monkeypatch.setattr(generate_reference, "CRD", crd)
    monkeypatch.setattr(generate_reference, "CHART_CRD", copy)
    monkeypatch.setattr(generate_reference, "REFERENCE", page)
    before = crd.read_text()

    monkeypatch.setattr(sys, "argv", ["generate_reference.py", "--check"])
    assert generate_reference.main() == 1
    assert "crd.yaml is not current" in capsys.readouterr().out
    assert crd.read_text() == before
    assert not page.exists()

    monkeypatch.setattr(sys, "argv", ["generate_reference.py"])
    assert generate_reference.main() == 0
    assert crd.read_text() == (ROOT / "crds" / "pooleddatabases.yaml").read_text()
    assert copy.read_text() == crd.read_text()
    assert page.read_text() == (ROOT / "docs" / "reference.md").read_text()


def test_every_field_and_every_setting_is_on_the_page() -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    for name in [*PARAMETERS, *OPERATOR_OWNED]:
        assert f"| `{name}` |" in page
    for field in (
        "host",
        "tls.caSecretRef.key",
        "drainSeconds",
        "namespaceSelector.matchLabels",
        "endpoints.port",
    ):
        assert f"| `{field}` |" in page


def test_every_field_of_the_crd_has_a_description_that_is_a_sentence() -> None:
    def fields(schema: dict[str, object], path: str) -> None:
        for name, field in schema.get("properties", {}).items():  # type: ignore[attr-defined]
            if path or name in ("spec", "status"):
                assert str(field.get("description", "")).endswith("."), f"{path}.{name}"
            fields(field, f"{path}.{name}")
            fields(field.get("items", {}), f"{path}.{name}[]")

    crd = yaml.safe_load((ROOT / "crds" / "pooleddatabases.yaml").read_text())
    fields(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "")
