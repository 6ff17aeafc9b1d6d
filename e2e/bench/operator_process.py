"""The operator as a real process, outside a cluster, and what it costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from e2e.cluster.paths import ROOT
from e2e.cluster.ports import free_port

STOP_SECONDS = 10.0


class OperatorProcess:
    """`python -m poolkeeper` with a kubeconfig; use it as a context manager. Its log goes to a file.

    `environment` holds more variables for it.
    """

    def __init__(self, kubeconfig: Path, log: Path, **environment: str) -> None:
        self._kubeconfig = kubeconfig
        self._more = environment
        self.log = log

    def __enter__(self) -> OperatorProcess:
        environment = {
            **os.environ,
            "KUBECONFIG": str(self._kubeconfig),
            "PYTHONPATH": str(ROOT / "operator"),
            "POOLKEEPER_NAMESPACE": "poolkeeper",
            "POOLKEEPER_POD": "bench",
            "POOLKEEPER_HEALTH_PORT": str(free_port()),
            **self._more,
        }
        command = [sys.executable, "-m", "poolkeeper"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def memory_mb(self) -> float:
        """Resident memory now, in MB of 10^6 bytes."""
        return self._status("VmRSS") * 1024 / 1e6

    def peak_memory_mb(self) -> float:
        """The most resident memory so far, in MB of 10^6 bytes."""
        return self._status("VmHWM") * 1024 / 1e6

    def cpu_seconds(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _status(self, key: str) -> int:
        if self._process.poll() is not None:
            raise RuntimeError(f"the operator ended with {self._process.returncode}; see {self.log}")
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
        raise RuntimeError(f"the kernel does not tell {key}")
