"""The answer to an admission review of a pod: its keepers, or why it can't have them.

A thin layer between the boundary (request.py) and keeper/injection.py. It reads only the keeper Secrets that
the pod names, in the pod's own namespace, so that every replica can answer, leader or not.
https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Protocol

from poolkeeper.keeper import injection, template
from poolkeeper.keeper.injection import Injection, Refusal
from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.kube import events
from poolkeeper.kube.events import Event
from poolkeeper.names import (
    ACCEPT_FROM_ANNOTATION,
    DATABASE_LABEL,
    KEEPER_ANNOTATION,
    ROLE_KEEPER,
    ROLE_LABEL,
    keeper_name,
)
from poolkeeper.observed.origin import made_here, put_back
from poolkeeper.observed.refs import Ref
from poolkeeper.printable import printable
from poolkeeper.spec.parse import SYSTEM_NAMESPACES
from poolkeeper.webhook import request as reviews
from poolkeeper.webhook.request import NotAReview

log = logging.getLogger(__name__)

Object = dict[str, Any]

_PATCHED = (
    ("metadata", ("annotations",)),
    ("spec", ("initContainers", "containers", "volumes", "imagePullSecrets")),
)
"""All that an injection changes."""
_SPEAKER = "poolkeeper: "
_WARNING_LIMIT = 240
"""Maximum length of a warning, in characters; the API server cuts longer ones."""
_MESSAGE_LIMIT = 2_048
"""Maximum length of a refusal, in characters."""


class Access(Protocol):
    """The part of kube.client.Cluster that this module and the server need."""

    async def get(self, ref: Ref) -> Object | None: ...

    async def post(self, body: Mapping[str, Any]) -> Object: ...


async def review(body: Any, cluster: Access, nameservers: Collection[str] = ()) -> Object:
    """Answer one AdmissionReview; `nameservers` are the cluster's. Raises NotAReview if the body is none,
    ClusterError if a Secret can't be read: then the webhook's failurePolicy decides."""
    request = reviews.parse(body)
    pod = request.pod
    answer: Object = {"uid": request.uid, "allowed": True}
    try:
        names = injection.databases(pod)
        if names:
            templates = {name: await _template(cluster, request.namespace, name) for name in names}
            done = _inject(pod, templates, nameservers)
            answer["warnings"] = [
                printable(f"{_SPEAKER}{warning}", _WARNING_LIMIT) for warning in done.warnings
            ]
            patch = _patch(pod, done.pod)
            if patch:
                answer["patchType"] = "JSONPatch"
                answer["patch"] = base64.b64encode(json.dumps(patch).encode()).decode()
    except Refusal as refusal:
        message = printable(f"{_SPEAKER}{refusal}", _MESSAGE_LIMIT)
        log.info("pod %s/%s is refused: %s", request.namespace, request.shown, message)
        answer |= {"allowed": False, "status": {"code": 403, "reason": "Forbidden", "message": message}}
    return {"apiVersion": reviews.VERSION, "kind": "AdmissionReview", "response": answer}


def event(body: Any, answer: Object, now: datetime) -> Object | None:
    """The answer's warnings as an Event on the pod's owner: a ReplicaSet or Job shows no warnings. The pod has
    no name yet; the same pods of the same owner get the same Event. None for a dry run."""
    warnings = answer["response"].get("warnings")
    if not warnings:
        return None
    request = reviews.parse(body)
    owner = request.owner()
    if owner is None or request.dry_run:
        return None
    text = "; ".join(warning.removeprefix(_SPEAKER) for warning in warnings)
    name = hashlib.sha256(f"{owner['uid']}/{text}".encode()).hexdigest()[:16]
    return events.body(
        Event(name, "Warning", "VariablesKept", text), {**owner, "namespace": request.namespace}, now
    )


def _inject(
    pod: Mapping[str, Any], templates: Mapping[str, KeeperTemplate], nameservers: Collection[str]
) -> Injection:
    """Inject keepers. The API server validates a pod only after this: it may lack what every pod has."""
    try:
        return injection.inject(pod, templates, nameservers)
    except KeyError as error:
        raise Refusal(f"a part of the pod lacks its {error}; add it") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise NotAReview(f"the pod has no pod's shape ({error})") from error


async def _template(cluster: Access, namespace: str, name: str) -> KeeperTemplate:
    """The template of the database's keepers. A Secret that is not a keeper's is answered like none, since the
    answer may go to a client that must not learn which Secrets exist."""
    ref = Ref("Secret", namespace, keeper_name(name))
    # The namespaces of the cluster itself never become consumers.
    secret = None if namespace in SYSTEM_NAMESPACES else await cluster.get(ref)
    metadata = (secret or {}).get("metadata") or {}
    try:
        if secret is None or (metadata.get("labels") or {}).get(ROLE_LABEL) != ROLE_KEEPER:
            raise ValueError("it is not labelled as one")
        if not (made_here(secret) or put_back(secret)):
            raise ValueError("it is a copy of one")
        return template.parse((metadata.get("annotations") or {}).get(KEEPER_ANNOTATION, ""))
    except ValueError:
        raise Refusal(
            f"label {DATABASE_LABEL} asks for database {name!r}, which namespace {namespace} does not have "
            f"(no keeper's Secret {ref.name}); a PooledDatabase has to list {namespace} with secretName {name} "
            "in its spec.consumers, with spec.keeper.enabled, and from another namespace than its own "
            f"{namespace} has to accept it with the annotation {ACCEPT_FROM_ANNOTATION}; the Secret follows, "
            f"and this is tried again. If Secret {namespace}/{ref.name} is not a keeper's, delete it if it is "
            "not in use, and the operator creates its own"
        ) from None


def _patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Object]:
    """The difference as a JSON patch (RFC 6902), whose `add` also replaces."""
    return [
        {"op": "add", "path": f"/{part}/{field}", "value": after[part][field]}
        for part, fields in _PATCHED
        for field in fields
        if after[part].get(field) != before[part].get(field)
    ]
