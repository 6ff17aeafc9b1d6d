"""What a consumer's terms make of its entries, its Secrets and its keepers."""

from __future__ import annotations

from typing import Any

from poolkeeper import names
from poolkeeper.consumers import entries
from poolkeeper.consumers.consent import Consumer
from poolkeeper.keeper import template as keeper_template
from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.keeper.variables import variables
from poolkeeper.observed.refs import Ref
from poolkeeper.plan.wanted import want
from poolkeeper.spec.parse import PooledDatabase
from poolkeeper.spec.types import SCRAM, Terms
from poolkeeper.upstream.target import Target
from tests.fast.worlds import NOW, SETTINGS, Simulation, ready_pod

TARGET = Target("pg.data.svc", 5432, "shop", "shop_owner", "secret", "require", None)
WEB, API = Consumer("web", "database"), Consumer("api", "database")


def settled(**limits: int) -> Simulation:
    """A cluster with one consumer of these limits."""
    cluster = Simulation(pods=(ready_pod(),))
    cluster.edit(consumers=[{"namespace": "web", "limits": limits}])
    cluster.settle()
    return cluster


def lines(cluster: Simulation) -> list[str]:
    """The [databases] of the poolers."""
    table = cluster.values("data", "shop-pooler-config")["caps-pod-1.ini"]
    return [line for line in table.splitlines() if line.startswith("shop--web")]


def test_a_limit_of_clients_is_divided_among_the_poolers_and_rounded_up() -> None:
    terms = {WEB: Terms(max_client_connections=100)}
    for poolers, each in ((1, 100), (3, 34), (100, 1), (0, 100)):
        rows = entries.entries(TARGET, [WEB, API], "transaction", terms, poolers)
        limits = {row.name: row.max_clients for row in rows}
        assert limits == {
            entries.entry_name("shop", WEB): each,
            entries.session_entry_name("shop", WEB): each,
            entries.entry_name("shop", API): None,
            entries.session_entry_name("shop", API): None,
        }


def test_both_entries_carry_the_limit_of_clients_and_the_console_must_show_it() -> None:
    cluster = settled(maxClientConnections=5)
    assert [" max_db_client_connections='3' " in line for line in lines(cluster)] == [True, True]
    world = cluster.world()
    assert world.resource is not None
    assert isinstance(world.resource.spec, PooledDatabase)
    config = want(world.resource.spec, world, SETTINGS, NOW).configuration
    assert config is not None
    assert [row["max_client_connections"] for row in config.databases.values()] == ["3", "3"]
    assert not [line for line in lines(settled()) if "max_db_client_connections" in line]


def test_without_session_connections_there_is_no_session_endpoint_anywhere() -> None:
    cluster = settled(sessionConnections=0)
    assert len(lines(cluster)) == 1
    assert "pool_mode='transaction'" in lines(cluster)[0]
    secret = cluster.values("web", "database")
    assert "DATABASE_URL" in secret
    assert "DATABASE_SESSION_URL" not in secret
    assert not [text for text in secret.values() if ".session" in text]
    assert template(cluster).session_database == ""


SESSION_KEYS = {"session-database", "session-uri", "session-jdbc-url"}


def test_c11_the_binding_leads_to_the_session_endpoint_where_there_is_one() -> None:
    cluster = settled(sessionConnections=1)
    app, binding = cluster.values("web", "database"), cluster.values("web", "database-binding")
    assert binding.keys() >= SESSION_KEYS
    assert binding["session-uri"] == app["DATABASE_SESSION_URL"]
    assert binding["session-database"] == app["PGDATABASE"] + ".session"
    assert binding["session-jdbc-url"] == binding["jdbc-url"].replace(
        binding["database"], binding["session-database"]
    )
    cluster.edit(consumers=[{"namespace": "web", "limits": {"sessionConnections": 0}}])
    cluster.settle()
    assert not cluster.values("web", "database-binding").keys() & SESSION_KEYS


def test_a_keeper_keeps_the_session_endpoint_that_poolers_take_away() -> None:
    """PgBouncer may die when an entry is removed, and clients of a pod without its keeper have nothing."""
    files = [settled(sessionConnections=count).values("web", "database-keeper") for count in (0, 1)]
    assert files[0]["pgbouncer.ini"].partition("[pgbouncer]")[0].count(".session") > 0
    assert files[0].keys() == files[1].keys()


def test_with_session_connections_there_is_one() -> None:
    cluster = settled(sessionConnections=1)
    assert len(lines(cluster)) == 2
    assert ".session" in cluster.values("web", "database")["DATABASE_SESSION_URL"]
    assert ".session" in cluster.values("web", "database-keeper")["pgbouncer.ini"]
    assert template(cluster).session_database == "shop.session"


def test_a_consumer_with_and_one_without_sessions_stay_apart() -> None:
    cluster = Simulation(pods=(ready_pod(),))
    cluster.edit(
        consumers=[
            {"namespace": "web", "limits": {"sessionConnections": 0}},
            {"namespace": "data", "secretName": "own"},
        ]
    )
    cluster.settle()
    assert "DATABASE_SESSION_URL" not in cluster.values("web", "database")
    assert "DATABASE_SESSION_URL" in cluster.values("data", "own")


def test_sessions_come_back_with_the_limit() -> None:
    cluster = settled(sessionConnections=0)
    cluster.edit(consumers=[{"namespace": "web"}])
    cluster.settle()
    assert "DATABASE_SESSION_URL" in cluster.values("web", "database")


def test_a_keeper_without_sessions_brings_one_url() -> None:
    for auth in ("Trust", SCRAM):
        made = KeeperTemplate("i", "Always", None, "shop", "", auth)
        found = variables("", 6432, made, "database")
        assert "DATABASE_SESSION_URL" not in found
        assert "/shop?" in found["DATABASE_URL"]["value"]
        assert keeper_template.parse(keeper_template.dump(made)) == made


def template(cluster: Simulation) -> KeeperTemplate:
    secret: dict[str, Any] = cluster.objects[Ref("Secret", "web", "database-keeper")]
    return keeper_template.parse(secret["metadata"]["annotations"][names.KEEPER_ANNOTATION])
