"""The boundary of the webhook: what comes in at its port is a pod's admission, or it is refused here.

Every pod of the cluster can reach the port. So nothing is taken for what the API server would send: not the
size, the nesting, the type of a field, nor that a name is one. Behind this module the fields that _SHAPE names
have their types, the namespace, the UID and the names of containers are names, and every text can be encoded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from poolkeeper.printable import printable
from poolkeeper.spec.fields import NAMESPACE, OBJECT_NAME, Text
from poolkeeper.spec.values import SpecError

Object = dict[str, Any]

VERSION = "admission.k8s.io/v1"
BODY_LIMIT = 3 * 2**20
"""Maximum size of a review, in bytes: that of a request to the API server itself."""
NESTING_LIMIT = 64
"""Maximum depth of a review; a pod's own is about fifteen."""
VALUE_LIMIT = 50_000
"""Maximum number of values in a review. A pod of 1.5 MiB, the most that etcd takes, stays below it unless it is
made of empty values; more of them would take the process longer than it may let other requests wait."""
_SHOWN = 200
"""Maximum length of a quoted problem, in characters."""
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")
_KIND = re.compile(r"[A-Z][A-Za-z0-9]{0,62}")
_API_VERSION = re.compile(r"([a-z0-9][-a-z0-9.]{0,252}/)?v[a-z0-9]{1,30}")


class NotAReview(Exception):
    """The body is no admission review of a pod; the text says why, on one line."""

    def __init__(self, problem: str) -> None:
        super().__init__(printable(problem, _SHOWN))


@dataclass(frozen=True)
class Request:
    """A pod's admission. `pod` has the shape of _SHAPE, as far as it has these fields at all."""

    uid: str
    namespace: str
    pod: Object
    dry_run: bool

    @property
    def shown(self) -> str:
        """The pod's name, or how it begins, for people."""
        metadata = self.pod.get("metadata") or {}
        return printable(metadata.get("name") or metadata.get("generateName") or "", OBJECT_NAME.max_bytes)

    def owner(self) -> dict[str, str] | None:
        """The pod's controller: apiVersion, kind, name and uid; None without one that could exist."""
        owners = (self.pod.get("metadata") or {}).get("ownerReferences") or ()
        owner: Object = next((item for item in owners if item.get("controller") is True), {})
        checks: Mapping[str, Callable[[str], bool]] = {
            "apiVersion": lambda text: _API_VERSION.fullmatch(text) is not None,
            "kind": lambda text: _KIND.fullmatch(text) is not None,
            "name": lambda text: _is(OBJECT_NAME, text),
            "uid": lambda text: _UID.fullmatch(text) is not None,
        }
        found = {key: owner.get(key) or "" for key in checks}
        return found if all(holds(found[key]) for key, holds in checks.items()) else None


def decode(body: bytes) -> Any:
    """The JSON of a body. Raises NotAReview."""
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise NotAReview(f"it is no JSON ({error})") from None


def parse(body: object) -> Request:
    """Read an AdmissionReview of a pod. Raises NotAReview."""
    _check_values(body)
    review = _of_shape(body, _SHAPE, "review")
    if review["apiVersion"] != VERSION or review["kind"] != "AdmissionReview":
        raise NotAReview(f"it is no AdmissionReview of {VERSION}")
    request = review["request"]
    uid, namespace, pod = request["uid"], request["namespace"], request["object"]
    if not _UID.fullmatch(uid):
        raise NotAReview("request.uid is none")
    if not _is(NAMESPACE, namespace):
        raise NotAReview(f"request.namespace {NAMESPACE.problem}")
    for field in ("initContainers", "containers"):
        for container in (pod.get("spec") or {}).get(field) or ():
            if not _is(NAMESPACE, container.get("name", "web")):
                raise NotAReview(f"the name of one of the pod's {field} is no DNS label")
    return Request(uid, namespace, pod, request.get("dryRun") is True)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _is(kind: Text, text: str) -> bool:
    try:
        kind.check(text, "")
    except SpecError:
        return False
    return True


def _check_values(body: object) -> None:
    """Bound depth and number of the values, and refuse texts and numbers that can't be written again."""
    level, values = [body], 0
    for _ in range(NESTING_LIMIT):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, float) and not math.isfinite(item):
                raise NotAReview("it has a number without end")
            elif isinstance(item, str) and not item.isascii():
                _check_encodable(item)
        values += len(below)
        if values > VALUE_LIMIT:
            raise NotAReview(f"it has more than {VALUE_LIMIT} values")
        if not below:
            return
        level = below
    raise NotAReview(f"it is nested more than {NESTING_LIMIT} levels deep")


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotAReview("it has a text with half a character") from None


class _Texts:
    """A map from text to text."""


_Shape = type | list[Any] | dict[str, Any]
_NAMED = [{"name": str}]
_ENV_FROM = [{"prefix": str, "secretRef": {"name": str}, "configMapRef": {"name": str}}]
_CONTAINERS = [
    {
        "name": str,
        "image": str,
        "restartPolicy": str,
        "command": [str],
        "args": [str],
        "env": [{"name": str, "value": str, "valueFrom": dict}],
        "envFrom": _ENV_FROM,
        "ports": [{"name": str, "containerPort": int, "protocol": str}],
        "volumeMounts": [{"name": str, "mountPath": str}],
        "securityContext": {"capabilities": {"drop": [str]}, "seccompProfile": {"type": str}},
    }
]
_SHAPE: _Shape = {
    "apiVersion!": str,
    "kind!": str,
    "request!": {
        "uid!": str,
        "namespace!": str,
        "dryRun": bool,
        "object!": {
            "metadata": {
                "name": str,
                "generateName": str,
                "labels": _Texts,
                "annotations": _Texts,
                "ownerReferences": [
                    {"apiVersion": str, "kind": str, "name": str, "uid": str, "controller": bool}
                ],
            },
            "spec": {
                "dnsPolicy": str,
                "dnsConfig": {"nameservers": [str]},
                "hostNetwork": bool,
                "initContainers": _CONTAINERS,
                "containers": _CONTAINERS,
                "volumes": [
                    {"name": str, "projected": {"sources": [{"secret": {"name": str}, "downwardAPI": dict}]}}
                ],
                "imagePullSecrets": _NAMED,
            },
        },
    },
}
"""The fields that an injection reads, with their types; `!` marks those that every review has."""


def _of_shape(value: Any, shape: _Shape, path: str) -> Any:
    """`value`, if it has the shape as far as it has the fields. Raises NotAReview."""
    if isinstance(shape, dict):
        _check_type(value, dict, path)
        for name, inner in shape.items():
            key = name.removesuffix("!")
            # The API server writes null for a map or list that is empty, and leaves out a text.
            if value.get(key) is not None or (key in value and isinstance(inner, type)):
                _of_shape(value[key], inner, f"{path}.{key}")
            elif key != name:
                raise NotAReview(f"{path}.{key} is missing")
    elif isinstance(shape, list):
        _check_type(value, list, path)
        for index, item in enumerate(value):
            _of_shape(item, shape[0], f"{path}[{index}]")
    elif shape is _Texts:
        _check_type(value, dict, path)
        for key, text in value.items():
            _check_type(text, str, f"{path}.{key}")
    else:
        _check_type(value, shape, path)
    return value


def _check_type(value: object, wanted: type, path: str) -> None:
    if type(value) is not wanted:
        raise NotAReview(f"{path} is not of type {wanted.__name__}")
