"""The poolers' Deployment: the user that its pods run as."""

from dataclasses import replace
from typing import Any

from poolkeeper.credentials.logins import Login
from poolkeeper.desired import deployment
from poolkeeper.spec.parse import parse
from tests import specs
from tests.fast.worlds import SETTINGS


def pod_context(*, assigned: bool) -> dict[str, Any]:
    database = parse(specs.body(specs.MINIMAL))
    settings = replace(SETTINGS, assigned_users=assigned)
    made = deployment.render(database, settings, Login("console", "password", "verifier"), None)
    context: dict[str, Any] = made["spec"]["template"]["spec"]["securityContext"]
    return context


def test_pods_run_as_the_images_user_and_their_files_are_its() -> None:
    context = pod_context(assigned=False)
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (65532, 65532, 65532)


def test_pods_name_no_user_where_the_cluster_assigns_one() -> None:
    assert pod_context(assigned=True) == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
