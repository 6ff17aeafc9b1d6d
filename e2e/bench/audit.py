"""What the API server's audit log tells: who wrote what, and when, in the server's own time.

So nothing has to watch while the operator works, which would take the processors away from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Write:
    """One write request. Times are epoch seconds."""

    user: str
    verb: str
    resource: str
    """With its subresource, if any: `pooleddatabases/status`."""
    namespace: str
    name: str
    code: int
    received: float
    answered: float


class AuditLog:
    """Reads the log forward: every call tells what came since the last one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[Write]:
        """The writes since the last call, Lease renewals aside."""
        with self._path.open("rb") as log:
            log.seek(self._offset)
            text = log.read()
        complete = text.rfind(b"\n") + 1
        self._offset += complete
        return [write for write in _parsed(text[:complete]) if write.resource != "leases"]


def _parsed(text: bytes) -> Iterator[Write]:
    for line in text.splitlines():
        yield parse(json.loads(line))


def parse(event: dict[str, Any]) -> Write:
    """One event of the audit log."""
    ref = event.get("objectRef", {})
    subresource = f"/{ref['subresource']}" if ref.get("subresource") else ""
    return Write(
        user=event["user"]["username"],
        verb=event["verb"],
        resource=ref.get("resource", "") + subresource,
        namespace=ref.get("namespace", ""),
        name=ref.get("name", ""),
        code=event.get("responseStatus", {}).get("code", 0),
        received=datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp(),
        answered=datetime.fromisoformat(event["stageTimestamp"]).timestamp(),
    )
