"""Real clients in pods of their own, at work while something happens to the poolers, and what that cost them.

A fleet is one Deployment for each load program. They differ in how the programs get their DATABASE_URL: from a
keeper, by the label alone, or from a Secret and without a keeper.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from kubernetes import client, config

from e2e import kube
from e2e.cluster.paths import KUBECONFIG
from e2e.images.catalog import recipe
from e2e.kube import Object, kubectl
from tests.e2e.clients.programs import PROGRAMS, TABLE
from tests.e2e.kit import Place, identifier, restricted_pod, wait_until

LABEL = "poolkeeper.io/database"
SECRET = "database"
FLEET = "fleet"  # label of a fleet's pods, with the fleet's name
PROGRAM = "program"
PORT = 8080
CONNECTIONS = 5
_START_SECONDS = 120.0
_ALIVE_SECONDS = 45.0  # longer than a program waits for an answer
_ALIVE_TRANSACTIONS = 20
_LEAST_SHARE = 0.2
"""Of the transactions that a program is asked for, so many it must commit while the event goes on."""


@dataclass(frozen=True)
class Tally:
    """What programs counted, one by name or several together. `errors` are counts by class and first text."""

    committed: int = 0
    failed: int = 0
    uncaught: int = 0
    longest_seconds: float = 0.0
    errors: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.committed + other.committed,
            self.failed + other.failed,
            self.uncaught + other.uncaught,
            max(self.longest_seconds, other.longest_seconds),
            {**self.errors, **other.errors},
        )


@dataclass
class Outcome:
    """What an event did to a fleet: tallies by program, and how long the event itself took, in seconds."""

    event: str
    seconds: float = 0.0
    programs: dict[str, Tally] = field(default_factory=dict)
    during: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> Tally:
        return sum(self.programs.values(), Tally())

    def __str__(self) -> str:
        total = self.total
        lines = [
            f"{self.event}, {self.seconds:.1f} s: {total.failed} failed and {total.uncaught} uncaught of "
            f"{total.committed + total.failed}, the longest took {total.longest_seconds:.2f} s"
        ]
        for name, tally in self.programs.items():
            lines.append(
                f"  {name}: {tally.failed} failed, {tally.uncaught} uncaught, {tally.committed} committed"
            )
            lines += [f"    {text}" for text in tally.errors.values()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Fleet:
    """The load programs in one namespace, each with `rate` transactions per second."""

    namespace: str
    name: str
    rate: int
    programs: Mapping[str, list[str]] = field(default_factory=lambda: PROGRAMS)
    keeper: bool = True  # whether the pods carry the label for the keeper of SECRET, and nothing else
    secret: str | None = None  # without a keeper: the Secret with DATABASE_URL
    env: Mapping[str, str] = field(default_factory=dict)

    def deploy(self) -> None:
        """Start the programs, wait until each of them commits."""
        bodies = [self._deployment(program) for program in self.programs]
        kube.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": bodies}))
        for program in self.programs:
            kubectl(
                *("-n", self.namespace, "rollout", "status", f"deployment/{self.name}-{program}"),
                f"--timeout={_START_SECONDS:.0f}s",
                timeout=_START_SECONDS + 10,
            )
        for program, pod in self.pods().items():
            names = [one["name"] for one in pod["spec"].get("initContainers", [])]
            assert names == (["keeper"] if self.keeper else []), f"{self.name}-{program} has {names}"
        self.reset()
        self.more(_ALIVE_TRANSACTIONS, _START_SECONDS)

    def remove(self) -> None:
        words = ("delete", "deployments", "-l", f"{FLEET}={self.name}", "--wait=true", "--timeout=60s")
        kubectl("-n", self.namespace, *words, timeout=70)
        gone = f"{FLEET}={self.name}"
        wait_until(lambda: not kube.items("pods", self.namespace, gone), 60, "the fleet's pods to go")

    def pods(self) -> dict[str, Object]:
        """The pod of each program."""
        pods = kube.items("pods", self.namespace, f"{FLEET}={self.name}")
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        found = {pod["metadata"]["labels"][PROGRAM]: pod for pod in alive}
        names = sorted(pod["metadata"]["labels"][PROGRAM] for pod in alive)
        assert names == sorted(self.programs), f"fleet {self.name} has pods of {names}"
        return found

    def restarts(self) -> int:
        """How often containers of the fleet were restarted, keepers included."""
        return sum(
            status["restartCount"]
            for pod in self.pods().values()
            for kind in ("initContainerStatuses", "containerStatuses")
            for status in pod["status"].get(kind, [])
        )

    def counters(self) -> dict[str, Object]:
        """Every program's counters."""
        return {program: self._ask(pod) for program, pod in self.pods().items()}

    def reset(self) -> None:
        for pod in self.pods().values():
            self._ask(pod, "reset")

    def more(self, transactions: int, within: float = _ALIVE_SECONDS) -> None:
        """Wait until every program has committed so many more."""
        goals = {program: found["committed"] + transactions for program, found in self.counters().items()}
        deadline = time.monotonic() + within
        while late := {
            program: found for program, found in self.counters().items() if found["committed"] < goals[program]
        }:
            assert time.monotonic() < deadline, f"{self.name} stands still: {late}"
            time.sleep(0.2)

    @contextmanager
    def during(self, event: str) -> Iterator[Outcome]:
        """Count what the programs suffer while the block runs, and until all have gone on after it.

        That pods were replaced or containers restarted would hide failures, and counts as an error of the test.
        """
        outcome = Outcome(event)
        before = {program: pod["metadata"]["uid"] for program, pod in self.pods().items()}
        restarts = self.restarts()
        self.reset()
        self.more(_ALIVE_TRANSACTIONS)
        started = {
            program: (found["started"], found["committed"]) for program, found in self.counters().items()
        }
        began = time.monotonic()
        yield outcome
        outcome.seconds = time.monotonic() - began
        outcome.during = {
            program: found["committed"] - started[program][1] for program, found in self.counters().items()
        }
        self.more(_ALIVE_TRANSACTIONS)
        found = self.counters()
        assert {program: pod["metadata"]["uid"] for program, pod in self.pods().items()} == before
        assert self.restarts() == restarts, "a container was restarted, which hides what it had counted"
        assert {program: one["started"] for program, one in found.items()} == {
            program: at for program, (at, _) in started.items()
        }
        outcome.programs = {program: _tally(program, one) for program, one in found.items()}
        print(f"{self.name}: {outcome}")

    def check_busy(self, outcome: Outcome) -> None:
        """That none has failed says something only if all were at work."""
        least = int(outcome.seconds * self.rate * _LEAST_SHARE)
        idle = {program: count for program, count in outcome.during.items() if count < max(1, least)}
        assert not idle, f"in {outcome.seconds:.1f} s at least {least} each were to be committed: {idle}"

    def check_lossless(self, outcome: Outcome) -> None:
        """Not one failed, and nothing that an app would have died of."""
        self.check_busy(outcome)
        assert (outcome.total.failed, outcome.total.uncaught) == (0, 0), str(outcome)

    def _ask(self, pod: Object, path: str = "") -> Object:
        """A program's counters; with the path `reset` they begin anew."""
        where = f"{pod['metadata']['name']}:{PORT}"
        api = core()
        raw = {"_preload_content": False}
        if path:
            answer = api.connect_post_namespaced_pod_proxy_with_path(where, self.namespace, path, **raw)
        else:
            answer = api.connect_get_namespaced_pod_proxy(where, self.namespace, **raw)
        found: Object = json.loads(answer.data)
        return found

    def _labels(self, program: str) -> dict[str, str]:
        labels = {FLEET: self.name, PROGRAM: program}
        return labels | ({LABEL: SECRET} if self.keeper else {})

    def _deployment(self, program: str) -> Object:
        env = {"POOL_SIZE": str(CONNECTIONS), "TRANSACTIONS_PER_SECOND": str(self.rate), **self.env}
        sources = [{"secretRef": {"name": self.secret}}] if self.secret else []
        pod = restricted_pod(
            recipe("clients").reference,
            self.programs[program],
            env=[{"name": name, "value": value} for name, value in env.items()],
            envFrom=sources,
            ports=[{"name": "counters", "containerPort": PORT}],
            readinessProbe={"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1},
            resources={"requests": {"cpu": "20m", "memory": "64Mi"}},
        )
        return deployment(self.namespace, f"{self.name}-{program}", self._labels(program), pod)


def deployment(namespace: str, name: str, labels: Mapping[str, str], pod: Object) -> Object:
    """A Deployment of one pod, selected by its own labels without the keeper's."""
    selector = {key: value for key, value in labels.items() if key != LABEL}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": namespace, "name": name, "labels": dict(selector)},
        "spec": {
            "selector": {"matchLabels": selector},
            "template": {"metadata": {"labels": dict(labels)}, "spec": pod},
        },
    }


def make_table(place: Place) -> None:
    """The table that the programs work on, in the place's database and of its owner."""
    owner = f"ALTER TABLE accounts OWNER TO {identifier(place.role)}"
    place.server.run(TABLE, owner, database=place.database)


def _tally(program: str, found: Object) -> Tally:
    errors = {
        f"{program} {kind}": f"{one['count']} x {kind}: {one['first']} (first at {one['at']})"
        for kind, one in found["errors"].items()
    }
    return Tally(found["committed"], found["failed"], found["uncaught"], found["longest_seconds"], errors)


@cache
def core() -> Any:
    """One connection pool for all questions: a kubectl for each would take processor time from the programs."""
    return client.CoreV1Api(config.new_client_from_config(str(KUBECONFIG)))
