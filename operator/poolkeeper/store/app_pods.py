"""Index of the app pods that have or lack keepers, by the consumers' Secrets that they ask for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from poolkeeper.observed.apps import AppPod
from poolkeeper.observed.refs import Key, Ref
from poolkeeper.store import reading
from poolkeeper.store.children import Children
from poolkeeper.store.processes import Processes


class AppPods:
    """App pods by name and by the Secrets that they ask for."""

    def __init__(self, children: Children, processes: Processes, nameservers: Collection[str]) -> None:
        """`children` knows whose Secrets they are; `processes` forgets keepers that are gone. `nameservers` are
        the cluster's, by their addresses."""
        self._children = children
        self._processes = processes
        self._nameservers = nameservers
        self._pods: dict[Ref, AppPod] = {}
        self._asking: dict[Ref, dict[Ref, AppPod]] = defaultdict(dict)

    def observe(self, ref: Ref, obj: Mapping[str, Any]) -> frozenset[Key]:
        """Take in a pod, which need not be an app pod. Returns the keys that it concerns, if that is news."""
        pod = reading.app_pod(obj, self._nameservers)
        if pod == self._pods.get(ref):
            return frozenset()
        if pod is None:
            return self.drop(ref)
        concerned = self._take_out(ref)
        self._pods[ref] = pod
        for secret in _asked(pod):
            self._asking[secret][ref] = pod
        return concerned | self._owners(pod)

    def drop(self, ref: Ref) -> frozenset[Key]:
        """Forget a pod that is gone, or is no app pod any more. Returns the keys that it concerned."""
        pod = self._pods.get(ref)
        if pod is not None:
            for keeper in pod.keepers:
                self._processes.drop(pod.process(keeper))
        return self._take_out(ref)

    def _take_out(self, ref: Ref) -> frozenset[Key]:
        pod = self._pods.pop(ref, None)
        if pod is None:
            return frozenset()
        for secret in _asked(pod):
            del self._asking[secret][ref]
            if not self._asking[secret]:
                del self._asking[secret]
        return self._owners(pod)

    def _owners(self, pod: AppPod) -> frozenset[Key]:
        owners = (self._children.owner(secret) for secret in _asked(pod))
        return frozenset(key for key in owners if key is not None)

    def get(self, ref: Ref) -> AppPod | None:
        """A pod as last seen."""
        return self._pods.get(ref)

    def of(self, key: Key) -> tuple[AppPod, ...]:
        """The pods that ask for the Secret of one of a PooledDatabase's consumers."""
        found: dict[Ref, AppPod] = {}
        for secret in self._children.consumers_secrets(key):
            found |= self._asking.get(secret, {})
        return tuple(found.values())


def _asked(pod: AppPod) -> frozenset[Ref]:
    """The consumers' Secrets that a pod has keepers for, or wants."""
    names = {keeper.secret_name for keeper in pod.keepers} | set(pod.lacks)
    return frozenset(Ref("Secret", pod.namespace, name) for name in names)
