"""Live Kubernetes objects, reduced to the values that planning needs."""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from poolkeeper import names
from poolkeeper.keeper import injection, resolution
from poolkeeper.names import POOLER_CONTAINER
from poolkeeper.observed.apps import AppPod, Keeper
from poolkeeper.observed.namespaces import EQUAL, Namespace
from poolkeeper.observed.poolers import Pod, Rollout
from poolkeeper.observed.refs import Key, Owner, Ref
from poolkeeper.plan import peers
from poolkeeper.plan.world import Resource
from poolkeeper.spec.parse import PooledDatabase, SpecError, parse

log = logging.getLogger(__name__)

MOST_OF_A_REQUEST = 253
"""Maximum length of a reconnect request, in characters."""

_WEIGHT = re.compile("[1-9][0-9]{0,2}|1000")

Object = Mapping[str, Any]


def namespace(obj: Object) -> Namespace:
    """A namespace as consent and the budget need it."""
    metadata = obj["metadata"]
    annotations = metadata.get("annotations") or {}
    return Namespace(
        labels=metadata.get("labels") or {},
        accept_from=annotations.get(names.ACCEPT_FROM_ANNOTATION, ""),
        terminating="deletionTimestamp" in metadata,
        budget_weight=_weight(annotations.get(names.BUDGET_WEIGHT_ANNOTATION, "")),
    )


def _weight(text: str) -> int:
    """A weight from 1 to 1000; anything else counts as the annotation left out."""
    return int(text) if _WEIGHT.fullmatch(text) else EQUAL


def ref(obj: Object) -> Ref:
    """The name of an object."""
    metadata = obj["metadata"]
    return Ref(obj["kind"], metadata.get("namespace", ""), metadata["name"])


def resource(obj: Object) -> Resource:
    """A PooledDatabase. If its spec can't be read, it has the error in place of the spec."""
    metadata = obj["metadata"]
    spec: PooledDatabase | SpecError
    try:
        spec = parse(obj)
    except SpecError as error:
        spec = error
    except Exception as error:
        log.exception("%s can't be read", ref(obj))
        remedy = "compare its fields with docs/reference.md"
        spec = SpecError("spec", f"can't be read ({type(error).__name__})", remedy)
    return Resource(
        uid=metadata["uid"],
        generation=int(metadata.get("generation", 0)),
        deleting="deletionTimestamp" in metadata,
        finalized=names.FINALIZER in metadata.get("finalizers", ()),
        spec=spec,
        status=obj.get("status") or {},
        reconnect=reconnect(obj),
    )


def reconnect(resource: Object) -> str:
    """The reconnect request in a PooledDatabase's annotation, cut to what the status can hold."""
    annotations = resource["metadata"].get("annotations") or {}
    return str(annotations.get(names.RECONNECT_ANNOTATION, "")).strip()[:MOST_OF_A_REQUEST]


def owner(obj: Object) -> Key | None:
    """The PooledDatabase that an object names as its owner."""
    key = names.owner_key(obj["metadata"].get("annotations") or {})
    return Key(*key) if key else None


def data(secret: Object) -> dict[str, bytes]:
    """A Secret's values."""
    try:
        return {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}
    except binascii.Error:
        return {}


def texts(secret: Object) -> dict[str, str]:
    """A Secret's values as text."""
    return {key: value.decode(errors="replace") for key, value in data(secret).items()}


def pod(obj: Object) -> Pod:
    """A pooler pod, with what keeps its container from running."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    containers = status.get("containerStatuses") or []
    problem = next((text for text in map(_waiting, containers) if text), "")
    scheduled = _condition(obj, "PodScheduled")
    annotations = metadata.get("annotations") or {}
    lines = annotations.get(names.PEER_ANNOTATION, "")
    peer, includes = peers.parse(lines)
    gated = any(gate["conditionType"] == names.GATE for gate in obj["spec"].get("readinessGates") or ())
    if not problem and scheduled.get("reason") == "Unschedulable":
        problem = f"Unschedulable: {scheduled.get('message', '')}"
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        ip=status.get("podIP", ""),
        ready=_condition(obj, "Ready").get("status") == "True",
        terminating="deletionTimestamp" in metadata,
        restarts=sum(container.get("restartCount", 0) for container in containers),
        generation=annotations.get(names.GENERATION_ANNOTATION, ""),
        problem=problem,
        running=_condition(obj, "Ready").get("status") == "True"
        or any("running" in (container.get("state") or {}) for container in containers),
        admitted=not gated or _condition(obj, names.GATE).get("status") == "True",
        stopped=stopped(obj),
        peer=peer,
        lines=lines,
        includes=includes,
        allotment=annotations.get(names.ALLOTMENT_ANNOTATION, ""),
        grace=float(metadata.get("deletionGracePeriodSeconds") or 0),
        killed_at=_time(metadata.get("deletionTimestamp")),
        image=next(
            (item["image"] for item in obj["spec"]["containers"] if item["name"] == POOLER_CONTAINER), ""
        ),
    )


def is_pooler(pod: Object) -> bool:
    """Whether a pod says it is a pooler of a PooledDatabase in its own namespace. (In another namespace it
    would only be after the console's login.)"""
    metadata = pod["metadata"]
    key = owner(pod)
    role = (metadata.get("labels") or {}).get(names.ROLE_LABEL)
    return role == names.ROLE_POOLER and key is not None and key.namespace == metadata["namespace"]


def app_pod(obj: Object, nameservers: Collection[str] = ()) -> AppPod | None:
    """A pod that asks for keepers; None if it doesn't, or has finished. `nameservers` are the cluster's."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if names.DATABASE_LABEL not in labels or status.get("phase") in ("Succeeded", "Failed"):
        return None
    try:
        asked = injection.databases(obj)
    except injection.Refusal:
        asked = (labels[names.DATABASE_LABEL],)
    # With hostNetwork the pod's address is the node's: the operator would connect to whatever listens there.
    injected = () if obj["spec"].get("hostNetwork") else injection.injected(obj)
    states = {item["name"]: item for item in status.get("initContainerStatuses") or ()}
    keepers = tuple(
        Keeper(
            container=item.container,
            secret_name=item.secret_name,
            image=item.image,
            auth=item.auth,
            port=item.port,
            running="running" in (states.get(item.container, {}).get("state") or {}),
            restarts=states.get(item.container, {}).get("restartCount", 0),
            generation=annotations.get(names.KEEPER_GENERATION_ANNOTATION.format(container=item.container), ""),
        )
        for item in injected
    )
    return AppPod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        ip=status.get("podIP", ""),
        terminating="deletionTimestamp" in metadata,
        keepers=keepers,
        lacks=tuple(name for name in asked if name not in {item.secret_name for item in keepers}),
        owner=_controller(obj),
        obstacle=(resolution.obstacle(obj["spec"], nameservers) or "") if keepers else "",
    )


def _controller(obj: Object) -> Owner | None:
    metadata = obj["metadata"]
    for item in metadata.get("ownerReferences") or ():
        known = item["kind"] in ("ReplicaSet", "StatefulSet", "DaemonSet") and item["apiVersion"] == "apps/v1"
        if item.get("controller") and known:
            return Owner(metadata["namespace"], item["kind"], item["name"], item["uid"])
    return None


def deployment_of(obj: Object) -> Owner | None:
    """The Deployment that a ReplicaSet belongs to."""
    metadata = obj["metadata"]
    for item in metadata.get("ownerReferences") or ():
        if item.get("controller") and (item["apiVersion"], item["kind"]) == ("apps/v1", "Deployment"):
            return Owner(metadata["namespace"], item["kind"], item["name"], item["uid"])
    return None


def stopped(obj: Object) -> bool:
    """Whether a pod's containers have ended, and none will start again."""
    status = obj.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return True
    containers = status.get("containerStatuses")
    if "deletionTimestamp" not in obj["metadata"] or containers is None:
        # A pod that isn't bound to a node yet goes at once.
        return "deletionTimestamp" in obj["metadata"] and not obj["spec"].get("nodeName")
    return not any("running" in (item.get("state") or {}) for item in containers)


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _waiting(container: Object) -> str:
    """What keeps a container from starting. Kubernetes alternates between two reasons while an image can't be
    pulled, and counts seconds in its messages: the same problem must read the same every time."""
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason = waiting.get("reason") or "ContainerCreating"
    if reason in ("ContainerCreating", "PodInitializing"):
        return ""
    if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
        image = container.get("image", "")
        return f"ImagePullBackOff: image {image} can't be pulled; correct spec.pooler.image or its pull secrets"
    if reason == "CrashLoopBackOff":
        return "CrashLoopBackOff: the container ends again and again; its log says why"
    return f"{reason}: {waiting.get('message', '')}"


def rollout(obj: Object) -> Rollout:
    """A Deployment's progress."""
    spec, status = obj["spec"], obj.get("status") or {}
    failure = _condition(obj, "ReplicaFailure")
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    return Rollout(
        observed=status.get("observedGeneration") == obj["metadata"].get("generation"),
        updated_replicas=status.get("updatedReplicas", 0),
        replicas=status.get("replicas", 0),
        failure=failure.get("message", "") if failure.get("status") == "True" else "",
        most_pods=spec.get("replicas") if rolling.get("maxSurge") == 0 else None,
        borrowed=_borrowed((spec.get("template") or {}).get("metadata") or {}),
    )


def _borrowed(template: Object) -> str:
    labels, annotations = template.get("labels") or {}, template.get("annotations") or {}
    ours = labels.get(names.BORROWED_LABEL, "") == labels.get(names.OWNER_LABEL)
    return str(annotations.get(names.RESTART_ANNOTATION, "")) if ours else ""


def _condition(obj: Object, kind: str) -> Mapping[str, str]:
    """The condition of this type, empty if the object has none."""
    for condition in (obj.get("status") or {}).get("conditions") or ():
        if condition["type"] == kind:
            result: Mapping[str, str] = condition
            return result
    return {}
