"""``python -m e2e.demo``: PostgreSQL, an app, one PooledDatabase, what it gives. Needs ``make install``."""

from __future__ import annotations

import json
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from e2e import kube
from e2e.cluster.paths import KUBECONFIG, ROOT
from e2e.cluster.shell import ClusterError, say
from e2e.demo.consoles import Console, Row, consoles, pooler_pods, setting, show
from e2e.images.catalog import recipe
from e2e.kube import kubectl

MANIFESTS = Path(__file__).parent / "manifests"
DATA, WEB, NAME = "data", "web", "shop"
PARAMETER = "default_pool_size"
_APP = f"/api/v1/namespaces/{WEB}/services/app:http/proxy/"
_PATIENCE_SECONDS = 60.0
_ANSWERS = 5


def main() -> int:
    """Run the demo. Returns the exit code; errors become one sentence."""
    try:
        start_database()
        start_app()
        with consoles(DATA, NAME) as found:
            show_answers(found)
            change_parameter(found)
    except (ClusterError, psycopg.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(_NEXT)
    return 0


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
    deadline = time.monotonic() + _PATIENCE_SECONDS
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


def show_answers(found: dict[str, Console]) -> None:
    """The app's answers beside the poolers' own tables; the backend that answered is a pooler's."""
    print("\nWhat the app gets (GET /), an ordinary node-postgres Pool on DATABASE_URL:\n")
    answers = [ask_app() for _ in range(_ANSWERS)]
    print(table(answers, ["now", "pid", "user", "application_name"]))
    print("\nWhat the poolers show (SHOW POOLS on each):\n")
    rows = [
        {"pod": pod, **row}
        for pod, console in found.items()
        for row in show(console, "POOLS")
        if row["database"] != "pgbouncer"
    ]
    print(table(rows, ["pod", "database", "user", "cl_active", "sv_active", "sv_idle", "pool_mode"]))
    backends = {row["remote_pid"] for console in found.values() for row in show(console, "SERVERS")}
    strangers = {answer["pid"] for answer in answers} - backends
    if strangers:
        raise ClusterError(f"backends {sorted(strangers)} answered the app and are no pooler's")
    print("\nEvery backend (pid) that answered is a pooler's (SHOW SERVERS).\n")


def change_parameter(found: dict[str, Console]) -> None:
    """A live change: when every pooler's console shows it, and that nothing was restarted for it."""
    before = _identities()
    old = setting(next(iter(found.values())), PARAMETER)
    new = "30" if old != "30" else "25"
    patch = json.dumps({"spec": {"pooler": {"parameters": {PARAMETER: int(new)}}}})
    began = time.monotonic()
    kubectl("-n", DATA, "patch", "pooldb", NAME, "--type=merge", "-p", patch)
    for pod, console in found.items():
        while setting(console, PARAMETER) != new:
            if time.monotonic() - began > _PATIENCE_SECONDS:
                raise ClusterError(f"pod {pod} does not show {PARAMETER} = {new}")
            time.sleep(0.02)
    took = time.monotonic() - began
    if _identities() != before:
        raise ClusterError(f"pooler pods changed with {PARAMETER}: {before} became {_identities()}")
    ask_app()
    say(f"{PARAMETER} {old} -> {new}: on every console of {len(found)} poolers after {took:.2f} s, no restart:")
    pods = [{"pod": name, "uid": uid, "restarts": restarts} for name, uid, restarts in before]
    print("\n" + table(pods, ["pod", "uid", "restarts"]))


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


def _identities() -> list[tuple[str, str, int]]:
    """Name, UID and restarts of every pooler pod."""
    return [
        (
            pod["metadata"]["name"],
            pod["metadata"]["uid"],
            sum(status["restartCount"] for status in pod["status"].get("containerStatuses", [])),
        )
        for pod in pooler_pods(DATA, NAME)
    ]


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


_SHOWN_KUBECONFIG = KUBECONFIG.relative_to(ROOT)
_NEXT = f"""
The cluster stays up. Try:

  export KUBECONFIG=$PWD/{_SHOWN_KUBECONFIG} PATH=$PWD/{_SHOWN_KUBECONFIG.parent}/bin:$PATH
  kubectl -n data get pooldb,pods                          # the condition and the poolers
  kubectl -n data scale pooldb/shop --replicas=3           # more poolers
  kubectl -n data patch pooldb shop --type=merge \\
    -p '{{"spec":{{"pooler":{{"parameters":{{"pool_size":20}}}}}}}}'  # refused, with the right name
  kubectl annotate namespace web poolkeeper.io/accept-from-    # consent withdrawn: Secret and login go
  kubectl annotate namespace web poolkeeper.io/accept-from=data
  kubectl -n data delete deployment shop-pooler            # it comes back by itself
  kubectl explain pooleddatabase.spec.pooler

and `make cluster-down` when you are done.
"""


if __name__ == "__main__":
    sys.exit(main())
