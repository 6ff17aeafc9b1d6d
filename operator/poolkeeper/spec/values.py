"""Checks on single values, shared by the API, the upstream target and the writers.

Knows which characters and quantities are acceptable and how a refusal reads. Knows no field and no file.
"""

import re
from decimal import Decimal

# C0 controls, DEL and C1 controls (U+0085 is among them), and the two Unicode line separators. PgBouncer's
# files are line based without any escape for a line end, so a value with one could add settings of its own.
FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_QUANTITY = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<suffix>[KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,3})?"
)
_BINARY = {f"{letter}i": Decimal(1024) ** (power + 1) for power, letter in enumerate("KMGTPE")}
_DECIMAL = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
}


class SpecError(Exception):
    """A field of a PooledDatabase that cannot be used: which one, what is wrong, and what to write instead.

    The same words become the message of the condition SpecValid.
    """

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.field = field
        self.problem = problem
        self.remedy = remedy


def forbidden_character(value: str) -> str | None:
    """Name the first character of `value` that no configuration value may hold ("U+000A"), or None."""
    found = FORBIDDEN.search(value)
    return f"U+{ord(found.group()):04X}" if found else None


def quantity(value: str) -> Decimal | None:
    """Read a non-negative Kubernetes resource quantity ("250m", "64Mi", "2"); None for any other text.

    https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
    """
    match = _QUANTITY.fullmatch(value)
    if match is None:
        return None
    number, suffix = Decimal(match["number"]), match["suffix"] or ""
    if suffix[:1] in {"e", "E"} and len(suffix) > 1 and suffix != "Ei":
        return number.scaleb(int(suffix[1:]))
    return number * (_BINARY | _DECIMAL).get(suffix, Decimal(1))
