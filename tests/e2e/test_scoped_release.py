"""A release that works in some namespaces only, with Roles there; cluster-wide it may just read Namespaces.

The other release watches everything, so it stands still meanwhile: two operators must not share a namespace.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e import install, kube
from e2e.install import CHART, NAMESPACE, RELEASE
from e2e.kube import helm, kubectl
from tests.e2e.client import Agent
from tests.e2e.kit import Place, images_in_use, wait_until

SCOPED = "scoped"
SELECTOR = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=operator"


@pytest.fixture
def other_release_stopped() -> Iterator[None]:
    """The release that works everywhere, without pods for the time of the test."""
    kubectl("-n", NAMESPACE, "scale", f"deployment/{RELEASE}", "--replicas=0")
    wait_until(lambda: not kube.items("pods", NAMESPACE, SELECTOR), 60, "no operator pods")
    yield
    kubectl("-n", NAMESPACE, "scale", f"deployment/{RELEASE}", "--replicas=2")
    install.wait_for_rollout()


@pytest.fixture
def scoped_release(place: Place, other_release_stopped: None) -> Iterator[None]:
    """In the same namespace, so that the poolers' NetworkPolicies admit the tests' client too."""
    images = images_in_use()
    repository, _, tag = images["operator"].rpartition(":")
    values = [
        *("crds.enabled=false", "replicas=1", f"watchNamespaces={{{place.data},{place.web}}}"),
        *(f"image.repository={repository}", f"image.tag={tag}", f"pooler.image={images['pgbouncer']}"),
    ]
    words = [word for value in values for word in ("--set", value)]
    # What a run that was killed left behind: its namespaces are gone, and with them what its hooks need.
    helm("-n", NAMESPACE, "uninstall", SCOPED, "--ignore-not-found", "--no-hooks")
    helm("-n", NAMESPACE, "install", SCOPED, str(CHART), "--wait", "--timeout", "90s", *words)
    yield
    helm("-n", NAMESPACE, "uninstall", SCOPED, "--wait")


@pytest.mark.usefixtures("scoped_release")
def test_release_with_watch_namespaces_serves_these_and_refuses_others(place: Place, agent: Agent) -> None:
    spec = place.spec(replicas=1)
    spec["consumers"].append({"namespace": "default"})
    place.apply(spec)
    place.wait_ready()
    assert agent.query_soon(place.url(), "SELECT 1 AS one", within=10) == [{"one": "1"}]
    assert "watchNamespaces" in place.wait_condition("ConsumersSynced", "False", "NotWatched")
    print(helm("-n", NAMESPACE, "test", SCOPED, "--logs").splitlines()[-1])

    place.patch({"pooler": {"parameters": {"stats_period": 28}}, "consumers": [{"namespace": place.web}]})
    place.wait_condition("ConfigApplied", "True", "Applied")
    place.wait_condition("ConsumersSynced", "True", "Synced")
    kubectl("annotate", "namespace", place.web, "poolkeeper.io/accept-from-")
    wait_until(lambda: not place.secret(), 10, "no Secret without consent")
    kubectl("-n", place.data, "delete", "pooldb", "shop", "--timeout=60s", timeout=70)
