"""Who may write where: both sides have to agree."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.consumers import consent
from poolkeeper.consumers.consent import Consumer, decide
from poolkeeper.observed.namespaces import Namespace
from poolkeeper.spec.parse import SYSTEM_NAMESPACES, PooledDatabase, parse
from poolkeeper.spec.types import Terms
from tests.fast.worlds import SETTINGS, body


def namespace(accept_from: str = "", *, terminating: bool = False, **labels: str) -> Namespace:
    return Namespace(labels=labels, accept_from=accept_from, terminating=terminating)


def database(*rules: dict[str, Any]) -> PooledDatabase:
    return parse(body(consumers=list(rules)))


@pytest.mark.parametrize("accept_from", ["data", "*", "a,data", " a , data ", "data,", ",data"])
def test_a_namespace_accepts_by_its_annotation(accept_from: str) -> None:
    assert decide("data", namespace(accept_from), "web") is None


@pytest.mark.parametrize("accept_from", ["", "dat", "data2", "a b", "data data", "**", "da*", "a,b", "DATA"])
def test_anything_else_is_no_consent_and_the_message_has_the_command(accept_from: str) -> None:
    verdict = decide("data", namespace(accept_from), "web")
    assert verdict is not None
    reason, message = verdict
    assert reason == "NoConsent"
    assert "kubectl annotate namespace web poolkeeper.io/accept-from=data" in message


def test_within_one_namespace_no_consent_is_needed() -> None:
    assert decide("data", namespace(), "data") is None


@pytest.mark.parametrize("name", sorted(SYSTEM_NAMESPACES))
def test_kubernetes_own_namespaces_are_refused_whatever_they_say(name: str) -> None:
    for known in (namespace("*"), namespace(name), None):
        verdict = decide("data", known, name)
        assert verdict is not None
        assert verdict[0] == "NotAllowed"
    own = decide(name, namespace("*"), name)
    assert own is not None
    assert own[0] == "NotAllowed"


def test_a_missing_and_a_terminating_namespace_get_nothing() -> None:
    missing, ending = decide("data", None, "web"), decide("data", namespace("*", terminating=True), "web")
    assert missing is not None
    assert ending is not None
    assert (missing[0], ending[0]) == ("NamespaceMissing", "NamespaceTerminating")


@given(st.text(alphabet="dat, *x", max_size=12))
def test_only_the_owners_name_or_a_star_between_commas_is_consent(accept_from: str) -> None:
    listed = [item.strip() for item in accept_from.split(",")]
    assert (decide("data", namespace(accept_from), "web") is None) == ("data" in listed or "*" in listed)


def test_a_named_namespace_is_reported_and_a_selected_one_is_just_left_out() -> None:
    known = {"web": namespace("data", tier="apps"), "closed": namespace(tier="apps")}
    named = consent.consumers(database({"namespace": "closed"}), known, SETTINGS)
    assert [item.reason for item in named.refused] == ["NoConsent"]
    selected = consent.consumers(
        database({"namespaceSelector": {"matchLabels": {"tier": "apps"}}}), known, SETTINGS
    )
    assert selected == consent.Consumers(
        (Consumer("web", "database"),), (), {Consumer("web", "database"): Terms()}
    )


def test_a_namespace_that_is_named_and_selected_counts_once() -> None:
    known = {"web": namespace("data", tier="apps")}
    found = consent.consumers(
        database({"namespace": "web"}, {"namespaceSelector": {"matchLabels": {"tier": "apps"}}}),
        known,
        SETTINGS,
    )
    assert found.granted == (Consumer("web", "database"),)


def test_terms_are_those_of_the_rule_that_names_a_namespace_else_of_the_first_that_selects_it() -> None:
    known = {name: namespace("data", tier="apps") for name in ("web", "api")} | {"data": namespace("")}
    selected = {"namespaceSelector": {"matchLabels": {"tier": "apps"}}}
    found = consent.consumers(
        database(
            {"namespaceSelector": {}, "secretName": "other", "weight": 7},
            {**selected, "weight": 1},
            {**selected, "weight": 2, "limits": {"sessionConnections": 0}},
            {"namespace": "web", "weight": 3, "limits": {"sessionConnections": 0}},
        ),
        known,
        SETTINGS,
    )
    assert {(item.namespace, item.secret_name): terms.weight for item, terms in found.terms.items()} == {
        ("web", "database"): 3,
        ("api", "database"): 1,
        ("web", "other"): 7,
        ("api", "other"): 7,
        ("data", "other"): 7,
    }
    assert found.terms.keys() == set(found.granted)
    assert not found.has_sessions(Consumer("web", "database"))
    assert found.has_sessions(Consumer("api", "database"))


def test_who_is_refused_has_no_terms() -> None:
    found = consent.consumers(database({"namespace": "web"}), {"web": namespace("")}, SETTINGS)
    assert found.terms == {}


def test_outside_of_the_watched_namespaces_nobody_is_a_consumer() -> None:
    settings = replace(SETTINGS, watch_namespaces=("data", "web"))
    known = {"web": namespace("data"), "api": namespace("data")}
    found = consent.consumers(database({"namespace": "web"}, {"namespace": "api"}), known, settings)
    assert found.granted == (Consumer("web", "database"),)
    assert [(item.namespace, item.reason) for item in found.refused] == [("api", "NotWatched")]


def test_an_operator_that_may_not_read_namespaces_serves_its_own_namespace_only() -> None:
    settings = replace(SETTINGS, watch_namespaces=("data", "web"), reads_namespaces=False)
    known = {"data": namespace(), "web": namespace()}
    found = consent.consumers(
        database({"namespace": "data"}, {"namespace": "web"}, {"namespaceSelector": {}, "secretName": "all"}),
        known,
        settings,
    )
    assert found.granted == (Consumer("data", "database"),)
    assert {item.reason for item in found.refused} == {"NamespacesUnreadable"}
    assert len(found.refused) == 2
