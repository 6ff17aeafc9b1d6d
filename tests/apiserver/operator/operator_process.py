"""The operator as a process of its own, against a gate to a real API server."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from e2e.cluster.ports import free_port
from tests.apiserver.operator.api_proxy import Gate
from tests.apiserver.operator.nursery import Nursery

ROOT = Path(__file__).resolve().parents[3]
OPERATOR_NAMESPACE = "poolkeeper-system"
_numbers = itertools.count(1)
_LEASE_LOST = "could not be renewed"
"""An operator's last words where nobody answers for seconds."""


class Operator:
    """One replica: forked from the nursery, or without one `python -m poolkeeper`.

    Every start takes another Lease unless `lease` is given: a killed holder delays nobody then. `prefix`: what
    the command line of one without a nursery begins with.
    """

    def __init__(
        self,
        directory: Path,
        nursery: Nursery | None,
        gate: Gate,
        namespaces: Iterable[str] = (),
        *,
        lease: str | None = None,
        log_level: str = "INFO",
        prefix: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        number = next(_numbers)
        self.gate = gate
        self.identity = f"operator-{number}"
        self.log = directory / f"{self.identity}.log"
        kubeconfig = directory / f"{self.identity}.kubeconfig"
        kubeconfig.write_text(json.dumps(_kubeconfig(gate.port)))
        self._lease = lease
        self._prefix = prefix
        self._nursery = nursery
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "operator"),
            "KUBECONFIG": str(kubeconfig),
            "POOLKEEPER_NAMESPACE": OPERATOR_NAMESPACE,
            "POOLKEEPER_POD": self.identity,
            "POOLKEEPER_WATCH_NAMESPACES": ",".join(namespaces),
            "POOLKEEPER_LOG_LEVEL": log_level,
            "POOLKEEPER_KEEPER_ALLOWED_IMAGES": "*",
            **environment,
        }

    def start(self) -> Operator:
        self.gate.reopen()
        self.health_port = free_port()
        own = {
            "POOLKEEPER_LEASE": self._lease or f"lease-{next(_numbers)}",
            "POOLKEEPER_HEALTH_PORT": str(self.health_port),
        }
        if self._nursery is not None:
            self._pid = self._nursery.start(self._environment | own, self.log)
            return self
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "poolkeeper"],
                env=self._environment | own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._pid = self._process.pid
        return self

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._pid, number)

    def kill(self) -> None:
        """SIGKILL, as the kernel or a node would do it."""
        os.kill(self._pid, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for the end; the exit code."""
        if self._nursery is not None:
            return self._nursery.wait(self._pid, 30)
        assert self._process is not None
        return self._process.wait(30)

    def terminate(self) -> int:
        """SIGTERM, as a rollout does it. Answers the exit code."""
        os.kill(self._pid, signal.SIGTERM)
        return self.reap()

    def close(self) -> None:
        if self.running:
            self.kill()
            self.reap()

    @property
    def running(self) -> bool:
        if not self._pid:
            return False
        if self._nursery is not None:
            return self._nursery.code(self._pid) is None
        return self._process is not None and self._process.poll() is None

    @property
    def lost_lease(self) -> bool:
        """It has ended since it could not renew its Lease."""
        return bool(self._pid) and not self.running and _LEASE_LOST in self.said()[-300:]

    @property
    def ever_lost_lease(self) -> bool:
        """It has ended so at some time, and may have been started again."""
        return _LEASE_LOST in self.said()

    def restart_if_lease_lost(self) -> None:
        """What kubelet does."""
        if self.lost_lease:
            self.start()

    def keep_running(self) -> None:
        """Restart it where it lost its Lease; any other end is a fault of the operator's."""
        self.restart_if_lease_lost()
        assert self.running, f"the operator ended: {self.said()[-3000:]}"

    def watches(self, namespace: str) -> bool:
        return namespace in self._environment["POOLKEEPER_WATCH_NAMESPACES"].split(",")

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _kubeconfig(port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "gate", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "operator", "user": {}}],
        "contexts": [{"name": "gate", "context": {"cluster": "gate", "user": "operator"}}],
        "current-context": "gate",
    }
