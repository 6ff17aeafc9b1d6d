"""The rights and policies that the chart gives the operator's account, in force at a real API server."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

from e2e.cluster.control_plane import ControlPlane
from tests.apiserver.chart_paths import path
from tests.apiserver.client import Api, Refused
from tests.fast.helm_chart import NAMESPACE, Object, installed, render

ACCOUNT = f"system:serviceaccount:{NAMESPACE}:poolkeeper"

_RIGHTS = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
_POLICIES = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
_PROBE: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe"}}
_numbers = itertools.count(1)


@contextmanager
def chart_in_force(control_plane: ControlPlane, api: Api, *values: str) -> Iterator[Api]:
    """Access as the operator's account while the chart's rights and policies are in force.

    All policies at once, as in an installation: they refuse together, and one that is left behind would refuse
    what the next tests are about. So they are taken back at the end.
    """
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    api.apply(f"/api/v1/namespaces/{NAMESPACE}", space, "in-force")
    objects = installed(render(*values))
    policies = [obj for obj in objects if obj["kind"] in _POLICIES]
    for obj in [obj for obj in objects if obj["kind"] in _RIGHTS] + policies:
        api.apply(path(obj), obj)
    _wait_until_in_force(api)
    yield Api(control_plane.user_kubeconfig(ACCOUNT))
    for obj in policies:
        api.delete(path(obj))
    _wait_until_in_force(api)


def _wait_until_in_force(api: Api) -> None:
    """Waits until the API server decides by what was written before.

    It takes up rights and policies from watches, each kind in the order of its changes. So a right and a policy
    that are written last are in force last.
    """
    number = f"{next(_numbers)}"
    for obj in _last(number):
        api.apply(path(obj), obj)
    asked = {"group": "example.com", "resource": "probes", "name": number, "verb": "get"}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": ACCOUNT, "resourceAttributes": asked},
    }
    deadline = time.monotonic() + 30
    while not (
        _refusal(api).endswith(f"probe {number}")
        and api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)["status"]["allowed"]
    ):
        assert time.monotonic() < deadline, "the API server did not take up the chart's rights and policies"
        time.sleep(0.1)


def _refusal(api: Api) -> str:
    try:
        api.create("/api/v1/namespaces/default/configmaps", _PROBE, dry_run=True)
    except Refused as refusal:
        return refusal.message
    return ""


def _last(number: str) -> Iterator[Object]:
    """A right of the operator's account and a policy that say which number they are."""
    rbac, admission = "rbac.authorization.k8s.io", "admissionregistration.k8s.io"
    meta = {"name": "zz-probe"}
    rule = {"apiGroups": ["example.com"], "resources": ["probes"], "resourceNames": [number], "verbs": ["get"]}
    yield {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": meta, "rules": [rule]}
    yield {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": meta,
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": meta["name"]},
        "subjects": [{"apiGroup": rbac, "kind": "User", "name": ACCOUNT}],
    }
    matched = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
    yield {
        "apiVersion": f"{admission}/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": meta,
        "spec": {
            "matchConstraints": {"resourceRules": [{**matched, "resourceNames": ["probe"]}]},
            "validations": [{"expression": "false", "message": f"probe {number}"}],
        },
    }
    yield {
        "apiVersion": f"{admission}/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": meta,
        "spec": {"policyName": meta["name"], "validationActions": ["Deny"]},
    }
