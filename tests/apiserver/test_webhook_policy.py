"""The policy on the operator's webhook configuration: RBAC can't limit a patch to one field, this does."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster.control_plane import ControlPlane
from poolkeeper.credentials.certificates import authority
from poolkeeper.credentials.mint import authority_key
from tests.apiserver.client import Api, Refused
from tests.apiserver.in_force import chart_in_force
from tests.fast.helm_chart import only, render

PATH = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/poolkeeper-webhook"


@pytest.fixture(scope="module")
def operator(control_plane: ControlPlane, api: Api) -> Iterator[Api]:
    """Access with the operator's name and rights, and the webhook's configuration."""
    with chart_in_force(control_plane, api) as operator:
        configuration = only(render(), "MutatingWebhookConfiguration")
        api.apply(PATH, configuration)
        yield operator
        api.delete(PATH)  # nothing serves it here


def json_patch(api: Api, *operations: dict[str, Any]) -> Any:
    return api.request("PATCH", PATH, list(operations), content_type="application/json-patch+json")


def test_the_operator_may_set_the_bundle_and_replace_it(operator: Api) -> None:
    for name in ("first", "second"):
        certificate = authority(name, authority_key()).certificate
        bundle = base64.b64encode(certificate.encode()).decode()
        operation = {"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}
        assert json_patch(operator, operation)["webhooks"][0]["clientConfig"]["caBundle"] == bundle


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/webhooks/0/rules/0/resources", ["*/*"]),
        ("/webhooks/0/rules/0/operations", ["*"]),
        ("/webhooks/0/objectSelector", {}),
        ("/webhooks/0/namespaceSelector", {}),
        ("/webhooks/0/failurePolicy", "Ignore"),
        ("/webhooks/0/clientConfig/service/namespace", "web"),
        ("/webhooks/0/name", "another.poolkeeper.io"),
        ("/webhooks/0/matchConditions", [{"name": "all", "expression": "true"}]),
        ("/metadata/annotations", {"a": "b"}),
    ],
    ids=str,
)
def test_the_operator_may_change_nothing_else_of_it(operator: Api, path: str, value: Any) -> None:
    with pytest.raises(Refused, match="only the caBundle"):
        json_patch(operator, {"op": "add", "path": path, "value": value})


def test_the_operator_may_neither_add_nor_remove_a_webhook(operator: Api, api: Api) -> None:
    [webhook] = api.get(PATH)["webhooks"]
    more = {**webhook, "name": "another.poolkeeper.io"}
    for changed in ([], [webhook, more]):
        with pytest.raises(Refused, match="only the caBundle"):
            operator.merge(PATH, {"webhooks": changed})
    with pytest.raises(Refused, match="cannot delete resource"):
        operator.delete(PATH)
