"""The consoles of a PooledDatabase's poolers, reached through kubectl port-forward from wherever this runs."""

from __future__ import annotations

import contextlib
import json
import re
import select
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.rows import dict_row

from e2e.cluster.shell import ClusterError
from e2e.kube import argv, environment, get, items, secret_values

Row = dict[str, Any]
Console = psycopg.Connection[Row]

_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")
_FORWARD_SECONDS = 15.0


@contextlib.contextmanager
def consoles(namespace: str, name: str) -> Iterator[dict[str, Console]]:
    """A console connection to every pooler pod of PooledDatabase ``namespace/name``, by the pod's name."""
    password = _password(namespace, f"{name}-pooler-logins")
    with contextlib.ExitStack() as stack:
        found: dict[str, Console] = {}
        for pod in pooler_pods(namespace, name):
            port = stack.enter_context(forwarded(namespace, pod["metadata"]["name"], 6432))
            connection = psycopg.connect(
                host="127.0.0.1",
                port=port,
                dbname="pgbouncer",
                user="poolkeeper",
                password=password,
                sslmode="disable",
                autocommit=True,
                # The console knows the simple protocol only.
                cursor_factory=psycopg.ClientCursor,
                row_factory=dict_row,
            )
            found[pod["metadata"]["name"]] = stack.enter_context(contextlib.closing(connection))
        yield found


def pooler_pods(namespace: str, name: str) -> list[Row]:
    """The pooler pods that are to stay, as Kubernetes has them."""
    pods = items("pods", namespace, f"poolkeeper.io/owner={name},poolkeeper.io/role=pooler")
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def show(console: Console, table: str) -> list[Row]:
    """A table of the console, such as POOLS."""
    return console.execute(f"SHOW {table}".encode()).fetchall()


def setting(console: Console, name: str) -> str:
    """One setting as SHOW CONFIG has it."""
    return next(str(row["value"]) for row in show(console, "CONFIG") if row["key"] == name)


def _password(namespace: str, secret_name: str) -> str:
    logins = get("secret", namespace, secret_name)
    if logins is None:
        raise ClusterError(f"Secret {namespace}/{secret_name} does not exist; is the operator running?")
    return str(json.loads(secret_values(logins)["console"])["password"])


@contextlib.contextmanager
def forwarded(namespace: str, pod: str, port: int) -> Iterator[int]:
    """A local port that leads to a port of the pod."""
    words = argv("kubectl", "-n", namespace, "port-forward", f"pod/{pod}", f":{port}", "--address=127.0.0.1")
    with subprocess.Popen(
        words, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            yield _port(process, pod)
        finally:
            process.kill()


def _port(process: subprocess.Popen[bytes], pod: str) -> int:
    assert process.stdout is not None
    assert process.stderr is not None
    deadline = time.monotonic() + _FORWARD_SECONDS
    if select.select([process.stdout], [], [], deadline - time.monotonic())[0]:
        found = _FORWARDING.search(process.stdout.readline().decode())
        if found:
            return int(found[1])
        raise ClusterError(
            f"kubectl port-forward to pod {pod} failed: {process.stderr.read().decode().strip()}"
        )
    raise ClusterError(f"kubectl port-forward to pod {pod} did not start within {_FORWARD_SECONDS:.0f} s")
