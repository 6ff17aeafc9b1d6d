"""From `kubectl apply` to the app's first query through the pooler, the way a user takes."""

from __future__ import annotations

import json
import time

from e2e import kube
from e2e.cluster.shell import ClusterError
from e2e.demo.shop import MANIFESTS
from e2e.images.catalog import recipe
from e2e.kube import kubectl
from tests.e2e.kit import Place, wait_until

FIRST_QUERY_SECONDS = 10.0


def test_app_answers_through_the_pooler_soon_after_the_apply(place: Place) -> None:
    app = (MANIFESTS / "40-app.yaml").read_text().replace("namespace: web", f"namespace: {place.web}")
    app = kube.with_images(app, {"poolkeeper/demo-app:1": recipe("demo-app").reference})
    proxied = f"/api/v1/namespaces/{place.web}/services/app:http/proxy/"

    def answer() -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads(kubectl("get", "--raw", proxied, timeout=15))
        except ClusterError:
            return {}
        return found

    began = time.monotonic()
    kube.apply(f"{json.dumps(place.body())}\n---\n{app}")
    print(f"applied: {time.monotonic() - began:.2f} s")
    place.wait_ready()
    print(f"kubectl wait --for=condition=Ready: {time.monotonic() - began:.2f} s")
    first = wait_until(answer, 60, "the app's first answer")
    took = time.monotonic() - began
    print(f"first query by the app: {took:.2f} s")
    assert first["user"] == place.role
    assert first["application_name"] == f"{place.web}/database"
    with place.consoles() as consoles:
        servers = [row for console in consoles for row in console.execute("SHOW SERVERS")]
    assert str(first["pid"]) in {row["remote_pid"] for row in servers}
    assert took <= FIRST_QUERY_SECONDS
