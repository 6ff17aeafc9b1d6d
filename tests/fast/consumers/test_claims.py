"""One name stands for one Secret: whatever names PooledDatabase, consumers and sources have, nothing is written
twice, and who can't have a name hears of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolkeeper import names
from poolkeeper.consumers.claims import Place, conflicts
from poolkeeper.consumers.consent import consumers
from poolkeeper.observed.refs import Ref
from poolkeeper.plan.plan import Plan, plan
from poolkeeper.plan.wanted import want
from poolkeeper.settings import Webhook
from poolkeeper.spec.parse import PooledDatabase, SpecError, parse
from tests.fast.worlds import KEY, NOW, SETTINGS, Simulation, body, namespaces

LONG = "shop-" + "x" * 60
OTHER = "shop-" + "x" * 39 + "-other"
"""Shortened at a hyphen."""
SOURCES = {"shop-owner", "shop-ca"}


def database(name: str, rules: list[dict[str, Any]]) -> PooledDatabase:
    made = body(consumers=rules)
    made["metadata"]["name"] = name
    made["spec"]["upstream"]["tls"] = {"mode": "verify-full", "caSecretRef": {"name": "shop-ca"}}
    return parse(made)


def written(database: PooledDatabase) -> list[Place]:
    """Every Secret that would be written."""
    granted = consumers(database, namespaces(), SETTINGS).granted
    secrets = [
        Place(item.namespace, name) for item in granted for name in names.consumer_secrets(item.secret_name)
    ]
    return secrets + [Place(database.namespace, name) for name in names.own_secrets(database.name)]


NAMES = ["shop", LONG, OTHER, "a" * 43, "a" * 44, "a" * 45, "a" * 46, "a" * 253]
FIXED = sorted({*SOURCES, *(own for name in NAMES for own in names.own_secrets(name)), *NAMES, "database"})
SECRET_NAMES = st.tuples(
    st.sampled_from(FIXED), st.sampled_from(["", "-binding", "-keeper", "-keeper-binding"])
).map("".join)
WHERE: list[dict[str, Any]] = [
    {"namespace": "data"},
    {"namespace": "web"},
    {"namespaceSelector": {}},
    {"namespaceSelector": {"matchLabels": {"tier": "data"}}},
]
RULES = st.lists(
    st.tuples(st.sampled_from(WHERE), SECRET_NAMES).map(lambda rule: {**rule[0], "secretName": rule[1]}),
    max_size=5,
)


@settings(max_examples=400)
@given(st.sampled_from(NAMES), RULES)
def test_no_secret_is_written_twice_nor_over_a_source(name: str, rules: list[dict[str, Any]]) -> None:
    try:
        made = database(name, rules)
    except SpecError:
        return  # refused with a reason already
    places = written(made)
    assert len(set(places)) == len(places)
    assert not {Place("data", source) for source in SOURCES} & set(places)
    outcome = consumers(made, namespaces(), SETTINGS)
    asked = {(where, rule.secret_name) for rule in made.consumers for where in accepting(rule)}
    refused = {(item.namespace, item.secret_name) for item in outcome.refused if item.reason == "Conflict"}
    assert {tuple(item.__dict__.values()) for item in outcome.granted} | refused == asked
    assert set(outcome.terms) == set(outcome.granted)
    for item in outcome.refused:
        if item.reason == "Conflict":
            assert item.message.startswith(f"Secret {item.namespace}/{item.secret_name}")
            assert item.message.endswith("choose another secretName")


def accepting(rule: Any) -> list[str]:
    """The namespaces of a rule that consent; all of them exist."""
    if rule.namespace is not None:
        return [rule.namespace]
    return [name for name in ("data", "web") if rule.selector.matches(namespaces()[name].labels)]


@given(st.lists(st.tuples(st.sampled_from(["data", "web"]), SECRET_NAMES), unique=True, max_size=8))
def test_of_consumers_that_collide_the_first_has_its_secrets(asked: list[tuple[str, str]]) -> None:
    """Also where no spec comes that far."""
    made = database(LONG, [])
    refused = conflicts(made, asked, SETTINGS)
    places = [
        Place(where, name) for where, secret in asked if (where, secret) not in refused
        for name in names.consumer_secrets(secret)
    ]  # fmt: skip
    assert len(set(places)) == len(places)
    assert not asked or asked[0] not in refused or asked[0][0] == "data"
    for number, consumer in enumerate(asked):
        alone = conflicts(made, [item for item in asked[:number] if item not in refused] + [consumer], SETTINGS)
        assert (consumer in alone) == (consumer in refused)


@pytest.mark.parametrize("own", [0, 1])
@pytest.mark.parametrize("rule", [{"namespace": "data"}, {"namespaceSelector": {}}])
def test_a_consumer_that_names_a_shortened_secret_of_the_poolers_hears_of_it_and_nothing_is_fought_over(
    own: int, rule: dict[str, Any]
) -> None:
    name = names.own_secrets(LONG)[own]
    rules = [{**rule, "secretName": name}, {"namespace": "web"}]
    cluster = Simulation()
    cluster.edit(consumers=rules)
    cluster.resource["metadata"]["name"] = LONG
    key = KEY._replace(name=LONG)
    store: dict[Ref, bytes] = {}
    wanted = want(parse(cluster.resource), replace(cluster.world()), SETTINGS, NOW)
    for obj in wanted.poolers + wanted.bindings:
        ref = Ref(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])
        assert ref not in store, f"{ref} is written twice"
        store[ref] = b""
    assert Ref("Secret", "data", names.logins_name(LONG)) not in store
    [refusal] = [item for item in wanted.consumers.refused if item.namespace == "data"]
    assert (refusal.reason, refusal.message) == (
        "Conflict",
        f"Secret data/{name} of this consumer would be a Secret of the poolers themselves as well; "
        "choose another secretName",
    )
    assert isinstance(plan(key, cluster.world(), SETTINGS, NOW), Plan)


def test_a_selected_namespace_that_holds_the_sources_keeps_them() -> None:
    """The Secret may not exist yet, and what the operator made would be no source any more."""
    made = database("shop", [{"namespaceSelector": {}, "secretName": "shop-owner"}])
    outcome = consumers(made, namespaces(), SETTINGS)
    assert [(item.namespace, item.reason) for item in outcome.refused] == [("data", "Conflict")]
    assert "a Secret that spec.upstream reads" in outcome.refused[0].message
    assert [item.namespace for item in outcome.granted] == ["web"]


def test_the_key_of_the_operators_webhook_is_no_consumers_secret() -> None:
    webhook = replace(SETTINGS, namespace="web", webhook=Webhook("poolkeeper"))
    made = database("shop", [{"namespace": "web", "secretName": "poolkeeper"}])
    [refusal] = consumers(made, namespaces(), webhook).refused
    assert refusal.reason == "Conflict"
    assert "the Secret of the operator's webhook" in refusal.message


@given(st.lists(st.from_regex(r"[a-z]([-a-z0-9]{0,251}[a-z0-9])?", fullmatch=True), unique=True, max_size=6))
def test_two_pooled_databases_have_different_names_for_what_they_have(owners: list[str]) -> None:
    made = [name for owner in owners for name in (names.pooler_name(owner), *names.own_secrets(owner))]
    assert len(set(made)) == len(made)
    for name in made:
        assert len(name) <= 63
        assert name[0].isalpha()
        assert name[-1] not in "-."
