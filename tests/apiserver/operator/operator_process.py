"""The operator as a process of its own, against a gate to a real API server."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.apiserver.operator.api_proxy import Gate

ROOT = Path(__file__).resolve().parents[3]
OPERATOR_NAMESPACE = "poolkeeper-system"
_numbers = itertools.count(1)


class Operator:
    """One replica. Every start takes another Lease unless `lease` is given: a killed holder delays nobody then."""

    def __init__(
        self,
        directory: Path,
        gate: Gate,
        namespaces: Iterable[str] = (),
        *,
        lease: str | None = None,
        log_level: str = "INFO",
        **environment: str,
    ) -> None:
        number = next(_numbers)
        self.gate = gate
        self.identity = f"operator-{number}"
        self.log = directory / f"{self.identity}.log"
        kubeconfig = directory / f"{self.identity}.kubeconfig"
        kubeconfig.write_text(json.dumps(_kubeconfig(gate.port)))
        self._lease = lease
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "operator"),
            "KUBECONFIG": str(kubeconfig),
            "POOLKEEPER_NAMESPACE": OPERATOR_NAMESPACE,
            "POOLKEEPER_POD": self.identity,
            "POOLKEEPER_WATCH_NAMESPACES": ",".join(namespaces),
            "POOLKEEPER_LOG_LEVEL": log_level,
            **environment,
        }

    def start(self) -> Operator:
        self.gate.reopen()
        own = {
            "POOLKEEPER_LEASE": self._lease or f"lease-{next(_numbers)}",
            "POOLKEEPER_HEALTH_PORT": str(_free_port()),
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "poolkeeper"],
                env=self._environment | own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def kill(self) -> None:
        """SIGKILL, as the kernel or a node would do it."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)

    def reap(self) -> None:
        assert self._process is not None
        self._process.wait(30)

    def terminate(self) -> int:
        """SIGTERM, as a rollout does it. Answers the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(30)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(30)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def _kubeconfig(port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "gate", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "operator", "user": {}}],
        "contexts": [{"name": "gate", "context": {"cluster": "gate", "user": "operator"}}],
        "current-context": "gate",
    }


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
