"""A real API server for the tests beside this file: etcd and kube-apiserver as plain processes, nothing mocked."""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from kubernetes import config

from e2e.cluster.control_plane import ControlPlane

CRD = Path(__file__).parents[2] / "crds" / "pooleddatabases.yaml"
REQUEST_TIMEOUT_S = 30

_numbers = itertools.count(1)


class Refused(Exception):  # noqa: N818 - an answer of the API server, not a fault of the test
    """The API server said no: its status code and its message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Api:
    """The API server as a user with a kubeconfig sees it. Dicts in, dicts out; a refusal raises Refused."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._client = config.new_client_from_config(str(kubeconfig))

    def request(
        self,
        verb: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        **query: str,
    ) -> dict[str, Any]:
        """One HTTP request."""
        answer = self._client.call_api(
            verb,
            f"{self._client.configuration.host}{path}?{urlencode(query)}",
            {"Content-Type": content_type, "Accept": "application/json"},
            body,
            _request_timeout=REQUEST_TIMEOUT_S,
        )
        content = json.loads(answer.read())
        if answer.status >= 400:
            raise Refused(answer.status, content["message"])
        return content

    def get(self, path: str) -> dict[str, Any]:
        return self.request("GET", path)

    def create(self, path: str, body: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        """POST `body` to the collection `path`; with dry_run everything but the storing is done."""
        return self.request("POST", path, body, **({"dryRun": "All"} if dry_run else {}))

    def apply(self, path: str, body: dict[str, Any], manager: str = "test") -> dict[str, Any]:
        """Server-side apply, forced."""
        return self.request(
            "PATCH", path, body, content_type="application/apply-patch+yaml", fieldManager=manager, force="true"
        )

    def merge(self, path: str, patch: dict[str, Any]) -> dict[str, Any]:
        """JSON merge patch."""
        return self.request("PATCH", path, patch, content_type="application/merge-patch+json")

    def delete(self, path: str) -> dict[str, Any]:
        return self.request("DELETE", path)


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
        assert refusal.code == 404
        return False
    return True


@pytest.fixture
def namespace(api: Api) -> str:
    """A namespace that no other test uses."""
    name = f"test-{next(_numbers)}"
    api.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name
