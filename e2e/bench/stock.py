"""PgBouncer as one sets it up by hand: a Deployment and a Service, and the endings that people give it.

SIGTERM lets PgBouncer wait for its clients, for as long as Kubernetes' usual grace of 30 s. SIGINT lets it wait
for its servers only. Kubernetes sends SIGTERM, so a container beside PgBouncer passes SIGINT on at that moment,
and a preStop hook holds the SIGTERM back.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from e2e import kube
from e2e.bench import by_hand
from e2e.images.catalog import recipe
from e2e.kube import Object, kubectl
from tests.e2e.kit import Place, dsn, images_in_use, restricted_pod, wait_until

REPLICAS = 2
GRACE_SECONDS = 30
_SETTLES_SECONDS = 300.0
_PASS_ON = """
import contextlib, os, pathlib, signal
def end(*_):
    for name in pathlib.Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # a process that has just ended
            if name.read_text().strip() == "pgbouncer":
                os.kill(int(name.parent.name), signal.SIGINT)
    raise SystemExit
signal.signal(signal.SIGTERM, end)
signal.pause()
"""


@dataclass(frozen=True)
class Stock:
    """PgBouncer in front of the place's database. `ending` is SIGTERM or SIGINT; `pool_size` None leaves it at
    PgBouncer's default."""

    place: Place
    ending: str
    replicas: int = REPLICAS
    pool_size: int | None = None
    resources: Object = field(default_factory=dict)
    """Of its pods: who asks for some is scheduled before who doesn't."""

    @property
    def name(self) -> str:
        return f"stock-{self.ending.lower()}"

    def deploy(self) -> None:
        """Start it, wait until it is ready; its clients' Secret lies in the consumer's namespace, and has the
        URL and libpq's variables."""
        password = secrets.token_urlsafe(16)
        host = f"{self.name}.{self.place.data}.svc"
        url = dsn(host, by_hand.LOGIN, password, self.place.database, 6432)
        variables = {
            "PGHOST": host,
            "PGPORT": "6432",
            "PGUSER": by_hand.LOGIN,
            "PGPASSWORD": password,
            "PGDATABASE": self.place.database,
        }
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"namespace": self.place.data, "name": self.name},
            "spec": {"selector": {"app": self.name}, "ports": [{"port": 6432}]},
        }
        bodies = [
            kube.secret(self.place.data, self.name, self._files(password)),
            service,
            self._deployment(),
            kube.secret(self.place.web, self.name, {"DATABASE_URL": url, **variables}),
        ]
        kube.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": bodies}))
        self.settle()

    def roll(self) -> None:
        """Every pod is replaced."""
        kubectl("-n", self.place.data, "rollout", "restart", f"deployment/{self.name}")
        self.settle()

    def scale_up_and_down(self) -> None:
        for replicas in (5, 1, self.replicas):
            kubectl("-n", self.place.data, "scale", f"deployment/{self.name}", f"--replicas={replicas}")
            self.settle(replicas)

    def delete_single_pods(self) -> None:
        for pod in self.pods():
            kubectl("-n", self.place.data, "delete", "pod", pod["metadata"]["name"], "--wait=false")
            self.settle()

    @property
    def events(self) -> dict[str, Callable[[], None]]:
        """Those of the poolers' events that there are here, by the same names."""
        return {
            "rollout": self.roll,
            "scale 2-5-1-2": self.scale_up_and_down,
            "pod deletion": self.delete_single_pods,
        }

    def pods(self) -> list[Object]:
        return kube.items("pods", self.place.data, f"app={self.name}")

    def settle(self, replicas: int | None = None) -> None:
        """Wait until the new pods are ready and the old ones gone."""
        words = ("rollout", "status", f"deployment/{self.name}", f"--timeout={_SETTLES_SECONDS:.0f}s")
        kubectl("-n", self.place.data, *words, timeout=_SETTLES_SECONDS + 10)

        wanted = self.replicas if replicas is None else replicas

        def settled() -> bool:
            return len(self.pods()) == wanted

        wait_until(settled, _SETTLES_SECONDS, f"{wanted} pods of {self.name}")

    def _files(self, password: str) -> dict[str, str]:
        place = self.place
        upstream = (
            f"host={place.server.host} dbname={place.database} user={place.role} password={place.password}"
        )
        return {
            "pgbouncer.ini": by_hand.configuration(
                place.database, upstream, "/etc/pgbouncer", pool_size=self.pool_size
            ),
            "userlist.txt": by_hand.userlist(password),
        }

    def _deployment(self) -> Object:
        pod = restricted_pod(
            images_in_use()["pgbouncer"],
            [],
            readinessProbe={"tcpSocket": {"port": 6432}, "periodSeconds": 1},
            resources=self.resources,
            volumeMounts=[{"name": "files", "mountPath": "/etc/pgbouncer", "readOnly": True}],
        )
        pod["volumes"] = [{"name": "files", "secret": {"secretName": self.name, "defaultMode": 0o440}}]
        pod["terminationGracePeriodSeconds"] = GRACE_SECONDS
        if self.ending == "SIGINT":
            pod["shareProcessNamespace"] = True
            pod["containers"][0]["lifecycle"] = {"preStop": {"sleep": {"seconds": GRACE_SECONDS - 1}}}
            beside = restricted_pod(recipe("operator").reference, ["python", "-c", _PASS_ON])["containers"][0]
            pod["containers"].append({**beside, "name": "signals"})
        labels = {"app": self.name}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"namespace": self.place.data, "name": self.name},
            "spec": {
                "replicas": self.replicas,
                "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }
