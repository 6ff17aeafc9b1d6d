"""What spec.pooler.parameters accepts: a typed allow-list of PgBouncer's settings.

If its file has one bad value, PgBouncer does not start, and a RELOAD falls back to defaults half-way. So only
settings whose name, kind and range are in the table reach the file. Settings that belong to the operator, and
those that the operator's own image lacks, are refused by name with what to use instead.
"""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from poolkeeper.engine.parameter_table import OLDEST, OWNED_BECAUSE, TABLE, Parameter
from poolkeeper.spec.values import SpecError, forbidden_character

__all__ = [
    "OPERATOR_OWNED",
    "OWNED_REMEDIES",
    "PARAMETERS",
    "Parameter",
    "SpecError",
    "lacking",
    "newer",
    "refuse_newer",
    "release",
    "validate",
]

FIELD = "spec.pooler.parameters"

PARAMETERS: Mapping[str, Parameter] = MappingProxyType({parameter.name: parameter for parameter in TABLE})

OWNED_REMEDIES: Mapping[str, str] = MappingProxyType(
    {name: remedy for remedy, names in OWNED_BECAUSE.items() for name in names}
)
OPERATOR_OWNED = frozenset(OWNED_REMEDIES)


def validate(name: str, value: object) -> str:
    """The text for `value` in PgBouncer's file and in `SHOW CONFIG`; raises SpecError."""
    field = f"{FIELD}.{name}"
    if name in OWNED_REMEDIES:
        raise SpecError(field, "belongs to the operator", OWNED_REMEDIES[name])
    parameter = PARAMETERS.get(name)
    if parameter is None:
        raise SpecError(
            field,
            "is not a parameter of PgBouncer that can be set",
            "use a name from the reference of parameters, without section or %include",
        )
    if isinstance(value, str) and (found := forbidden_character(value)):
        raise SpecError(field, f"holds the control character {found}", "remove it, and write it on one line")
    text = _canonical(parameter, value)
    if text is None:
        raise SpecError(field, f"must be {parameter.expectation}", parameter.remedy)
    return text


def newer(names: Iterable[str]) -> tuple[Parameter, ...]:
    """The named parameters that the oldest PgBouncer, and so the operator's own image, lacks."""
    return tuple(PARAMETERS[name] for name in names if PARAMETERS[name].since > OLDEST)


def refuse_newer(names: Iterable[str]) -> None:
    """Raise SpecError for a parameter that the operator's own image lacks."""
    for parameter in newer(names):
        raise SpecError(f"{FIELD}.{parameter.name}", *lacking(parameter))


def lacking(parameter: Parameter) -> tuple[str, str]:
    """Problem and remedy for a parameter that is newer than the operator's own image."""
    return (
        f"needs PgBouncer {release(parameter.since)}, and the operator's own image has {release(OLDEST)}",
        "remove it, or set spec.pooler.image to an image that has it",
    )


def release(since: tuple[int, int]) -> str:
    """A release as text, such as "1.25"."""
    return f"{since[0]}.{since[1]}"


def _canonical(parameter: Parameter, value: object) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        numeric = parameter.kind in ("integer", "seconds", "switch")
        return str(value) if numeric and parameter.minimum <= value <= parameter.maximum else None
    if not isinstance(value, str):
        return None
    if parameter.kind == "text":
        # PgBouncer strips blanks around a value, and what it shows is compared with this text.
        return value.strip(" ") if len(value.encode()) <= parameter.maximum else None
    if (
        parameter.pattern is None
        or len(value) > parameter.maximum
        or not re.fullmatch(parameter.pattern, value)
    ):
        return None
    if parameter.kind == "seconds":
        return _fraction(value) if parameter.minimum <= float(value) <= parameter.maximum else None
    return value


def _fraction(value: str) -> str:
    """Drop meaningless zeros, as PgBouncer does in what it shows: "01.50" is 1.5, "2.0" is 2."""
    whole, _, decimals = value.partition(".")
    decimals = decimals.rstrip("0")
    return str(int(whole)) + (f".{decimals}" if decimals else "")
