"""Index of the app pods that have or lack keepers, by the consumers' Secrets that they ask for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from poolkeeper.observed.apps import AppPod
from poolkeeper.observed.refs import Ref


class AppPods:
    """App pods by name and by the Secrets that they ask for."""

    def __init__(self) -> None:
        self._pods: dict[Ref, AppPod] = {}
        self._asking: dict[Ref, dict[Ref, AppPod]] = defaultdict(dict)

    def get(self, ref: Ref) -> AppPod | None:
        """A pod as last seen."""
        return self._pods.get(ref)

    def put(self, ref: Ref, pod: AppPod) -> None:
        """Take in a pod, in place of its last known state."""
        self.drop(ref)
        self._pods[ref] = pod
        for secret in asked(pod):
            self._asking[secret][ref] = pod

    def drop(self, ref: Ref) -> AppPod | None:
        """Forget a pod that is gone, or is no app pod any more. Returns its last known state."""
        pod = self._pods.pop(ref, None)
        for secret in asked(pod) if pod is not None else ():
            del self._asking[secret][ref]
            if not self._asking[secret]:
                del self._asking[secret]
        return pod

    def asking(self, secrets: Iterable[Ref]) -> tuple[AppPod, ...]:
        """The pods that ask for one of these Secrets."""
        found: dict[Ref, AppPod] = {}
        for secret in secrets:
            found |= self._asking.get(secret, {})
        return tuple(found.values())


def asked(pod: AppPod) -> frozenset[Ref]:
    """The consumers' Secrets that a pod has keepers for, or wants."""
    names = {keeper.secret_name for keeper in pod.keepers} | set(pod.lacks)
    return frozenset(Ref("Secret", pod.namespace, name) for name in names)
