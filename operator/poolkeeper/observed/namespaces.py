"""Namespaces, as consent and the budget need them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EQUAL = 100
"""The weight of a namespace whose annotation says nothing."""


@dataclass(frozen=True)
class Namespace:
    """A namespace; `accept_from` is the annotation's text, empty if absent."""

    labels: Mapping[str, str]
    accept_from: str
    terminating: bool
    budget_weight: int = EQUAL
    """Its weight among the namespaces on a server."""
