"""Draws two runs of the same load over time: the connections of the server, and what became of the requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

_COLOURS = {"without Poolkeeper": "#c0392b", "with it": "#1f77b4"}


class Sample(NamedTuple):
    """So many connections, `seconds` after the load began."""

    seconds: float
    connections: int


class Progress(NamedTuple):
    """So many requests answered and failed until `seconds` after the load began."""

    seconds: float
    answered: int
    failed: int


class Curves(NamedTuple):
    """What is drawn of one run."""

    samples: Sequence[Sample]
    progress: Sequence[Progress]


def draw(direct: Curves, pooled: Curves, limit: int, path: Path) -> None:
    """Both runs and the server's limit, one picture; the file's suffix says in which format."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    connections, requests = figure.subplots(2, 1, sharex=True)
    for (name, colour), run in zip(_COLOURS.items(), (direct, pooled), strict=True):
        connections.plot(*zip(*run.samples, strict=True), color=colour, label=name)
        seconds, answered, failed = zip(*run.progress, strict=True)
        requests.plot(seconds, answered, color=colour, label=f"answered {name}")
        requests.plot(seconds, failed, color=colour, linestyle=":", label=f"failed {name}")
    connections.axhline(limit, color="black", linestyle="--", linewidth=1, label=f"max_connections = {limit}")
    connections.set(ylabel="connections of the server", ylim=(0, limit * 1.05))
    requests.set(
        ylabel="requests so far", xlabel="seconds since the load began", xlim=(0, None), ylim=(0, None)
    )
    for axes in (connections, requests):
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # beside the curves, so that it covers none
    # No time and no random names in the file: the same samples make the same file.
    with rc_context({"svg.hashsalt": "poolkeeper"}):
        figure.savefig(path, metadata={"Date": None})
