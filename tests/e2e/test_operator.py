"""The operator is not in the data path: killed, upgraded or absent, what runs goes on."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from e2e import install, kube
from e2e.install import NAMESPACE, RELEASE
from e2e.kube import kubectl
from tests.e2e.client import Agent, Load
from tests.e2e.kit import Place, images_in_use, setting, timed, wait_until

ONE = [{"one": "1"}]
SELECTOR = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=operator"
TAKEOVER_SECONDS = 25.0  # a new pod has to start as well where both were killed


@pytest.fixture(scope="module")
def shop(module_place: Place) -> Place:
    module_place.serve()
    return module_place


@pytest.fixture
def two_operators() -> Iterator[None]:
    """Leaves the operator as it was found."""
    yield
    kubectl("-n", NAMESPACE, "scale", f"deployment/{RELEASE}", "--replicas=2")
    install.wait_for_rollout()


@pytest.mark.usefixtures("two_operators")
@pytest.mark.parametrize("who", ["leader", "both"])
def test_operator_killed_leaves_poolers_and_queries_alone(shop: Place, agent: Agent, who: str) -> None:
    before = shop.identities()
    leader = lease_holder()
    victims = [leader] if who == "leader" else operator_pods()
    with Load(agent, shop.url()) as load:
        kubectl("-n", NAMESPACE, "delete", "pod", *victims, "--force", "--grace-period=0")
        size = 40 + secrets.randbelow(50)
        shop.patch({"pooler": {"parameters": {"stats_period": size}}})
        with timed(f"a change is applied although {who} was killed", at_most=TAKEOVER_SECONDS):
            applied_by_successor(shop)
        load.more(50)
    assert load.figures["failed"] == 0, load.figures
    assert shop.identities() == before


@pytest.mark.usefixtures("two_operators")
def test_two_operators_one_works_and_hands_over_at_once_on_a_clean_stop(shop: Place) -> None:
    assert len(operator_pods()) == 2
    leader = lease_holder()
    kubectl("-n", NAMESPACE, "delete", "pod", leader, "--wait=false")
    with timed("the other one leads", at_most=10):
        wait_until(lambda: lease_holder() not in ("", leader), 20, "another leader")


@pytest.mark.usefixtures("two_operators")
def test_deleted_while_the_operator_is_down_completes_on_its_return(place: Place, agent: Agent) -> None:
    place.serve(place.spec(replicas=1))
    stop_operator()
    kubectl("-n", place.data, "delete", "pooldb", "shop", "--wait=false")
    url = place.url()
    assert agent.query(url, "SELECT 1 AS one") == ONE, "without the operator what runs goes on"
    kubectl("-n", NAMESPACE, "scale", f"deployment/{RELEASE}", "--replicas=2")
    wait_until(lambda: kube.get("pooldb", place.data, "shop") is None, 60, "the resource to go")
    assert place.secret() == {}


@pytest.mark.usefixtures("two_operators")
def test_logins_lost_while_the_operator_is_down_are_made_anew(place: Place, agent: Agent) -> None:
    """Nobody can tell the running poolers of a new console login then, so they are rolled."""
    place.serve()
    before = place.identities()
    stop_operator()
    kubectl("-n", place.data, "delete", "secret", "shop-pooler-logins")
    kubectl("-n", NAMESPACE, "scale", f"deployment/{RELEASE}", "--replicas=2")
    wait_until(lambda: kube.get("secret", place.data, "shop-pooler-logins"), 60, "new logins")
    wait_until(lambda: not before.keys() & place.identities().keys(), 60, "new poolers")
    place.wait_settled()
    assert agent.query_soon(place.url(), "SELECT 1 AS one", within=10) == ONE
    with place.consoles() as consoles:
        assert len(consoles) == 2


def test_helm_upgrade_with_other_values_leaves_poolers_alone(shop: Place, agent: Agent) -> None:
    before = shop.identities()
    operators = operator_pods()
    references = images_in_use()
    with Load(agent, shop.url()) as load:
        try:
            install.install(references, "logLevel=DEBUG", "resources.requests.cpu=40m")
            install.wait_for_rollout()
            wait_until(lambda: not set(operators) & set(operator_pods()), 30, "new operator pods")
            # They have looked at everything, and the poolers are as they were.
            shop.patch({"pooler": {"parameters": {"stats_period": 31}}})
            applied_by_successor(shop)
        finally:
            install.install(references)
            install.wait_for_rollout()
        load.more(50)
    assert load.figures["failed"] == 0, load.figures
    assert shop.identities() == before


def applied_by_successor(shop: Place) -> None:
    shop.wait_condition("ConfigApplied", "True", "Applied", within=60)
    wanted = str(shop.resource()["spec"]["pooler"]["parameters"]["stats_period"])
    with shop.consoles() as consoles:
        for console in consoles:
            assert setting(console, "stats_period") == wanted


def operator_pods() -> list[str]:
    pods = kube.items("pods", NAMESPACE, SELECTOR)
    return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def lease_holder() -> str:
    lease = kube.get("lease", NAMESPACE, RELEASE)
    return str(lease["spec"].get("holderIdentity", "")) if lease else ""


def stop_operator() -> None:
    kubectl("-n", NAMESPACE, "scale", f"deployment/{RELEASE}", "--replicas=0")
    wait_until(lambda: not kube.items("pods", NAMESPACE, SELECTOR), 60, "no operator pods")
