"""Workloads as the API server shows them, reduced to what a restart needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poolkeeper import names
from poolkeeper.keeper import injection
from poolkeeper.observed.apps import Workload
from poolkeeper.observed.refs import Ref

Object = Mapping[str, Any]

_MARK = names.RESTARTED_FOR_ANNOTATION.format("")


def workload(obj: Object) -> Workload:
    """A Deployment, StatefulSet or DaemonSet."""
    metadata, spec, status = obj["metadata"], obj["spec"], obj.get("status") or {}
    template = spec["template"].get("metadata") or {}
    seen = status.get("observedGeneration", 0) >= metadata.get("generation", 0)
    return Workload(
        ref=Ref(obj["kind"], metadata["namespace"], metadata["name"]),
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        asks=_asks(template),
        marks={key: text for key, text in (template.get("annotations") or {}).items() if key.startswith(_MARK)},
        complete=seen and _complete(obj["kind"], spec, status),
        held=_held(spec),
        stalled=_stalled(status),
    )


def _asks(template: Object) -> frozenset[str]:
    try:
        return frozenset(injection.databases({"metadata": template}))
    except injection.Refusal:
        return frozenset()  # its pods are refused anyway


def _complete(kind: str, spec: Object, status: Object) -> bool:
    """Whether the rollout is complete for `kubectl rollout status`, and no pod of an older template is left."""
    if kind == "DaemonSet":
        wanted = status.get("desiredNumberScheduled", 0)
        return bool(
            status.get("updatedNumberScheduled", 0) >= wanted and status.get("numberAvailable", 0) >= wanted
        )
    wanted = spec.get("replicas", 1)
    counts = [status.get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas")]
    return counts == [wanted, wanted, wanted]


def _held(spec: Object) -> str:
    if spec.get("paused"):
        return "it is paused"
    strategy = spec.get("updateStrategy") or {}
    if strategy.get("type") == "OnDelete":
        return "its updateStrategy is OnDelete"
    if (strategy.get("rollingUpdate") or {}).get("partition"):
        return "its updateStrategy has a partition"
    return ""


def _stalled(status: Object) -> str:
    for condition in status.get("conditions") or ():
        if condition["type"] == "Progressing" and condition["status"] == "False":
            return str(condition.get("message", "")) or str(condition.get("reason", ""))
    return ""
