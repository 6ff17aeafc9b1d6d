"""Namespaces, as consent needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Namespace:
    """A namespace as consent needs it; `accept_from` is the annotation's text, empty if absent."""

    labels: Mapping[str, str]
    accept_from: str
    terminating: bool
