"""What the consoles of poolers and keepers last showed, and how moves and renewals of connections ended.

A pooler is named by the UID of its pod, a keeper by AppPod.process().
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from poolkeeper.observed.consoles import PauseSeen, Shown
from poolkeeper.observed.poolers import Moved, Renewed


class Processes:
    """The memory of each process, until its pod is gone."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[Shown, float]] = {}
        """With the monotonic time."""
        self.paused: dict[str, PauseSeen] = {}
        """Of poolers, during a pause."""
        self.moved: dict[str, Moved] = {}
        """Of poolers whose connections were moved to where the upstream is."""
        self.renewed: dict[str, Renewed] = {}
        """Of poolers that have renewed their server connections."""

    def show(self, process: str, shown: Shown) -> None:
        """Take in what a console showed."""
        self._shown[process] = (shown, time.monotonic())

    def unshow(self, process: str) -> None:
        """Forget what a console showed: it has to be polled again."""
        self._shown.pop(process, None)

    def unshow_all(self) -> None:
        """Forget what consoles showed, so that every process is polled again."""
        self._shown.clear()

    def unshow_problem(self, process: str, seconds: float) -> None:
        """Forget a problem that a console showed at least this long ago."""
        shown, at = self._shown.get(process, (None, 0.0))
        if shown is not None and shown.problem and time.monotonic() - at >= seconds:
            del self._shown[process]

    def shown(self, processes: Iterable[str]) -> dict[str, Shown]:
        """What the consoles of these processes last showed, as far as they did."""
        return {process: self._shown[process][0] for process in processes if process in self._shown}

    def drop(self, process: str) -> None:
        """Forget a process whose pod is gone."""
        for memory in (self._shown, self.paused, self.moved, self.renewed):
            memory.pop(process, None)
