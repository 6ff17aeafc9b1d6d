"""Reads the budget of a spec, and refuses one that no server could ever fulfil.

This module knows no server: the condition WithinBudget (plan/status/budget.py) reports whether there is room.
The CRD refuses the same values.
"""

from __future__ import annotations

from collections.abc import Iterable

from poolkeeper.spec.fields import FREE, Fields
from poolkeeper.spec.types import Budget, ConsumerRule, Terms
from poolkeeper.spec.values import SpecError

AUTO = "auto"
MOST = 262143
"""The largest max_connections that PostgreSQL accepts."""


def budget(fields: Fields) -> Budget:
    """Read spec.budget; raises SpecError."""
    return Budget(
        max_connections=_max_connections(fields),
        reserve=fields.integer("reserve", 0, 1000, default=5),
        weight=fields.integer("weight", 1, 1000, default=100),
    )


def terms(consumer: Fields) -> Terms:
    """Read the limits and the weight of one item of spec.consumers; raises SpecError."""
    limits = consumer.object("limits")
    made = Terms(
        weight=consumer.integer("weight", 1, 1000, default=100),
        max_connections=_optional(limits, "maxConnections", MOST),
        max_client_connections=_optional(limits, "maxClientConnections", 1_000_000),
        session_connections=limits.integer("sessionConnections", 0, 100, default=2),
    )
    if made.max_connections is not None and made.max_connections < _least(made):
        raise SpecError(
            limits.at("maxConnections"),
            "is less than one pooler pod needs, which is one connection and those of sessionConnections",
            f"raise it to {_least(made)} or more, or lower sessionConnections",
        )
    return made


def check_floors(most: int | None, rules: Iterable[ConsumerRule]) -> None:
    """Refuse a spec.budget.maxConnections that is too small for the named consumers on a single pod. (How many
    consumers a selector finds is not known here.)"""
    least = sum(_least(rule.terms) for rule in rules if rule.namespace is not None)
    if most is not None and most < least:
        raise SpecError(
            "spec.budget.maxConnections",
            f"is less than the {least} connections that spec.consumers need on one pooler pod: one each, and"
            " those of limits.sessionConnections",
            "raise it, lower limits.sessionConnections, or remove consumers",
        )


def _least(item: Terms) -> int:
    """How many connections a consumer needs on each pooler pod."""
    return 1 + item.session_connections


def _max_connections(fields: Fields) -> int | None:
    name = "maxConnections"
    value = fields.values.get(name)
    text = fields.text(name, FREE) if isinstance(value, str) else None
    if value is None or text == AUTO:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
        raise SpecError(
            fields.at(name),
            f"is neither {AUTO} nor a whole number from 1 to {MOST}",
            f"write {AUTO}, or such a number without quotes",
        )
    return value


def _optional(fields: Fields, name: str, maximum: int) -> int | None:
    return fields.integer(name, 1, maximum, default=1) if fields.has(name) else None
