"""A container gets all of a keeper's variables that belong together, or none, whatever env and envFrom set."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from poolkeeper.consumers.consent import Consumer
from poolkeeper.credentials.logins import Login
from poolkeeper.desired import secrets
from poolkeeper.keeper import variables as keeper_variables
from poolkeeper.keeper.injection import KEPT_ANNOTATION, Injection, inject
from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.names import DATABASE_LABEL, DATABASES_ANNOTATION
from poolkeeper.spec.parse import parse
from poolkeeper.webhook.review import _WARNING_LIMIT
from tests import specs

Object = dict[str, Any]

SHOP = KeeperTemplate("poolkeeper/pgbouncer:1", "IfNotPresent", None, "shop", "shop.session")
ORDERS = replace(SHOP, database="orders", session_database="orders.session")
TEMPLATES = {
    auth: {"database": replace(SHOP, auth=auth), "orders": replace(ORDERS, auth=auth)}
    for auth in ("Trust", "Scram")
}
URLS = ("DATABASE_URL", "DATABASE_SESSION_URL")
LIBPQ = ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGSSLMODE")
NAMES = (*URLS, *LIBPQ, "PGHOSTADDR", "PGSERVICE", "PGPASSWORD", "KEEPER_PASSWORD", "PGAPPNAME", "PORT")

SOURCES: dict[str, list[Object]] = {
    "none": [],
    "a Secret of the app's": [{"secretRef": {"name": "app"}}],
    "a ConfigMap": [{"configMapRef": {"name": "app"}}],
    "the database's Secret": [{"secretRef": {"name": "database"}}],
    "the database's Secret with a prefix": [{"prefix": "X_", "secretRef": {"name": "database"}}],
    "another database's Secret": [{"secretRef": {"name": "orders"}}],
    "another database's Secret with a prefix": [{"prefix": "ORDERS_", "secretRef": {"name": "orders"}}],
}


def pod(container: Object) -> Object:
    metadata = {
        "labels": {DATABASE_LABEL: "database"},
        "annotations": {DATABASES_ANNOTATION: "database,orders"},
    }
    return {"metadata": metadata, "spec": {"containers": [container]}}


def injected(own: tuple[str, ...], sources: list[Object], auth: str = "Trust") -> tuple[Object, Injection]:
    container: Object = {"name": "web", "env": [{"name": name, "value": "own"} for name in own]}
    if sources:
        container["envFrom"] = sources
    done = inject(pod(container), TEMPLATES[auth])
    assert inject(done.pod, TEMPLATES[auth]) == done
    return done.pod["spec"]["containers"][0], done


def found(container: Object) -> dict[str, Any]:
    made = {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}
    assert len(made) == len(container["env"])
    return made


def every() -> list[tuple[str, ...]]:
    return [own for size in range(3) for own in itertools.combinations(NAMES, size)]


@pytest.mark.parametrize("auth", ["Trust", "Scram"])
@pytest.mark.parametrize("source", SOURCES)
def test_urls_and_libpqs_variables_are_whole_or_the_containers_own_f11(source: str, auth: str) -> None:
    everything = found(injected((), [], auth)[0])
    for own in every():
        container, done = injected(own, SOURCES[source], auth)
        now = found(container)
        ours = {name for name in now if now[name] == everything.get(name)}
        assert all(now[name] == "own" for name in own), "what a container sets is never changed"
        assert ours.isdisjoint(own)
        for whole in (
            {*LIBPQ, "PGPASSWORD"} & everything.keys(),
            {*URLS, "KEEPER_PASSWORD"} & everything.keys(),
        ):
            assert whole <= ours or not whole & ours, (own, ours)
        if ours & {*LIBPQ}:
            assert ours >= {*URLS}, "libpq's variables come with the URLs"
            assert not {*own} & {*URLS, "PGHOSTADDR", "PGSERVICE"}
        if "PGHOSTADDR" in own:
            assert not ours & {*URLS}, "libpq would follow the address and not the URL"
        lacks = everything.keys() - ours
        assert bool(lacks) == bool(done.warnings) == (KEPT_ANNOTATION in done.pod["metadata"]["annotations"])
        for warning in done.warnings:
            assert "container web sets" in warning
            assert "remove them" in warning
            assert len(warning) + len("poolkeeper: ") <= _WARNING_LIMIT
            assert ("is not known" in warning) == (source in ("a Secret of the app's", "a ConfigMap"))


@pytest.mark.parametrize("auth", ["Trust", "Scram"])
def test_what_a_container_sets_to_the_value_of_ours_stays_with_what_else_it_sets(auth: str) -> None:
    ours = {item["name"]: item for item in injected((), [], auth)[0]["env"]}
    for other, same in itertools.product(NAMES, sorted({*NAMES} & ours.keys())):
        if other != same:
            env = [{"name": other, "value": "own"}, ours[same]]
            first = inject(pod({"name": "web", "env": env}), TEMPLATES[auth])
            assert inject(first.pod, TEMPLATES[auth]) == first
            now = found(first.pod["spec"]["containers"][0])
            assert now[other] == "own"
            assert now[same] == ours[same].get("value", ours[same].get("valueFrom"))


def test_a_user_of_its_own_leaves_the_host_alone_f11() -> None:
    container, done = injected(("PGUSER", "PGPASSWORD"), SOURCES["a Secret of the app's"])
    now = found(container)
    assert not {"PGHOST", "PGPORT", "PGDATABASE", "PGSSLMODE"} & now.keys()
    assert (now["PGUSER"], now["PGPASSWORD"]) == ("own", "own")
    assert now["DATABASE_URL"].startswith("postgresql://app@127.0.0.1")
    assert done.warnings == (
        "container web sets PGUSER itself and so gets only the URLs of the keeper's variables; its own lead "
        "past the keeper: remove them to connect through it; what Secret app adds by envFrom is not known",
    )
    assert len(done.warnings[0]) + len("poolkeeper: ") <= _WARNING_LIMIT


def test_another_databases_secret_under_the_same_names_is_the_containers_own() -> None:
    container, done = injected((), SOURCES["another database's Secret"])
    now = found(container)
    assert not {*URLS, *LIBPQ} & now.keys(), "they would take the container to another database than it names"
    assert "ORDERS_DATABASE_URL" in now
    assert "gets none" in done.warnings[0]


def test_the_databases_own_secret_is_overridden_as_a_whole() -> None:
    container, done = injected((), SOURCES["the database's Secret"])
    assert keeper_variables.SECRET_KEYS
    assert {*keeper_variables.SECRET_KEYS} - {"PGPASSWORD"} <= found(container).keys()
    assert done.warnings == ()


def test_a_variable_that_equals_ours_is_no_other_one() -> None:
    container, done = injected((), [])
    same = [item for item in container["env"] if item["name"] in ("PGUSER", "PGSSLMODE")]
    again = inject(pod({"name": "web", "env": same}), TEMPLATES["Trust"])
    assert again == done


def test_the_keys_of_a_consumers_secret_are_known() -> None:
    database = parse(specs.body(specs.MINIMAL))
    login = Login("web", "password", "SCRAM-SHA-256$x")
    secret = secrets.consumer(database, Consumer("web", "database"), login, "shop", "shop.session", "host")
    assert {*keeper_variables.SECRET_KEYS} == secret["data"].keys()
