"""How to log in at a process's console, and what consoles showed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ConsoleAccess:
    """How to log in at the console of one process: where it is, the login's password, and the name and
    authority (PEM) of the certificate that it has to show."""

    ip: str
    port: int
    password: str = field(repr=False)
    name: str
    authority: str


@dataclass(frozen=True)
class Shown:
    """What a pod's console showed last: the generation asked for, what differed (empty if nothing), and the
    answer to SHOW VERSION (empty if the console gave none)."""

    generation: str
    restarts: int
    problem: str
    version: str = ""


@dataclass(frozen=True)
class PauseSeen:
    """What a pooler's console showed last of a pause. `held`: every transaction entry is paused and has no
    server connection left, else `waits_for` is one that has. `resumed`: told to resume, it holds nobody back.
    `problem`: why its console could not be asked."""

    held: bool = False
    waits_for: str = ""
    resumed: bool = False
    problem: str = ""
