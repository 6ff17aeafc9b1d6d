"""What a PooledDatabase may choose for the keepers in its own namespace, and in those of others."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper import names
from poolkeeper.keeper import foreign
from poolkeeper.keeper import secret as keeper_secret
from poolkeeper.keeper.template import KeeperTemplate, parse
from poolkeeper.names import KEEPER_ANNOTATION
from poolkeeper.observed.namespaces import Namespace
from poolkeeper.observed.refs import Ref
from poolkeeper.settings import Settings
from poolkeeper.spec.parse import PooledDatabase
from poolkeeper.spec.parse import parse as parse_spec
from poolkeeper.spec.values import quantity
from tests import specs
from tests.fast.plan.status.test_keepers import app
from tests.fast.worlds import KEY, SETTINGS, Simulation, ready_pod

CHART = Settings("poolkeeper", "pod", keeper_image="chart:1", keeper_image_pull_policy="Always")


def database(**keeper: Any) -> PooledDatabase:
    return parse_spec(specs.body({**specs.MINIMAL, "keeper": keeper}))


def template(resource: PooledDatabase, namespace: str, settings: Settings = CHART) -> KeeperTemplate:
    made = keeper_secret.template(resource, "shop", settings)
    return foreign.bounded(made, resource, namespace, settings)


def restrictions(resource: PooledDatabase, *namespaces: str, settings: Settings = CHART) -> dict[str, str]:
    made = keeper_secret.template(resource, "shop", settings)
    return dict(foreign.restrictions(made, resource, namespaces, settings))


IMAGES = [
    ("evil:1", (), False),
    ("chart:1", (), True),
    ("chart:10", (), False),
    ("r.example/p:1", ("r.example/p:1",), True),
    ("r.example/p:10", ("r.example/p:1",), False),
    ("r.example/p:2", ("r.example/p:*",), True),
    ("r.example/p@sha256:00", ("r.example/p:*",), False),
    ("r.example.evil/p:1", ("r.example/*",), False),
    ("r.example/a/b:1", ("r.example/*",), True),
    ("anything:1", ("*",), True),
]


@pytest.mark.parametrize(("image", "allowed", "runs"), IMAGES)
def test_in_another_namespace_only_the_charts_images_run(
    image: str, allowed: tuple[str, ...], runs: bool
) -> None:
    settings = replace(CHART, keeper_allowed_images=allowed)
    resource = database(image=image)
    assert template(resource, resource.namespace, settings).image == image
    assert template(resource, "web", settings).image == (image if runs else "chart:1")
    said = restrictions(resource, resource.namespace, "web", settings=settings)
    assert said.keys() == (set() if runs else {"ImageNotAllowed"})


def test_the_pull_policy_is_the_charts_everywhere() -> None:
    resource = database(image="evil:1")
    assert {template(resource, name).image_pull_policy for name in (resource.namespace, "web")} == {"Always"}


AMOUNTS = [
    ({"limits": {"cpu": "500m", "memory": "128Mi"}}, None),
    ({"limits": {"cpu": "1000m", "memory": "256Mi"}}, None),
    ({"requests": {"cpu": "8"}}, {"requests": {"cpu": "1"}}),
    ({"limits": {"memory": "1Ti"}, "requests": {"memory": "1Gi", "cpu": "10m"}},
     {"limits": {"memory": "256Mi"}, "requests": {"memory": "256Mi", "cpu": "10m"}}),
    ({"limits": {"nvidia.com/gpu": "1"}}, {}),
    ({"limits": {"ephemeral-storage": "1Ti", "memory": "64Mi"}}, {"limits": {"memory": "64Mi"}}),
    ({"limits": {"hugepages-2Mi": "64Mi"}, "requests": {"cpu": "1e3"}}, {"requests": {"cpu": "1"}}),
]  # fmt: skip


@pytest.mark.parametrize(("chosen", "given_instead"), AMOUNTS)
def test_in_another_namespace_resources_are_bounded(chosen: dict[str, Any], given_instead: Any) -> None:
    resource = database(resources=chosen)
    assert template(resource, resource.namespace).resources == chosen
    expected = chosen if given_instead is None else given_instead or None
    assert template(resource, "web").resources == expected
    said = restrictions(resource, "web")
    assert said.keys() == (set() if given_instead is None else {"ResourcesBounded"})


AMOUNT = st.builds(
    "{}{}".format, st.integers(0, 10**6), st.sampled_from(["", "m", "k", "Ki", "Mi", "Gi", "Ti"])
)
RESOURCES = st.dictionaries(st.sampled_from(["cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"]), AMOUNT)


@given(requests=RESOURCES, limits=RESOURCES)
def test_no_resources_go_beyond_the_most(requests: dict[str, str], limits: dict[str, str]) -> None:
    chosen = {"requests": requests, "limits": limits}
    made = KeeperTemplate("chart:1", "Always", chosen, "shop", "shop.session")
    found = foreign.bounded(made, database(), "web", CHART).resources or {}
    for amounts in found.values():
        for name, amount in amounts.items():
            limit, got = quantity({"cpu": "1", "memory": "256Mi"}[name]), quantity(amount)
            assert limit is not None
            assert got is not None
            assert got <= limit


def test_the_message_names_the_namespace_the_image_and_both_remedies() -> None:
    resource = database(image="evil:1", resources={"limits": {"cpu": "8"}})
    said = restrictions(resource, "web", "shop", "web", resource.namespace)
    text = said["ImageNotAllowed"]
    for words in ("shop and 1 more", "evil:1", "chart:1", "keeper.allowedImages", "remove spec.keeper.image"):
        assert words in text
    assert "keeper.maxResources" in said["ResourcesBounded"]
    assert restrictions(resource, resource.namespace) == {}


# In the whole


def stored(cluster: Simulation, namespace: str) -> KeeperTemplate:
    secret = cluster.objects[Ref("Secret", namespace, names.keeper_name("database"))]
    return parse(secret["metadata"]["annotations"][KEEPER_ANNOTATION])


@pytest.fixture
def cluster() -> Simulation:
    """A PooledDatabase with keepers in its own namespace and in another one, and an image of its own."""
    made = Simulation(pods=(ready_pod(1), ready_pod(2)))
    made.namespaces = {**made.namespaces, KEY.namespace: Namespace({}, "", terminating=False)}
    consumers = [{"namespace": name, "secretName": "database"} for name in ("web", KEY.namespace)]
    resources = {"limits": {"memory": "8Gi"}}
    made.edit(consumers=consumers, keeper={"image": "evil:1", "resources": resources, "rollout": "Workload"})
    made.settle()
    return made


def test_a_secret_describes_what_its_own_namespace_gets(cluster: Simulation) -> None:
    own, other = stored(cluster, KEY.namespace), stored(cluster, "web")
    assert (own.image, own.resources) == ("evil:1", {"limits": {"memory": "8Gi"}})
    assert (other.image, other.resources) == (SETTINGS.keeper_image, {"limits": {"memory": "256Mi"}})
    assert "evil" not in json.dumps(cluster.objects[Ref("Secret", "web", "database-keeper")])


def test_the_condition_says_what_is_not_allowed_and_nothing_stops(cluster: Simulation) -> None:
    cluster.app_pods = (app(1, image=SETTINGS.keeper_image),)
    cluster.settle()
    cluster.step()
    found = cluster.condition("KeepersCurrent")
    assert (found["status"], found["reason"]) == ("False", "ImageNotAllowed")
    assert "evil:1" in found["message"]
    assert "keeper.maxResources" in found["message"]
    assert cluster.condition("Ready")["status"] == "True"
    assert cluster.plan().restart is None
    assert cluster.plan().look == ()


def test_a_keeper_that_runs_what_is_no_longer_allowed_keeps_running_and_is_reported(
    cluster: Simulation,
) -> None:
    cluster.edit(keeper={"image": "evil:1"})
    cluster.app_pods = (app(1, image="evil:1"),)
    cluster.settle()
    cluster.step()
    found = cluster.condition("KeepersCurrent")
    assert (found["status"], found["reason"]) == ("False", "ImageOutdated")
    assert f"another image than {SETTINGS.keeper_image}" in found["message"]
