"""A parameter that some versions of PgBouncer lack reaches the file only where all that read it know it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolkeeper.engine.parameter_table import OLDEST, TABLE
from poolkeeper.observed.poolers import Pod
from poolkeeper.pgbouncer.ini import DEFAULTS, LATER_DEFAULTS
from poolkeeper.pgbouncer.keeper_configuration import SHARED_PARAMETERS
from poolkeeper.spec.parameters import PARAMETERS
from tests.fast.worlds import Simulation, new_pod, ready_pod

OWN, OTHER = "own:1", "other:1"
NEW, MIDDLE, OLD = "PgBouncer 1.26.1", "PgBouncer 1.25.2", "PgBouncer 1.24.1"
NEWER = {"transaction_timeout": 600, "pool_idle_timeout": 900}


def of(image: str, pod: Pod) -> Pod:
    return replace(pod, image=image)


def asking(*pods: Pod, image: str = OWN, version: str = NEW) -> Simulation:
    """A PooledDatabase that asks for newer parameters, settled."""
    cluster = Simulation(pods=pods, version=version)
    cluster.edit(pooler={"image": image, "parameters": NEWER})
    cluster.settle()
    return cluster


def held(cluster: Simulation) -> set[str]:
    """The newer settings in the file."""
    names = {parameter.name for parameter in TABLE if parameter.since > OLDEST}
    text = cluster.values("data", "shop-pooler-config")["pgbouncer.ini"]
    return names & {line.split(" =")[0] for line in text.splitlines()}


def applied(cluster: Simulation) -> tuple[str, str]:
    condition = cluster.condition("ConfigApplied")
    return condition["status"], condition["reason"]


EVERYTHING = NEWER.keys() | LATER_DEFAULTS.keys()


def test_a_parameter_gets_into_the_file_once_a_pooler_shows_that_it_knows_it() -> None:
    cluster = asking()
    assert held(cluster) == set()
    cluster.pods = (of(OWN, ready_pod(1)), of(OWN, ready_pod(2)))
    steps = cluster.step()
    while not steps.reload:
        steps = cluster.step()
        assert held(cluster) == set()
    cluster.settle()
    assert held(cluster) == EVERYTHING
    assert applied(cluster) == ("True", "Applied")
    assert cluster.settle().status is None


@pytest.mark.parametrize(
    ("version", "names"), [(MIDDLE, {"transaction_timeout", "server_tls13_ciphers"}), (OLD, set())]
)
def test_one_that_the_version_lacks_stays_out_and_is_reported(version: str, names: set[str]) -> None:
    cluster = asking(of(OWN, ready_pod(1)), version=version)
    assert held(cluster) == names
    assert applied(cluster) == ("False", "ParameterWithheld")
    message = cluster.condition("ConfigApplied")["message"]
    assert f"pool_idle_timeout needs PgBouncer 1.26, and pod shop-pooler-1 runs {version}; remove it" in message
    assert "server_tls13_ciphers" not in message, "nobody asked for it"


def test_it_leaves_the_file_in_the_step_that_brings_another_image() -> None:
    cluster = asking(of(OWN, ready_pod(1)), of(OWN, ready_pod(2)))
    cluster.edit(pooler={"image": OTHER, "parameters": NEWER})
    steps = cluster.step()
    kinds = {obj["kind"] for obj in steps.apply}
    assert kinds >= {"Secret", "Deployment"}
    assert held(cluster) == set()


def test_it_waits_until_the_last_pod_of_another_image_has_gone() -> None:
    cluster = asking(of(OTHER, ready_pod(1)), of(OWN, ready_pod(2)))
    assert held(cluster) == set()
    assert "not every pooler is of image own:1 yet" in cluster.condition("ConfigApplied")["message"]
    cluster.pods = (replace(cluster.pods[0], terminating=True), cluster.pods[1])
    cluster.settle()
    assert held(cluster) == EVERYTHING, "kubelet brings a pod that goes no files any more"


def test_an_operator_that_restarts_leaves_the_file_as_it_is() -> None:
    cluster = asking(of(OWN, ready_pod(1)))
    cluster.shown.clear()
    steps = cluster.step()
    assert not steps.apply
    assert held(cluster) == EVERYTHING


def test_a_new_pod_of_the_same_image_starts_with_it() -> None:
    cluster = asking(of(OWN, ready_pod(1)))
    cluster.pods = (*cluster.pods, of(OWN, replace(new_pod(2), running=False)))
    cluster.settle()
    assert held(cluster) == EVERYTHING


def test_a_pod_that_turns_out_older_takes_it_out_again() -> None:
    cluster = asking(of(OWN, ready_pod(1)))
    cluster.versions["pod-2"] = OLD
    cluster.pods = (*cluster.pods, of(OWN, ready_pod(2)))
    cluster.settle()
    assert held(cluster) == set()


def test_without_pods_the_next_image_is_not_known() -> None:
    cluster = asking(of(OWN, ready_pod(1)))
    cluster.pods = ()
    cluster.settle()
    assert held(cluster) == set()


def test_the_operators_own_image_gets_what_it_knows_and_nothing_is_withheld() -> None:
    cluster = Simulation(pods=(ready_pod(1),), version=OLD)
    cluster.edit(pooler={"parameters": {"stats_period": 7}})
    cluster.settle()
    assert held(cluster) == set()
    assert applied(cluster) == ("True", "Applied")


def test_keepers_share_only_what_every_version_knows_and_newer_ones_need_no_restart() -> None:
    """Keepers are of another image, which is not asked; and the pods' template holds what needs a restart."""
    newer = {name for name, parameter in PARAMETERS.items() if parameter.since > OLDEST}
    assert not newer & (SHARED_PARAMETERS | DEFAULTS.keys())
    assert newer >= LATER_DEFAULTS.keys()
    assert not [name for name in newer if PARAMETERS[name].restart]
