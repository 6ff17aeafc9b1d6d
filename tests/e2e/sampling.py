"""Samples a server's connections and its poolers' consoles while something happens to them (connections.py)."""

from __future__ import annotations

import itertools
import threading

from tests.e2e.client import Agent
from tests.e2e.connections import Record, parse
from tests.e2e.keeper_kit import core
from tests.e2e.kit import POOLER_PODS, Place, Server, dsn

PERIOD_SECONDS = 0.05
_FOLLOW_SECONDS = 0.2


class Sampling:
    """Goes on while the block runs; ``record`` afterwards holds everything.

    It samples in a process of its own beside the agent, as the superuser: his slots are reserved, so that it
    takes none from the poolers, and it gets in when the server is full.
    """

    _names = itertools.count()

    def __init__(self, server: Server, *places: Place, period: float = PERIOD_SECONDS) -> None:
        self._agent = Agent(server.agent.namespace, server.agent.pod)
        self._name = f"sampler-{next(self._names)}"
        self._server, self._period = server, period
        self._places = places
        self._passwords: dict[str, str] = {}
        self._over = threading.Event()
        self._follower = threading.Thread(target=self._follow, daemon=True)
        self._failure: Exception | None = None
        self.record = Record((), (), ())

    def __enter__(self) -> Sampling:
        address = dsn(self._server.host, "postgres", self._server.password, "postgres")
        self._agent.call("start_sampler", sampler=self._name, dsn=address, period=self._period)
        self._follower.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._follower.join()
        self.record = parse(self._agent.call("stop_sampler", sampler=self._name))
        self._agent.close()
        if self._failure is not None:
            raise RuntimeError("new poolers were not watched") from self._failure

    def caps(self) -> dict[str, dict[str, int]]:
        """What each console showed last: caps by address and entry."""
        found: dict[str, dict[str, int]] = self._agent.call("sampled_caps", sampler=self._name)
        return found

    def _follow(self) -> None:
        """Tell the sampler which poolers there are: from a pod's address on, until the pod is gone."""
        try:
            while not self._over.wait(_FOLLOW_SECONDS):
                consoles: dict[str, str] = {}
                for place in self._places:
                    consoles |= self._consoles(place)
                self._agent.call("watch_consoles", sampler=self._name, consoles=consoles)
        except Exception as error:  # whatever it is, the block has to fail by it
            self._failure = error

    def _consoles(self, place: Place) -> dict[str, str]:
        """A process that is to end waits for all of its clients, whoever asks its console among them. So it is
        left alone then, and its backends are told by their address."""
        pods = {
            pod.status.pod_ip: pod.metadata.deletion_timestamp is None
            for pod in core().list_namespaced_pod(place.data, label_selector=POOLER_PODS).items
            if pod.status.pod_ip
        }
        if pods and place.data not in self._passwords:
            self._passwords[place.data] = place.console_password()
        return {
            address: place.console_dsn(address, self._passwords[place.data]) if stays else ""
            for address, stays in pods.items()
        }
