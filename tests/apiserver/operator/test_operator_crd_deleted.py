"""The CRD deleted under the operator: its own control plane, since no other test could go on meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.apiserver.client import Refused
from tests.apiserver.operator.site import CRD_PATH, Lane, Site, eventually, path


@pytest.fixture
def own_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site.opened(tmp_path_factory.mktemp("crd-site")) as made:
        yield made


CRD = f"{CRD_PATH}/pooleddatabases.poolkeeper.io"
ABSENT_SECONDS = 5.0
"""Long enough for every watch to be refused more than once."""


def delete_crd(site: Site) -> None:
    site.api.delete(CRD)

    def gone() -> bool:
        try:
            site.api.get(CRD)
        except Refused as refusal:
            return refusal.code == 404
        return False

    eventually(gone, 30, every=0.2)


def follows_a_change(lane: Lane) -> None:
    lane.apply(consumers=[{"namespace": lane.web}])
    lane.synced(1)


def test_crd_deleted_first_leaves_no_stuck_finalizer_and_nothing_behind(own_site: Site) -> None:
    """And once it is installed again, the same operator goes on."""
    lane = Lane(own_site)
    operator = own_site.operator(lane.namespaces).start()
    lane.apply()
    lane.synced(2)
    delete_crd(own_site)
    for namespace in lane.namespaces:
        names = [obj["metadata"]["name"] for obj in own_site.api.get(path("Secret", namespace))["items"]]
        assert names in ([], ["shop-owner"])
        for kind in ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"):
            assert own_site.api.get(path(kind, namespace))["items"] == []
    time.sleep(ABSENT_SECONDS)
    assert operator.running, operator.said()[-3000:]
    own_site.install_crd()
    lane.apply()
    lane.synced(2, seconds=60)
    follows_a_change(lane)
    assert operator.running, operator.said()[-3000:]


def test_an_operator_that_is_started_before_its_crd_is_installed_says_so_and_goes_on_with_it(
    own_site: Site,
) -> None:
    lane = Lane(own_site)
    delete_crd(own_site)
    operator = own_site.operator(lane.namespaces).start()
    eventually(lambda: "PooledDatabases are unknown to the API server" in operator.said(), 30)
    own_site.install_crd()
    lane.apply()
    lane.synced(2, seconds=60)
    follows_a_change(lane)
    assert operator.running, operator.said()[-3000:]
