"""``python -m e2e.demo``: PostgreSQL, an app, one PooledDatabase, what it gives. Needs ``make install``."""

from __future__ import annotations

import json
import sys
import time

import psycopg

from e2e.cluster.paths import KUBECONFIG, ROOT
from e2e.cluster.shell import ClusterError, say
from e2e.demo.consoles import Console, consoles, pooler_pods, setting, show
from e2e.demo.shop import DATA, NAME, PATIENCE_SECONDS, ask_app, start_app, start_database, table
from e2e.kube import kubectl

PARAMETER = "query_wait_timeout"
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
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise ClusterError(f"pod {pod} does not show {PARAMETER} = {new}")
            time.sleep(0.02)
    took = time.monotonic() - began
    if _identities() != before:
        raise ClusterError(f"pooler pods changed with {PARAMETER}: {before} became {_identities()}")
    ask_app()
    say(f"{PARAMETER} {old} -> {new}: on every console of {len(found)} poolers after {took:.2f} s, no restart:")
    pods = [{"pod": name, "uid": uid, "restarts": restarts} for name, uid, restarts in before]
    print("\n" + table(pods, ["pod", "uid", "restarts"]))


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
  make demo-overload                                       # 400 connections wanted, 100 there are

and `make cluster-down` when you are done.
"""


if __name__ == "__main__":
    sys.exit(main())
