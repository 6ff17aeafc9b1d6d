"""What was seen of a pooler's data path."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AtLimit:
    """A consumer, `namespace/secretName`, that has as many clients at a pooler as that admits. `limited`: its
    own limits.maxClientConnections is what bounds it."""

    consumer: str
    pod: str
    clients: int
    bound: int
    limited: bool


@dataclass(frozen=True)
class Wedge:
    """A fault of a pooler's data path: its kind (a reason of data_path/findings.py), the pod, the consumer
    (`namespace/secretName`), how many server connections were ended, and what there is to say of it."""

    kind: str
    pod: str
    consumer: str
    number: int = 0
    said: str = ""
