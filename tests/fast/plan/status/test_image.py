"""The condition PoolerImage: what it says of the versions that poolers and keepers show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from poolkeeper.engine.known_faults import KNOWN
from poolkeeper.observed.apps import AppPod, Keeper
from tests.fast.worlds import OWNER_SECRET, Simulation, new_pod, ready_pod

OURS, STOCK, FAULTY = "PgBouncer 1.24.1+poolkeeper.4", "PgBouncer 1.24.1", "PgBouncer 1.26.1"
CA = {"ca.crt": b"-----BEGIN CERTIFICATE-----\n"}


def settled(**changes: Any) -> Simulation:
    spec = changes.pop("spec", {})
    cluster = Simulation(pods=(ready_pod(1), ready_pod(2)), **changes)
    cluster.edit(**spec)
    cluster.settle()
    return cluster


def shown(cluster: Simulation) -> tuple[str, str]:
    condition = cluster.condition("PoolerImage")
    return condition["status"], condition["reason"]


def message(cluster: Simulation) -> str:
    text: str = cluster.condition("PoolerImage")["message"]
    return text


def with_keeper(version: str, **changes: Any) -> Simulation:
    keeper = Keeper("keeper", "database", "image:1", "Trust", 6432, running=True, restarts=0, generation="")
    pod = AppPod("web", "app-1", "uid-1", "10.1.0.1", False, (keeper,), ())
    return settled(app_pods=(pod,), versions={pod.process(keeper): version}, **changes)


def test_the_image_that_poolkeeper_ships_has_no_known_fault() -> None:
    cluster = settled()
    assert shown(cluster) == ("True", "NoKnownFault")
    assert OURS in message(cluster)


def test_a_version_with_faults_is_named_with_each_fault_its_effect_and_the_remedy() -> None:
    cluster = settled(version=FAULTY)
    assert shown(cluster) == ("False", "KnownFault")
    assert cluster.condition("Ready")["status"] == "True"
    text = message(cluster)
    assert f"pooler pod shop-pooler-1 runs {FAULTY}" in text
    for name in ("search-path-mixed", "changed-columns", "startup-parameters-lost"):
        assert f"{name}: {KNOWN[name].effect}" in text
    others = ("partial-message-mixed", "copy-answers-mixed", "copy-early-data-wedge", "reload-crash-login")
    assert f"; also {', '.join(others)}, " in text
    assert "reload-crash-tls" not in text, "the upstream's tls mode is disable"
    assert "set the chart's pooler.image" in text
    assert "accept them in spec.pooler.allowKnownFaults" in text
    assert "a distribution" not in text


def test_an_image_of_the_users_own_is_to_be_removed() -> None:
    pods = tuple(replace(ready_pod(number), image="own:1") for number in (1, 2))
    cluster = Simulation(pods=pods, version=STOCK)
    cluster.edit(pooler={"image": "own:1"})
    cluster.settle()
    assert shown(cluster) == ("False", "KnownFault")
    assert "remove spec.pooler.image, or accept" in message(cluster)
    assert "a distribution may have fixed the CVEs under the same version" in message(cluster)


def test_the_worst_of_several_versions_is_shown() -> None:
    cluster = settled(versions={"pod-2": FAULTY})
    assert shown(cluster) == ("False", "KnownFault")
    assert "shop-pooler-2" in message(cluster)


@pytest.mark.parametrize(("server", "counts"), [(170002, True), (180001, False)])
def test_a_fault_that_hangs_on_the_servers_version_counts_there_only(server: int, counts: bool) -> None:
    allowed = [name for name in KNOWN if name != "search-path-mixed"]
    cluster = settled(version=FAULTY, server_version=server, spec={"pooler": {"allowKnownFaults": allowed}})
    assert shown(cluster) == (("False", "KnownFault") if counts else ("True", "FaultsAllowed"))


def test_without_the_servers_version_it_is_not_decided() -> None:
    allowed = [name for name in KNOWN if name != "search-path-mixed"]
    cluster = settled(version=FAULTY, server_version=None, spec={"pooler": {"allowKnownFaults": allowed}})
    assert shown(cluster) == ("Unknown", "ServerUnknown")
    assert "search-path-mixed depends on the server's version" in message(cluster)


@pytest.mark.parametrize(("mode", "counts"), [("require", True), ("verify-ca", True), ("verify-full", False)])
def test_the_mode_of_tls_to_the_upstream_counts(mode: str, counts: bool) -> None:
    upstream = {
        "host": "pg.data.svc",
        "database": "shop",
        "credentialsSecretRef": {"name": "shop-owner"},
        "tls": {"mode": mode, "caSecretRef": {"name": "shop-owner"}},
    }
    secrets = {"shop-owner": {**OWNER_SECRET, **CA}}
    cluster = settled(version=FAULTY, secrets=secrets, spec={"upstream": upstream})
    assert ("reload-crash-tls" in message(cluster)) == counts


def test_accepted_faults_make_it_true_and_are_listed_and_others_count_on() -> None:
    some = [name for name in KNOWN if name != "cached-login-error"]
    cluster = settled(version=FAULTY, spec={"pooler": {"allowKnownFaults": some}})
    assert shown(cluster) == ("False", "KnownFault")
    assert "cached-login-error" in message(cluster)
    assert "search-path-mixed" not in message(cluster)
    assert "also" not in message(cluster)
    cluster.edit(pooler={"allowKnownFaults": [*KNOWN]})
    cluster.settle()
    assert shown(cluster) == ("True", "FaultsAllowed")
    assert f"{FAULTY}; spec.pooler.allowKnownFaults accepts its faults search-path-mixed, " in message(cluster)
    assert "CVE-2026-6664" not in message(cluster), "it does not apply"


def test_a_newer_version_has_no_known_fault_and_is_said_to_be_untried() -> None:
    cluster = settled(version="PgBouncer 1.27.0")
    assert shown(cluster) == ("True", "NoKnownFault")
    assert "PgBouncer 1.27.0 is newer than 1.26.1" in message(cluster)


def test_what_is_no_version_of_pgbouncer_is_quoted() -> None:
    cluster = settled(versions={"pod-2": "pgcat\n1.2"})
    assert shown(cluster) == ("Unknown", "UnknownVersion")
    assert "shop-pooler-2 calls itself 'pgcat\\n1.2'" in message(cluster)


def test_it_is_unknown_while_no_console_has_answered() -> None:
    cluster = settled(version="")
    assert shown(cluster) == ("Unknown", "NoConsole")
    cluster = Simulation(pods=())
    cluster.settle()
    assert shown(cluster) == ("Unknown", "NoConsole")


def test_a_pod_that_is_about_to_go_does_not_count() -> None:
    cluster = settled(versions={"pod-2": FAULTY})
    cluster.pods = (cluster.pods[0], replace(cluster.pods[1], terminating=True))
    cluster.settle()
    assert shown(cluster) == ("True", "NoKnownFault")


def test_a_pod_that_was_not_asked_yet_leaves_what_was_last_known() -> None:
    cluster = settled(versions={"pod-2": FAULTY})
    waiting = replace(new_pod(3), running=True)
    cluster.pods = (cluster.pods[0], waiting)
    world = replace(cluster.world(), shown={key: cluster.shown[key] for key in ("pod-1",)})
    assert world.resource is not None
    from poolkeeper.plan.status.image import pooler_image
    from poolkeeper.plan.wanted import want
    from tests.fast.worlds import NOW, SETTINGS

    database = world.resource.spec
    condition = pooler_image(database, want(database, world, SETTINGS, NOW), world)  # type: ignore[arg-type]
    assert (condition.status, condition.reason) == ("False", "KnownFault")


@pytest.mark.parametrize(
    ("keeper", "remedy"),
    [
        ({}, "set the chart's keeper.image to the image that Poolkeeper ships and restart the workload"),
        ({"image": "own:1"}, "remove spec.keeper.image and restart the workload"),
    ],
)
def test_a_keeper_counts_too_and_its_workload_is_to_be_restarted(keeper: dict[str, str], remedy: str) -> None:
    cluster = with_keeper(FAULTY, spec={"keeper": keeper})
    assert shown(cluster) == ("False", "KnownFault")
    assert f"keeper pod web/app-1 runs {FAULTY}" in message(cluster)
    assert remedy in message(cluster)
    assert shown(with_keeper(OURS)) == ("True", "NoKnownFault")


@pytest.mark.parametrize("version", [STOCK, FAULTY, "PgBouncer 1.26.0", "PgBouncer 1.19.0"])
def test_the_message_is_never_cut(version: str) -> None:
    upstream = {
        "host": "pg.data.svc",
        "database": "shop",
        "credentialsSecretRef": {"name": "shop-owner"},
        "tls": {"mode": "require"},
    }
    cluster = settled(version=version, spec={"upstream": upstream})
    assert "reload-crash-tls" in message(cluster)
    assert not message(cluster).endswith("…")
