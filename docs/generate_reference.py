"""Write docs/reference.md, the CRD's rules for parameters and the chart's copy of the CRD, or check them.

    python docs/generate_reference.py [--check]

The reference is made of the CRD (fields, types, defaults, rules) and of the operator's own table of parameters,
so nobody has to keep a third place in step with them.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "operator")]

from docs import parameter_rules  # noqa: E402
from poolkeeper.engine.parameter_table import OLDEST  # noqa: E402
from poolkeeper.pgbouncer.ini import DEFAULTS  # noqa: E402
from poolkeeper.spec.parameters import OWNED_REMEDIES, PARAMETERS, Parameter, release  # noqa: E402

CRD = ROOT / "crds" / "pooleddatabases.yaml"
# Helm can only read files inside the chart.
CHART_CRD = ROOT / "charts" / "poolkeeper" / "files" / "crds" / "pooleddatabases.yaml"
REFERENCE = ROOT / "docs" / "reference.md"

# A heading of its own for these objects; everything below them is a row of their table.
SECTIONS = {
    "spec.upstream": "The database",
    "spec.pooler": "The poolers",
    "spec.keeper": "The keepers",
    "spec.budget": "The budget",
    "spec.consumers[]": "The consumers",
    "status": "Status",
}

Schema = Mapping[str, Any]


def main() -> int:
    """Returns the exit code: 1 where --check found a file that is not current."""
    options = argparse.ArgumentParser(description="Write the reference, or check that it is current.")
    options.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a file is not current"
    )
    check = options.parse_args().check
    crd = parameter_rules.render(CRD.read_text())
    stale = [
        path.relative_to(ROOT)
        for path, text in ((CRD, crd), (CHART_CRD, crd), (REFERENCE, reference(yaml.safe_load(crd))))
        if not _current(path, text, write=not check)
    ]
    for path in stale:
        print(f"{path} {'is not current; run: python docs/generate_reference.py' if check else 'written'}")
    return 1 if check and stale else 0


def _current(path: Path, text: str, *, write: bool) -> bool:
    if path.exists() and path.read_text() == text:
        return True
    if write:
        path.write_text(text)
    return False


def reference(crd: Schema) -> str:
    """The whole page."""
    version = crd["spec"]["versions"][0]
    names = crd["spec"]["names"]
    schema = version["schema"]["openAPIV3Schema"]
    parts = [
        f"# {names['kind']} reference\n",
        "<!-- Written by docs/generate_reference.py from the CRD and the table of parameters. -->\n",
        f"{schema['description']}\n",
        f"API: `{crd['spec']['group']}/{version['name']}`, kind `{names['kind']}`, namespaced. With kubectl:"
        f" `{names['plural']}`, short {' or '.join(f'`{name}`' for name in names['shortNames'])}, category"
        f" {', '.join(f'`{name}`' for name in names['categories'])}. `kubectl explain {names['plural']}.spec`"
        " shows the same texts.\n",
    ]
    for path, title in SECTIONS.items():
        parts += _section(path, title, _at(schema, path))
    parts += _parameters()
    return "\n".join(parts)


def _at(schema: Schema, path: str) -> Schema:
    for step in path.split("."):
        schema = schema["properties"][step.removesuffix("[]")]
        if step.endswith("[]"):
            schema = {**schema["items"], "description": schema["description"]}
    return schema


def _section(path: str, title: str, schema: Schema) -> Iterator[str]:
    yield f"## {title}: `{path}`\n"
    yield f"{schema['description']}\n"
    yield "| field | type | default | meaning |\n|---|---|---|---|"
    for name, field in _fields(schema):
        yield f"| `{name}` | {_type(field)} | {_default(field)} | {_cell(field['description'])} |"
    yield ""
    rules = list(dict.fromkeys(_messages(schema)))
    if rules:
        yield "Refused at admission, in these words:\n"
        yield from (f"- {rule}" for rule in rules)
        yield ""


def _fields(schema: Schema, prefix: str = "") -> Iterator[tuple[str, Schema]]:
    for name, field in schema.get("properties", {}).items():
        if field["description"].startswith("Not allowed."):
            continue
        path = f"{prefix}{name}"
        yield path, field
        yield from _fields(field, f"{path}.")
        if "items" in field:
            yield from _fields(field["items"], f"{path}[].")


def _type(field: Schema) -> str:
    if "enum" in field:
        return "one of " + ", ".join(f"`{choice}`" for choice in field["enum"] if choice)
    if "additionalProperties" in field:
        values = field["additionalProperties"]
        return f"map to {_type(values)}"
    if field.get("x-kubernetes-int-or-string"):
        return "whole number or text"
    if "type" not in field:
        return "number or text"
    if field["type"] == "array":
        most = f", at most {field['maxItems']}" if "maxItems" in field else ""
        return f"list of {_type(field['items'])}{most}"
    if field["type"] == "integer":
        bounds = f", {field['minimum']} to {field['maximum']}" if "minimum" in field else ""
        return f"whole number{bounds}"
    return {"string": "text", "object": "object", "boolean": "true or false"}[field["type"]]


def _default(field: Schema) -> str:
    default = field.get("default")
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return "" if default in (None, {}) else f"`{default}`"


def _messages(schema: Schema) -> Iterator[str]:
    """The messages of all rules but those of single parameters, which have a table of their own."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if not rule["message"].startswith("spec.pooler.parameters"):
            yield rule["message"]
    children = [*schema.get("properties", {}).values()]
    children += [schema[key] for key in ("items", "additionalProperties") if key in schema]
    for child in children:
        yield from _messages(child)


def _parameters() -> Iterator[str]:
    yield "## PgBouncer's settings: `spec.pooler.parameters`\n"
    yield (
        "The names are those of PgBouncer's documentation. *reload*: running pods take the new value up within"
        " seconds, without a restart. *new pods*: the pods are replaced one by one, each new one first. A value"
        " that does not fit is refused at admission, or by the condition `SpecValid` if only the operator can"
        " tell."
        " Sizes and limits count per pooler pod. Defaults are the operator's, or else those of PgBouncer"
        f" {release(OLDEST)}, which the operator's own image has. One of a later version takes an image"
        " of your own in `spec.pooler.image`; it reaches the poolers once one of them shows such a version.\n"
    )
    yield "| parameter | value | default | takes effect by | meaning |\n|---|---|---|---|---|"
    for parameter in sorted(PARAMETERS.values(), key=lambda entry: entry.name):
        effect = "new pods" if parameter.restart else "reload"
        yield (
            f"| `{parameter.name}` | {_cell(parameter.expectation)} | {_value(parameter)} | {effect} |"
            f" {_cell(parameter.description)}{_since(parameter)} |"
        )
    yield ""
    yield "These belong to the operator and are refused:\n"
    yield "| setting | what to do instead |\n|---|---|"
    for name, remedy in sorted(OWNED_REMEDIES.items()):
        yield f"| `{name}` | {_cell(remedy)} |"
    yield ""


def _value(parameter: Parameter) -> str:
    default = DEFAULTS.get(parameter.name, parameter.default)
    return f"`{default}`" if default else "empty"


def _since(parameter: Parameter) -> str:
    return f" From PgBouncer {release(parameter.since)} on." if parameter.since > OLDEST else ""


def _cell(text: str) -> str:
    """Text as it stands in a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
