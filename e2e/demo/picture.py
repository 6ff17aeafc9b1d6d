"""Draws a server's connections over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure


class Sample(NamedTuple):
    """So many connections, `seconds` after the load began."""

    seconds: float
    connections: int


def draw(direct: Sequence[Sample], pooled: Sequence[Sample], limit: int, path: Path) -> None:
    """Both runs and the server's limit, one picture; the file's suffix says in which format."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for samples, name, colour in ((direct, "without Poolkeeper", "#c0392b"), (pooled, "with it", "#1f77b4")):
        axes.plot(
            [item.seconds for item in samples], [item.connections for item in samples], colour, label=name
        )
    axes.axhline(limit, color="black", linestyle="--", linewidth=1, label=f"max_connections = {limit}")
    axes.set(xlabel="seconds", ylabel="connections of the server", ylim=(0, limit * 1.15), xlim=(0, None))
    axes.legend(loc="center")
    # No time in the file: the same samples make the same file.
    figure.savefig(path, metadata={"Date": None})
