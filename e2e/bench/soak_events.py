"""What happens to the poolers during the soak: edits of the PooledDatabase and pods that are deleted, each in a
rhythm of its own, so that they meet in every combination."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kubernetes import client, config

from e2e.cluster.paths import KUBECONFIG
from e2e.cluster.shell import say
from tests.e2e.kit import POOLER_PODS, Place

DRAIN_SECONDS = 20
BUDGETS = (10, 18)
REPLICAS = (3, 2)
PAUSE_SECONDS = 2.0
_PAUSED_WITHIN = 15.0
PARAMETERS: tuple[dict[str, int | None], ...] = (
    {"query_wait_timeout": 90, "stats_period": 30},
    {"max_prepared_statements": 150, "server_idle_timeout": 300},
    {"server_round_robin": 1, "tcp_keepidle": 60},
    {"query_wait_timeout": None, "max_prepared_statements": None, "server_round_robin": None},
)
"""Settings that reach running poolers by a reload; None is the default again."""


@dataclass
class Events:
    """The acts by name, and how many seconds pass from one to the next. `done` counts
    them, `log` has the beginning of each in epoch seconds."""

    place: Place
    done: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    log: list[tuple[float, str]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._client = client.ApiClient(config.new_client_from_config(str(KUBECONFIG)).configuration)
        parameters, budgets, replicas = map(itertools.cycle, (PARAMETERS, BUDGETS, REPLICAS))
        counter = itertools.count()
        self.acts: dict[str, tuple[float, Callable[[], None]]] = {
            "reload": (9.0, lambda: self._spec({"pooler": {"parameters": next(parameters)}})),
            "caps": (13.0, lambda: self._spec({"budget": {"maxConnections": next(budgets)}})),
            "renewal": (31.0, lambda: self._annotate("poolkeeper.io/reconnect", str(next(counter)))),
            "pause": (43.0, self._pause),
            "scale": (53.0, lambda: self._spec({"pooler": {"replicas": next(replicas)}})),
            "pod deletion": (71.0, self._delete_pod),
            "rollout": (
                97.0,
                lambda: self._spec({"pooler": {"podAnnotations": {"example.com/rolled": f"{next(counter)}"}}}),
            ),
        }

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """All of them during the block. At its end the spec is at rest again, and nothing is paused."""
        threads = [threading.Thread(target=self._repeat, args=(name,)) for name in self.acts]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
            self._spec({"paused": False, "pooler": {"replicas": REPLICAS[-1]}})

    def _repeat(self, name: str) -> None:
        period, act = self.acts[name]
        while not self._over.wait(period):
            self.log.append((time.time(), name))
            try:
                act()
                self.done[name] += 1
            except Exception as error:  # the others go on; the bench tells of it in the end
                self.errors.append(f"{name}: {error}")

    def _spec(self, change: dict[str, Any]) -> None:
        self._patch({"spec": change})

    def _annotate(self, name: str, value: str) -> None:
        self._patch({"metadata": {"annotations": {name: value}}})

    def _patch(self, change: dict[str, Any]) -> None:
        resources = client.CustomObjectsApi(self._client)
        where = ("poolkeeper.io", "v1alpha1", self.place.data, "pooleddatabases", "shop")
        resources.patch_namespaced_custom_object(*where, change)

    def _pause(self) -> None:
        """Transactions wait for 2 s, once they do everywhere."""
        self._spec({"paused": True})
        end = time.monotonic() + _PAUSED_WITHIN
        while self.place.condition("Paused").get("reason") != "Paused":
            if time.monotonic() > end or self._over.wait(0.3):
                break
        else:
            self._over.wait(PAUSE_SECONDS)
            self.done["in force everywhere: pause"] += 1
        self._spec({"paused": False})

    def _delete_pod(self) -> None:
        core = client.CoreV1Api(self._client)
        pods = core.list_namespaced_pod(self.place.data, label_selector=POOLER_PODS).items
        ready = [pod for pod in pods if pod.metadata.deletion_timestamp is None]
        oldest = min(ready, key=lambda pod: pod.metadata.creation_timestamp)
        core.delete_namespaced_pod(oldest.metadata.name, self.place.data)


@dataclass
class Pods:
    """The pods of some namespaces, watched: which there were, and which containers of PgBouncer ended badly."""

    namespaces: tuple[str, ...]
    poolers: set[str] = field(default_factory=set)
    crashes: dict[tuple[str, str, int], str] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        core = client.CoreV1Api(config.new_client_from_config(str(KUBECONFIG)))
        while not self._over.wait(0.5):
            for namespace in self.namespaces:
                try:
                    pods = core.list_namespaced_pod(namespace).items
                except client.ApiException as error:
                    say(f"pods of {namespace} can't be read: {error.reason}")
                    continue
                for pod in pods:
                    self._look(pod)

    def _look(self, pod: Any) -> None:
        if (pod.metadata.labels or {}).get("poolkeeper.io/role") == "pooler":
            self.poolers.add(pod.metadata.uid)
        statuses = [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]
        for status in statuses:
            if status.name not in ("pgbouncer", "keeper"):
                continue
            for state in (status.state, status.last_state):
                ended = state and state.terminated
                if ended and ended.exit_code != 0:
                    text = f"{pod.metadata.name} {status.name} ended with {ended.exit_code} ({ended.reason})"
                    self.crashes.setdefault((pod.metadata.uid, status.name, status.restart_count), text)
