"""What a benchmark found: figures and their targets, as a table and as .bench/<name>.json."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from e2e.cluster.paths import ROOT

RESULTS = ROOT / ".bench"


@dataclass(frozen=True)
class Figure:
    """One measured value. `target` is the most that is accepted, or the least; None for what is only told."""

    name: str
    value: float
    unit: str
    target: float | None = None
    at_least: bool = False

    @property
    def ok(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed (nearest rank)."""
    if not values:
        raise ValueError("there is no percentile of nothing")
    ordered = sorted(values)
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def table(figures: Sequence[Figure]) -> str:
    """The figures as aligned columns."""
    rows = [("figure", "value", "unit", "target", "")]
    for figure in figures:
        target = "" if figure.target is None else f"{'>=' if figure.at_least else '<='} {figure.target:g}"
        verdict = {None: "", True: "met", False: "MISSED"}[figure.ok]
        rows.append((figure.name, f"{figure.value:.3g}", figure.unit, target, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def document(figures: Sequence[Figure], machine: str, commit: str) -> dict[str, object]:
    """What .bench/<name>.json holds."""
    return {
        "machine": machine,
        "commit": commit,
        "figures": [{**asdict(figure), "ok": figure.ok} for figure in figures],
    }


def write(name: str, figures: Sequence[Figure]) -> Path:
    """Write .bench/<name>.json and say where it is."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document(figures, machine(), commit()), indent=2) + "\n")
    return path


def machine() -> str:
    """Processors, memory and kernel, without the machine's name."""
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in facts if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    return (
        f"{len(models)} x {models[0] if models else platform.machine()}, {memory:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def commit() -> str:
    """The commit that was measured, marked where the files differ from it."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(words, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"
