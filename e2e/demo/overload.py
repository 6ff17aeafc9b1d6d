"""``python -m e2e.demo.overload``: an app that was scaled too far, without Poolkeeper and with it.

Forty copies of an app, each with a pool of 10, ask a PostgreSQL with max_connections = 100: straight, then with
the DATABASE_URL that Poolkeeper gives. Needs ``make install``. Draws the connections that the server had, and
what became of the requests.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from e2e import kube
from e2e.cluster.paths import ROOT
from e2e.cluster.shell import ClusterError, say
from e2e.demo.consoles import forwarded
from e2e.demo.picture import Curves, Progress, Sample, draw
from e2e.demo.shop import DATA, MANIFESTS, NAME, WEB, start_app, start_database, table
from e2e.images.catalog import recipe
from e2e.kube import kubectl

PICTURE = ROOT / ".bench" / "overload.svg"
DIRECT, POOLED = (DATA, "overload-direct"), (WEB, "overload-pooled")
SAMPLE_SECONDS = 0.05
LIMIT_SECONDS = 120.0
_COUNT = (
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


@dataclass(frozen=True)
class Run:
    """What one run of the forty came to, with the connections that the server had meanwhile."""

    answered: int
    failed: int
    errors: dict[str, int]
    curves: Curves

    @property
    def most(self) -> int:
        """The most connections at one time."""
        return max(sample.connections for sample in self.curves.samples)


def main(seconds: int = 20) -> int:
    """Both runs, what they came to, and the picture. Returns the exit code; errors become one sentence."""
    try:
        start_database()
        with _server() as server:
            limit = int(_value(server, "SHOW max_connections"))
            say(f"40 copies of an app, 10 connections each, straight to PostgreSQL (max_connections {limit})")
            direct = overload(*DIRECT, seconds, server)
            say(f"{direct.answered} requests answered, {direct.failed} failed")
            start_app()
            _wait_for_share(limit * 4 // 5)
            say("the same 40 copies with the DATABASE_URL from Poolkeeper")
            pooled = overload(*POOLED, seconds, server)
            say(f"{pooled.answered} requests answered, {pooled.failed} failed")
    except (ClusterError, psycopg.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    report(direct, pooled, limit, PICTURE)
    if pooled.failed or not limit // 4 < pooled.most < limit or not direct.failed:
        print("error: this is not how it should have gone", file=sys.stderr)
        return 1
    return 0


def overload(namespace: str, pod: str, seconds: int, server: psycopg.Connection[Any]) -> Run:
    """Run one of the two pods to its end. Raises ClusterError where it fails or takes too long."""
    manifests = (MANIFESTS / "50-overload.yaml").read_text().split("\n---\n")
    text = next(part for part in manifests if f"name: {pod}\n" in part).replace('"20"', f'"{seconds}"')
    _remove(namespace, pod)
    kube.apply(kube.with_images(text, {"poolkeeper/demo-app:1": recipe("demo-app").reference}))
    deadline = time.monotonic() + LIMIT_SECONDS
    with _sampling(server) as counted:
        while not (lines := _lines(namespace, pod)):
            _check(time.monotonic() < deadline, f"pod {namespace}/{pod} did not start; see kubectl describe")
            time.sleep(1)
        while lines[-1]["state"] != "done":
            _check(time.monotonic() < deadline, f"pod {namespace}/{pod} did not end; see its log")
            time.sleep(1)
            lines = _lines(namespace, pod)
    _remove(namespace, pod)
    first, last = lines[0], lines[-1]
    return Run(last["answered"], last["failed"], last["errors"], curves(lines, counted, first["at"] / 1000))


def curves(lines: Iterable[dict[str, Any]], counted: Iterable[tuple[float, int]], began: float) -> Curves:
    """A run over time, from what its pod printed and the counts by time of day; `began`: when its load did."""
    samples = [Sample(at - began, connections) for at, connections in counted if at >= began]
    progress = [Progress(line["ms"] / 1000, line["answered"], line["failed"]) for line in lines if "ms" in line]
    return Curves(samples, [Progress(0, 0, 0), *progress])


def report(direct: Run, pooled: Run, limit: int, picture: Path) -> None:
    """A table of both, and the picture."""
    rows = [
        {
            "": name,
            "most connections": run.most,
            "answered": run.answered,
            "failed": run.failed,
            "most frequent error": max(run.errors, key=lambda text: run.errors[text], default="none"),
        }
        for name, run in (("straight to PostgreSQL", direct), ("through Poolkeeper", pooled))
    ]
    print("\n" + table(rows, list(rows[0])))
    picture.parent.mkdir(exist_ok=True)
    draw(direct.curves, pooled.curves, limit, picture)
    print(f"\nConnections and requests over time: {picture.relative_to(ROOT)}")


def _wait_for_share(connections: int) -> None:
    """Poolers that were there already leave what others held to others for a minute more."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while (share := _share()) < connections:
        _check(time.monotonic() < deadline, f"the share of {DATA}/{NAME} is {share}; see its status.budget")
        time.sleep(1)
    say(f"the share of the poolers is {share} connections")


def _share() -> int:
    found = kube.get("pooldb", DATA, NAME) or {}
    return int(found.get("status", {}).get("budget", {}).get("share", 0))


@contextlib.contextmanager
def _server() -> Iterator[psycopg.Connection[Any]]:
    """A connection of the owner's, made before the server is full."""
    owner = kube.get("secret", DATA, "shop-owner")
    _check(owner is not None, f"Secret {DATA}/shop-owner does not exist; run `make demo` once more")
    values = kube.secret_values(owner or {})
    with (
        forwarded(DATA, "pg-0", 5432) as port,
        psycopg.connect(
            host="127.0.0.1",
            port=port,
            dbname=NAME,
            user=values["username"],
            password=values["password"],
            sslmode="disable",
            autocommit=True,
        ) as connection,
    ):
        yield connection


@contextlib.contextmanager
def _sampling(server: psycopg.Connection[Any]) -> Iterator[list[tuple[float, int]]]:
    """Counts the server's client connections until the block ends, each count with the time of day."""
    counted: list[tuple[float, int]] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_SECONDS):
            counted.append((time.time(), int(_value(server, _COUNT))))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield counted
    finally:
        over.set()
        thread.join()


def _lines(namespace: str, pod: str) -> list[dict[str, Any]]:
    """What the pod has printed; nothing while it does not run yet. Raises ClusterError when it has failed."""
    found = kube.get("pod", namespace, pod) or {}
    phase = found.get("status", {}).get("phase")
    if phase == "Pending":
        return []
    text = kubectl("-n", namespace, "logs", pod)
    _check(phase != "Failed", f"pod {namespace}/{pod} failed: {text[-500:]}")
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def _remove(namespace: str, pod: str) -> None:
    kubectl("-n", namespace, "delete", "pod", pod, "--ignore-not-found", "--grace-period=1")


def _value(server: psycopg.Connection[Any], query: str) -> Any:
    row = server.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ClusterError(message)


if __name__ == "__main__":
    sys.exit(main())
