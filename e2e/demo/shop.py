"""The demo's database, PooledDatabase and app: brought up, and asked."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

from e2e import kube
from e2e.cluster.shell import ClusterError, say
from e2e.demo.consoles import Row
from e2e.images.catalog import recipe
from e2e.kube import kubectl

MANIFESTS = Path(__file__).parent / "manifests"
DATA, WEB, NAME = "data", "web", "shop"
PATIENCE_SECONDS = 60.0
_APP = f"/api/v1/namespaces/{WEB}/services/app:http/proxy/"


def start_database() -> None:
    """PostgreSQL with a password that is made here and shown to nobody."""
    apply("10-namespaces.yaml")
    if kube.get("secret", DATA, "shop-owner") is None:
        owner = {"username": NAME, "password": secrets.token_urlsafe(24)}
        kube.apply(json.dumps(kube.secret(DATA, "shop-owner", owner)))
    apply("20-postgres.yaml")
    kubectl("-n", DATA, "rollout", "status", "statefulset/pg", "--timeout=120s", timeout=130)
    say("PostgreSQL 17 is ready: pg.data.svc")


def start_app() -> None:
    """The PooledDatabase and the app at the same time, as a deployment pipeline would."""
    began = time.monotonic()
    apply("30-pooled-database.yaml", "40-app.yaml")
    say("applied PooledDatabase data/shop and the app in namespace web")
    try:
        kubectl("-n", DATA, "wait", "--for=condition=Ready", f"pooldb/{NAME}", "--timeout=60s", timeout=70)
    except ClusterError as error:
        raise ClusterError(f"{error}\n{kubectl('-n', DATA, 'get', 'pooldb', NAME)}") from None
    say(f"Ready, {time.monotonic() - began:.1f} s after the apply")
    _restart_outdated_app()
    first_answer()
    say(f"the app answers through the pooler, {time.monotonic() - began:.1f} s after the apply")


def first_answer() -> Row:
    """The app's first answer with something from the database in it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask_app()
        except ClusterError as error:
            if time.monotonic() > deadline:
                raise ClusterError(f"the app does not answer: {error}") from None
            time.sleep(0.1)


def ask_app() -> Row:
    """What the app answers: who it is to the database. Raises ClusterError for an answer of 503."""
    answer: dict[str, Any] = json.loads(kubectl("get", "--raw", _APP, timeout=15))
    return answer


def apply(*names: str) -> None:
    """Apply some of the manifests, with the images that were loaded."""
    images = {
        "poolkeeper/postgres:17": recipe("postgres").reference,
        "poolkeeper/demo-app:1": recipe("demo-app").reference,
    }
    for name in names:
        kube.apply(kube.with_images((MANIFESTS / name).read_text(), images))


def table(rows: list[Row], columns: list[str]) -> str:
    """Rows as aligned text."""
    cells = [columns, *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _restart_outdated_app() -> None:
    """A pod keeps the environment it started with: one that is older than its Secret is replaced."""
    secret = kube.get("secret", WEB, "database")
    if secret is None:
        raise ClusterError("the PooledDatabase is Ready and Secret web/database does not exist")
    made = secret["metadata"]["creationTimestamp"]
    started = [pod["status"].get("startTime", made) for pod in kube.items("pods", WEB, "app=app")]
    if min(started, default=made) < made and _fails():
        say("the app started with an earlier Secret; restarting it")
        kubectl("-n", WEB, "rollout", "restart", "deployment/app")
        kubectl("-n", WEB, "rollout", "status", "deployment/app", "--timeout=60s", timeout=70)


def _fails() -> bool:
    try:
        ask_app()
    except ClusterError:
        return True
    return False
