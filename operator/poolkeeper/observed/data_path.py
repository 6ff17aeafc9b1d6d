"""Observations of a pooler's data path."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AtLimit:
    """A consumer, `namespace/secretName`, that has as many clients at a pooler as the pooler admits. `limited`:
    the bound is the consumer's own limits.maxClientConnections."""

    consumer: str
    pod: str
    clients: int
    bound: int
    limited: bool


@dataclass(frozen=True)
class Wedge:
    """A fault of a pooler's data path: its kind (a reason of data_path/findings.py), the pod, the consumer
    (`namespace/secretName`, else an entry or empty), how many server connections were ended, and a
    description."""

    kind: str
    pod: str
    consumer: str
    number: int = 0
    said: str = ""
