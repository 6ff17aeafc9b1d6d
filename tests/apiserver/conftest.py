"""A real API server for the tests beside this file: etcd and kube-apiserver as plain processes."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster.control_plane import ControlPlane
from tests.apiserver.client import Api, Refused

CRD = Path(__file__).parents[2] / "crds" / "pooleddatabases.yaml"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd and the API server alone: no scheduler, no controllers, no operator."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as plane:
        yield plane


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> Api:
    """An administrator's access, with the CRD installed."""
    api = Api(control_plane.kubeconfig)
    crd = yaml.safe_load(CRD.read_text())
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
    api.apply(path, crd)
    deadline = time.monotonic() + 30
    while not _served(api, crd):
        assert time.monotonic() < deadline, "the API server does not serve the CRD's resource"
        time.sleep(0.1)
    return api


def _served(api: Api, crd: dict[str, Any]) -> bool:
    spec = crd["spec"]
    try:
        api.get(f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}")
    except Refused as refusal:
        if refusal.code != 404:
            raise
        return False
    return True


@pytest.fixture
def namespace(api: Api) -> str:
    """A namespace that no other test uses."""
    name = f"test-{next(_numbers)}"
    api.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name
