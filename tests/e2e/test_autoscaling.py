"""The cluster's own autoscaler sets the number of poolers; for its bounds it needs no metrics."""

from __future__ import annotations

from e2e.kube import kubectl
from tests.e2e.client import Agent
from tests.e2e.kit import Place, timed, wait_until

ONE = [{"one": "1"}]
SCALED_WITHIN = 60.0
"""Seconds. The autoscalers' controller looks every 15, then pods have to start or to leave."""


def test_the_autoscaler_moves_the_poolers_into_its_bounds_and_clients_are_served(
    place: Place, agent: Agent
) -> None:
    spec = place.spec()
    url = place.serve(spec)
    assert poolers(place) == (2, 2)
    for least, most, expected in ((3, 4, 3), (1, 2, 2)):
        spec["pooler"]["autoscaling"] = {"min": least, "max": most}
        place.apply(spec)  # without replicas, which are the autoscaler's to choose
        with timed(f"{expected} poolers between {least} and {most}", at_most=SCALED_WITHIN):
            wait_until(
                lambda: poolers(place) == (expected, expected),  # noqa: B023
                SCALED_WITHIN,
                f"{expected} poolers",
            )
        place.wait_settled()
        assert agent.query(url, "SELECT 1 AS one") == ONE
    del spec["pooler"]["autoscaling"]
    place.apply(spec)
    wait_until(lambda: not autoscalers(place), 10, "the autoscaler to go")
    assert poolers(place) == (2, 2)


def poolers(place: Place) -> tuple[int, int]:
    """Wanted and ready ones."""
    body = place.resource()
    return body["spec"]["pooler"]["replicas"], body["status"].get("readyReplicas", 0)


def autoscalers(place: Place) -> str:
    return kubectl("-n", place.data, "get", "horizontalpodautoscalers", "-o", "name").strip()
