"""The CRD's rules for spec.pooler.parameters, written from the operator's own table so that they cannot differ.

One rule per parameter, in the words of parameters.validate(). What would cost the API server too much to check
(the names in a list of cipher suites, sizes in bytes) is left to the condition SpecValid.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby

from poolkeeper.spec.parameters import (
    FIELD,
    OWNED_REMEDIES,
    PARAMETERS,
    Parameter,
    SpecError,
    lacking,
    newer,
    validate,
)

PARAMETERS_MARK, VERSIONS_MARK = "parameters", "versions"
_CONTROL_CHARACTERS = r"[\\x00-\\x1F\\x7F-\\x{9F}\\x{2028}\\x{2029}]"
# The API server reckons with values of megabytes, times the length of the pattern.
_LONGEST_PATTERN = 100

Rule = dict[str, str]


def rules() -> Iterator[Rule]:
    """The rules on the map of parameters, in the form of x-kubernetes-validations."""
    for _, group in groupby(OWNED_REMEDIES, key=OWNED_REMEDIES.__getitem__):
        names = list(group)
        owned = _texts(names)
        yield {
            "rule": f"!({owned}.exists(k, k in self))",
            "messageExpression": _about(f"{owned}.filter(k, k in self)[0]", _refusal(names[0])),
            "message": f"{FIELD} has a setting that {_refusal(names[0])}",
        }
    known = _texts([*PARAMETERS, *OWNED_REMEDIES])
    yield {
        "rule": f"self.all(k, k in {known})",
        "messageExpression": _about(f"self.filter(k, !(k in {known}))[0]", _refusal("unknown")),
        "message": f"{FIELD} has a name that {_refusal('unknown')}",
    }
    for parameter in PARAMETERS.values():
        yield {
            "rule": f"!('{parameter.name}' in self) || ({_condition(parameter)})",
            "message": f"{FIELD}.{parameter.name}: must be {parameter.expectation}; {parameter.remedy}",
        }


def version_rules() -> Iterator[Rule]:
    """The rules on spec.pooler: which parameters take an image of the user's own."""
    for _, group in groupby(sorted(newer(PARAMETERS), key=_since), key=_since):
        parameters = list(group)
        names = _texts(parameter.name for parameter in parameters)
        refusal = "; ".join(lacking(parameters[0]))
        here = f"{names}.filter(k, k in self.parameters)[0]"
        yield {
            "rule": f"self.?image.orValue('') != '' || !has(self.parameters)"
            f" || !{names}.exists(k, k in self.parameters)",
            "messageExpression": _about(here, refusal),
            "message": f"{FIELD} has a setting that {refusal}",
        }


def render(crd: str) -> str:
    """The CRD's text with the rules between its marks replaced by the current ones."""
    return _between(_between(crd, PARAMETERS_MARK, rules()), VERSIONS_MARK, version_rules())


def _between(crd: str, mark: str, found: Iterable[Rule]) -> str:
    before, begin, rest = crd.partition(f"# BEGIN {mark}\n")
    _, end, after = rest.partition(f"# END {mark}\n")
    indent = before[before.rindex("\n") + 1 :]
    return before + begin + "".join(_yaml(rule, indent) for rule in found) + indent + end + after


def _since(parameter: Parameter) -> tuple[int, int]:
    return parameter.since


def _refusal(name: str) -> str:
    """Problem and remedy that validate() has for a name that cannot be set."""
    try:
        validate(name, 1)
    except SpecError as refusal:
        return f"{refusal.problem}; {refusal.remedy}"
    raise ValueError(f"{name} is a parameter that can be set")


def _about(name: str, refusal: str) -> str:
    literal = refusal.replace("'", "\\'")
    return f"'{FIELD}.' + {name} + ': {literal}'"


def _condition(parameter: Parameter) -> str:
    value = f"self['{parameter.name}']"
    between = f"{value} >= {parameter.minimum} && {value} <= {parameter.maximum}"
    if parameter.kind in ("integer", "switch"):
        return f"type({value}) == int && {between}"
    if parameter.kind == "seconds":
        fraction = f"{value}.matches('^{_cel(parameter.pattern)}$') && double({value}) >= {parameter.minimum}.0"
        return f"type({value}) == int ? {between} : ({fraction} && double({value}) <= {parameter.maximum}.0)"
    text = f"type({value}) == string"
    if parameter.kind == "list" and len(parameter.pattern or "") <= _LONGEST_PATTERN:
        return f"{text} && {value}.matches('^({_cel(parameter.pattern)})$')"
    if parameter.kind == "list":
        return f"{text} && {value}.matches('^[A-Za-z0-9_{parameter.separator}-]+$')"
    return f"{text} && !{value}.matches('{_CONTROL_CHARACTERS}')"


def _cel(pattern: str | None) -> str:
    return (pattern or "").replace("\\", "\\\\")


def _texts(names: Iterable[str]) -> str:
    return "[" + ", ".join(f"'{name}'" for name in names) + "]"


def _yaml(rule: Rule, indent: str) -> str:
    lines = [f'{key}: "{_quoted(text)}"\n' for key, text in rule.items()]
    return f"{indent}- " + f"{indent}  ".join(lines)


def _quoted(text: str) -> str:
    """As it stands between the double quotes of YAML."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
