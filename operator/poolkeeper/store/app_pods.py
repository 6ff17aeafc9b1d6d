"""App pods that have keepers or lack them: an index by the consumers' Secrets that they ask for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from poolkeeper.observed.apps import AppPod
from poolkeeper.observed.refs import Ref


class AppPods:
    """The pods by themselves and by what they ask for."""

    def __init__(self) -> None:
        self._pods: dict[Ref, AppPod] = {}
        self._asking: dict[Ref, dict[Ref, AppPod]] = defaultdict(dict)

    def get(self, ref: Ref) -> AppPod | None:
        """A pod as it was last seen."""
        return self._pods.get(ref)

    def put(self, ref: Ref, pod: AppPod) -> None:
        """Take in a pod, in place of what was known of it."""
        self.drop(ref)
        self._pods[ref] = pod
        for secret in asked(pod):
            self._asking[secret][ref] = pod

    def drop(self, ref: Ref) -> AppPod | None:
        """The pod is gone, or none of them any more. Returns what was known of it."""
        pod = self._pods.pop(ref, None)
        for secret in asked(pod) if pod is not None else ():
            del self._asking[secret][ref]
            if not self._asking[secret]:
                del self._asking[secret]
        return pod

    def asking(self, secrets: Iterable[Ref]) -> tuple[AppPod, ...]:
        """Those that ask for one of these Secrets."""
        found: dict[Ref, AppPod] = {}
        for secret in secrets:
            found |= self._asking.get(secret, {})
        return tuple(found.values())


def asked(pod: AppPod) -> frozenset[Ref]:
    """The consumers' Secrets that a pod has keepers for, or wants."""
    names = {keeper.secret_name for keeper in pod.keepers} | set(pod.lacks)
    return frozenset(Ref("Secret", pod.namespace, name) for name in names)
