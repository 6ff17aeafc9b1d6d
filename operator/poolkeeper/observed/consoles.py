"""Access to the consoles of processes, and what the consoles showed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ConsoleAccess:
    """Access to the console of one process: its address, the login's password, and the name and authority (PEM)
    of the certificate that it has to show."""

    ip: str
    port: int
    password: str = field(repr=False)
    name: str
    authority: str


@dataclass(frozen=True)
class Shown:
    """What the console of a pooler or keeper last showed: the generation asked for, how often the container had
    restarted, what differed (empty if nothing), and the answer to SHOW VERSION (empty if there was none)."""

    generation: str
    restarts: int
    problem: str
    version: str = ""


@dataclass(frozen=True)
class PauseSeen:
    """What a pooler's console last showed of a pause. `held`: every transaction entry is paused and has no
    server connection left; otherwise `waits_for` is an entry for which that isn't so. `resumed`: after a resume
    the pooler holds no client back. `problem`: why its console could not be asked."""

    held: bool = False
    waits_for: str = ""
    resumed: bool = False
    problem: str = ""
