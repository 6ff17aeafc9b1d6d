"""`reload`: an edit of spec.pooler.parameters, until the last of 10 pooler pods shows it on its console.

On the current cluster, with the operator that `make install` left there. The observer is a pod beside the
poolers: one connection to every console, asked in turn, so that it takes little from them.
"""

from __future__ import annotations

import random
import time
from typing import Any

from kubernetes import client, config

from e2e.bench.figures import Figure, percentile
from e2e.bench.site import DATA, site
from e2e.cluster.paths import KUBECONFIG
from e2e.cluster.shell import ClusterError, say
from tests.e2e.kit import Place

PODS = 10
EDITS = 40
PARAMETER = "stats_period"
LIMIT_SECONDS = 30.0
READY_SECONDS = 180.0


def run() -> list[Figure]:
    """Everything; takes about two minutes once the images are loaded."""
    with site() as place:
        place.apply(place.spec(replicas=PODS, resources={"requests": {"cpu": "10m", "memory": "16Mi"}}))
        say(f"waiting for {PODS} pooler pods")
        place.wait_ready(READY_SECONDS)
        place.wait_settled(READY_SECONDS)
        took = _measure(place)
    return [
        Figure("reload_p50_s", percentile(took, 50), "s", 0.8),
        Figure("reload_p99_s", percentile(took, 99), "s", 1.5),
        Figure("reload_max_s", max(took), "s"),
        Figure("reload_edits", len(took), f"edits over {PODS} pods"),
    ]


def _measure(place: Place) -> list[float]:
    """Seconds from just before each edit's request until the last console has shown it."""
    resources = client.CustomObjectsApi(config.new_client_from_config(str(KUBECONFIG)))
    before = place.identities()
    took = []
    with place.consoles() as consoles:
        names = [console.name for console in consoles]
        if len(names) != PODS:
            raise ClusterError(f"{len(names)} pooler pods instead of {PODS}")
        for number in range(EDITS):
            value = 21 + number
            # Not in step with anything that the cluster does every second.
            time.sleep(0.5 + random.random())  # noqa: S311
            shown = place.agent.start(
                "await_setting", sessions=names, name=PARAMETER, value=str(value), seconds=LIMIT_SECONDS
            )
            began = time.monotonic()
            _edit(resources, {PARAMETER: value})
            shown.result(2 * LIMIT_SECONDS)
            took.append(time.monotonic() - began)
    if place.identities() != before:
        raise ClusterError("pooler pods were restarted meanwhile")
    return took


def _edit(resources: client.CustomObjectsApi, parameters: dict[str, Any]) -> None:
    resources.patch_namespaced_custom_object(
        "poolkeeper.io",
        "v1alpha1",
        DATA,
        "pooleddatabases",
        "shop",
        {"spec": {"pooler": {"parameters": parameters}}},
    )
