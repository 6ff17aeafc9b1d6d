"""Names at the limits of what Kubernetes takes."""

from __future__ import annotations

import json

from e2e import kube
from e2e.kube import kubectl
from tests.e2e.client import Agent
from tests.e2e.kit import Place


def test_names_so_long_that_child_names_overflow_are_cut_without_collision(place: Place, agent: Agent) -> None:
    common = "a-very-long-name-" * 13
    long_names = [f"{common}{end}" for end in ("one", "two", "three")]
    for index, name in enumerate(long_names):
        spec = place.spec(replicas=1) | {"consumers": [{"namespace": place.web, "secretName": f"db-{index}"}]}
        body = place.body(spec)
        kube.apply(json.dumps(body | {"metadata": {"namespace": place.data, "name": name}}))
    for name in long_names:
        words = ("wait", "--for=condition=Ready", f"pooldb/{name}", "--timeout=60s")
        kubectl("-n", place.data, *words, timeout=70)
    urls = [place.secret(f"db-{index}")["DATABASE_URL"] for index in range(len(long_names))]
    assert len({url.partition("@")[2].partition(":")[0] for url in urls}) == len(long_names)
    for index, url in enumerate(urls):
        query = "SELECT current_setting('application_name') AS name"
        assert agent.query_soon(url, query, within=10) == [{"name": f"{place.web}/db-{index}"}]
