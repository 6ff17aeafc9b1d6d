"""The CRD deleted before the operator: its own control plane, since no other test could go on afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.cluster.control_plane import ControlPlane
from tests.apiserver.client import Refused
from tests.apiserver.operator.site import CRD_PATH, Lane, Site, eventually, path


@pytest.fixture
def own_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("crd-site")
    audit_log = directory / "audit.log"
    with ControlPlane(directory / "plane", ["namespace-controller"], audit_log) as plane:
        made = Site(plane, directory, audit_log)
        try:
            yield made
        finally:
            made.close()


def test_crd_deleted_first_leaves_no_stuck_finalizer_and_nothing_behind(own_site: Site) -> None:
    """And once it is installed again, the same operator goes on."""
    lane = Lane(own_site)
    operator = own_site.operator(lane.namespaces).start()
    lane.apply()
    lane.synced(2)
    crd = f"{CRD_PATH}/pooleddatabases.poolkeeper.io"
    own_site.api.delete(crd)

    def gone() -> bool:
        try:
            own_site.api.get(crd)
        except Refused as refusal:
            return refusal.code == 404
        return False

    eventually(gone, 30, every=0.2)
    for namespace in lane.namespaces:
        names = [obj["metadata"]["name"] for obj in own_site.api.get(path("Secret", namespace))["items"]]
        assert names in ([], ["shop-owner"])
        for kind in ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"):
            assert own_site.api.get(path(kind, namespace))["items"] == []
    own_site.install_crd()
    lane.apply()
    lane.synced(2, seconds=60)
    assert operator.running, operator.said()[-3000:]
