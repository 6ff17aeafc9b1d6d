"""Typed access to the fields of a request body: every refusal names the field by its full path.

Reads text, numbers, maps and lists out of untyped JSON. Knows nothing about what the fields mean.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from poolkeeper.spec.values import SpecError, forbidden_character

_LABEL_PREFIX = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_LABEL_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"

_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_LONGEST_LABEL = 63

# Every consumer gets the Secret <secretName> and two more, whose names end with these suffixes.
BINDING_SUFFIX = "-binding"
KEEPER_SUFFIX = "-keeper"


@dataclass(frozen=True)
class Text:
    """What one kind of text must look like; sizes are in bytes of UTF-8."""

    pattern: str
    max_bytes: int
    problem: str
    remedy: str

    def check(self, value: str, field: str) -> str:
        refuse_control_characters(value, field)
        if not re.fullmatch(self.pattern, value) or len(value.encode()) > self.max_bytes:
            raise SpecError(field, self.problem, self.remedy)
        return value


@dataclass(frozen=True)
class Host(Text):
    """A DNS name or an IP address that all resolvers read alike: not `127.1`, which some take for 127.0.0.1."""

    def check(self, value: str, field: str) -> str:
        super().check(value, field)
        labels = value.removesuffix(".").split(".")
        if not all(0 < len(label) <= _LONGEST_LABEL for label in labels):
            raise SpecError(
                field,
                f"has a part between dots that is empty, or longer than {_LONGEST_LABEL} characters",
                "correct the name",
            )
        if ":" in value or all(map(_NUMBER.fullmatch, labels)):
            try:
                ipaddress.ip_address(value)
            except ValueError:
                raise SpecError(
                    field,
                    "is not an IP address",
                    "write an IPv4 address as four numbers from 0 to 255 without leading zeros, an IPv6 "
                    "address with two to seven colons",
                ) from None
        return value


FREE = Text(r".*", 4096, "is longer than 4096 bytes", "shorten it")
OBJECT_NAME = Text(
    _LABEL_PREFIX,
    253,
    "is not an object name",
    "use at most 253 lower-case letters, digits, '-' and '.', starting and ending with a letter or digit",
)
NAMESPACE = Text(
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?",
    63,
    "is not a namespace name",
    "use at most 63 lower-case letters, digits and '-', starting and ending with a letter or digit",
)
SECRET_KEY = Text(
    r"[-._a-zA-Z0-9]+", 253, "is not a key of a Secret", "use at most 253 letters, digits, '-', '_' and '.'"
)
LABEL_KEY = Text(
    rf"({_LABEL_PREFIX}/)?{_LABEL_NAME}",
    317,
    "is not a label key",
    "use name or prefix/name, with at most 63 letters, digits, '-', '_' and '.' in the name",
)
LABEL_VALUE = Text(
    rf"({_LABEL_NAME})?",
    63,
    "is not a label value",
    "use at most 63 letters, digits, '-', '_' and '.', starting and ending with a letter or digit",
)
OWN_NAME = Text(
    r"[a-z]([-a-z0-9]*[a-z0-9])?",
    253,
    "cannot begin the name of a Service",
    "use lower-case letters, digits and '-', starting with a letter and ending with a letter or digit",
)
HOST = Host(
    r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*",
    253,
    "is not one DNS name or IP address",
    "write the name or address alone, without scheme, port, brackets, path or a second host",
)
DATABASE = Text(
    r"(?!pgbouncer$)(?!\*$).+",
    63,
    "is not a database name that can be pooled",
    "name the database to pool, in 1 to 63 bytes; 'pgbouncer' is PgBouncer's console and '*' its wildcard",
)
IMAGE = Text(
    r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*",
    512,
    "is not an image reference",
    "write registry/repository:tag or registry/repository@digest, without spaces",
)
SECRET_NAME = Text(
    OBJECT_NAME.pattern,
    253 - len(max(BINDING_SUFFIX, KEEPER_SUFFIX, key=len)),
    "cannot name the Secrets of a consumer",
    "use at most 245 lower-case letters, digits, '-' and '.', starting and ending with a letter or digit",
)


def refuse_nesting(value: object, field: str, most: int) -> None:
    """Refuse maps and lists that are nested more than `most` levels deep in `value`."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for item in level
            for inner in (
                item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ()
            )
        ]
    if level:
        raise SpecError(field, f"is nested more than {most} levels deep", "write it as a pod has it")


def refuse_control_characters(value: object, field: str) -> None:
    """Refuse line ends and other control characters anywhere in `value`, also deep inside maps and lists."""
    if isinstance(value, str) and (found := forbidden_character(value)):
        raise SpecError(field, f"holds the control character {found}", "remove it, and write it on one line")
    if isinstance(value, Mapping):
        for key, item in value.items():
            refuse_control_characters(key, field)
            refuse_control_characters(item, f"{field}.{key}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            refuse_control_characters(item, f"{field}[{index}]")


@dataclass(frozen=True)
class Fields:
    """One object of the body together with the path that leads to it. A null reads as absent, and so does an
    empty text, which is what templates of manifests write for a value that is not set."""

    values: Mapping[str, object]
    path: str

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        return self.values.get(key) not in (None, "")

    def object(self, key: str) -> "Fields":
        """The object under `key`; an empty one if absent."""
        return _fields(self.values.get(key), self.at(key))

    def objects(self, key: str) -> Iterator["Fields"]:
        """The objects of the list under `key`; none if absent."""
        items = self.values.get(key)
        if items is None:
            return
        if not isinstance(items, list):
            raise SpecError(self.at(key), "is not a list", "write a list of objects")
        for index, item in enumerate(items):
            yield _fields(item, f"{self.at(key)}[{index}]")

    def text(self, key: str, kind: Text) -> str | None:
        value = self.values.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise SpecError(self.at(key), "is not text", "write it in quotes")
        return kind.check(value, self.at(key))

    def required(self, key: str, kind: Text) -> str:
        value = self.text(key, kind)
        if value is None:
            raise SpecError(self.at(key), "is missing", "set it")
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str | None:
        value = self.text(key, FREE)
        if value is not None and value not in choices:
            raise SpecError(self.at(key), "is none of the choices", f"use one of {', '.join(choices)}")
        return value

    def choices(self, key: str, choices: tuple[str, ...]) -> tuple[str, ...]:
        """A list of some of the choices; empty if absent."""
        items = self.values.get(key)
        if items is None:
            return ()
        if not isinstance(items, list):
            raise SpecError(self.at(key), "is not a list", "write a list of names")
        paths = {f"{key}[{index}]": item for index, item in enumerate(items)}
        listed = Fields(paths, self.path)
        return tuple(chosen for path in paths if (chosen := listed.choice(path, choices)) is not None)

    def integer(self, key: str, minimum: int, maximum: int, default: int) -> int:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise SpecError(
                self.at(key),
                f"is not a whole number from {minimum} to {maximum}",
                "write such a number without quotes",
            )
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise SpecError(self.at(key), "is not true or false", "write true or false without quotes")
        return value

    def texts(self, key: str, names: Text, values: Text) -> dict[str, str]:
        """A map from text to text; empty if absent."""
        entries = self.object(key)
        return {
            names.check(name, entries.path): values.check(str(value), f"{entries.path}.{name}")
            for name, value in entries.values.items()
        }


def _fields(value: object, path: str) -> Fields:
    if value is None:
        return Fields({}, path)
    if not isinstance(value, Mapping):
        raise SpecError(path, "is not an object", "write it as a map of fields")
    return Fields(value, path)
