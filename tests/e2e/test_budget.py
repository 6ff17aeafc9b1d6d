"""A small server is never asked for more connections than it has, whatever happens to the poolers."""

from __future__ import annotations

import json
import random
import secrets
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from kubernetes import client

from e2e import install, kube
from e2e.kube import Object, kubectl
from tests.e2e import postgres
from tests.e2e.client import Agent, Load, Session
from tests.e2e.clients.programs import PROGRAMS
from tests.e2e.connections import judge
from tests.e2e.keeper_events import (
    SETTLES_SECONDS,
    kill_operator,
    kill_operator_in_mid_rollout,
    restart_database,
)
from tests.e2e.keeper_kit import Fleet, core, make_table
from tests.e2e.kit import Place, Server, dsn, namespaces, timed, wait_until
from tests.e2e.sampling import PERIOD_SECONDS, Sampling

MAX_CONNECTIONS, FEWER_CONNECTIONS = 40, 30
RESERVE = 5
SUPERUSER_RESERVED = 3  # and reserved_connections are 0
USABLE = MAX_CONNECTIONS - SUPERUSER_RESERVED - RESERVE
FOREIGN, FOREIGN_RESERVE = 8, 9
"""So many foreign sessions come at once; what is kept free has to do until the poolers give way."""
CLIENTS_PER_PROGRAM = 125
CROWD = {f"{program}-{number}": PROGRAMS[program] for program in ("pg", "psycopg-pool") for number in range(2)}
"""Four programs: 500 clients with a connection each, and keepers that open as many to the poolers if needed."""
RATE = 15
"""Transactions per second of each program."""
EVERY_SECONDS = CLIENTS_PER_PROGRAM / RATE
"""So often all clients of a program begin a transaction, at the same moment."""
LEAST_SAMPLES = 0.3
"""So much of what the period would allow there must be: the two processors are busy."""
FOLLOWS_SECONDS = 5.0
FITS_SECONDS = 0.5
"""A cap that is lowered lets transactions end; those of the crowd take some milliseconds on the server."""
REFUSALS = ("too many clients", "remaining connection slots")
CHAOS_SECONDS = 40.0


@pytest.fixture(scope="module")
def make_small_server(agent: Agent, clean: None) -> Callable[[], Server]:
    """Makes a PostgreSQL with few connections in a namespace of its own, where its setting can be changed."""

    def answers(namespace: str, server: Server) -> None:
        postgres.wait(namespace)
        agent.query_soon(dsn(server.host, "postgres", server.password, "postgres"), "SELECT 1", within=15)

    def make() -> Server:
        namespace = f"e2e-{secrets.token_hex(2)}-small"
        namespaces((namespace, {}))
        password = secrets.token_urlsafe(16)
        host = postgres.start(namespace, password, max_connections=None)
        server = Server(agent, host, password)
        answers(namespace, server)
        set_max_connections(server, MAX_CONNECTIONS)
        postgres.restart(namespace)
        answers(namespace, server)
        assert server.run("SHOW max_connections") == [{"max_connections": str(MAX_CONNECTIONS)}]
        return server

    return make


@pytest.fixture(scope="module")
def small(make_small_server: Callable[[], Server]) -> Server:
    return make_small_server()


@pytest.fixture(scope="module")
def shop(new_module_place: Callable[..., Place], small: Server) -> Place:
    place = new_module_place(at=small)
    place.serve(spec(place, replicas=1))
    make_table(place)
    return place


@pytest.fixture(scope="module")
def crowd(shop: Place) -> Iterator[Fleet]:
    """500 clients with keepers."""
    fleet = Fleet(shop.web, "crowd", RATE, programs=CROWD, env={"POOL_SIZE": str(CLIENTS_PER_PROGRAM)})
    fleet.deploy()
    yield fleet
    fleet.remove()


def spec(place: Place, **pooler: Any) -> Object:
    """Five poolers fit, and so do those of a second PooledDatabase: 2 connections are the least on each."""
    return {
        **place.spec(drainSeconds=30, **pooler),
        "budget": {"maxConnections": "auto", "reserve": RESERVE},
        "keeper": {"poolSize": CLIENTS_PER_PROGRAM},
        "consumers": [{"namespace": place.web, "limits": {"sessionConnections": 1}}],
    }


def set_max_connections(server: Server, connections: int) -> None:
    """From the next start on."""
    server.run(f"ALTER SYSTEM SET max_connections = {connections}")


def scale(place: Place, replicas: int) -> None:
    kubectl("-n", place.data, "scale", "pooldb/shop", f"--replicas={replicas}")


def check_never_over(sampling: Sampling, *places: Place) -> None:
    """Not one sample over what is usable, of enough samples, with enough at work; and nobody was refused."""
    verdict = judge(sampling.record, {place.role for place in places}, RESERVE)
    print(verdict)
    counts = verdict.counts
    assert len(counts) >= LEAST_SAMPLES * (counts[-1].at - counts[0].at) / PERIOD_SECONDS, str(verdict)
    assert verdict.most > USABLE / 3, f"the server was never near its limit: {verdict}"
    # As long as nothing happens no backend is left: if they were, the consoles would have been overlooked.
    assert statistics.median(one.left for one in counts) == 0, str(verdict)
    assert verdict.over == (), str(verdict)
    check_nobody_refused(places[0].server)


def check_nobody_refused(server: Server) -> None:
    log = postgres.log(server.host.split(".")[1])
    refused = [line for line in log.splitlines() if any(words in line for words in REFUSALS)]
    assert refused == []


def test_never_more_than_usable(
    shop: Place, crowd: Fleet, small: Server, agent: Agent, new_place: Callable[..., Place]
) -> None:
    """Poolers 1-5-2, another PooledDatabase under another name of the server, a rollout; the operator is killed
    in the middle of a change of each kind."""
    namespace = small.host.split(".")[1]
    kube.apply(json.dumps(postgres.service(namespace, "other")))
    other = Server(agent, f"other.{namespace}.svc", small.password)
    agent.query_soon(dsn(other.host, "postgres", other.password, "postgres"), "SELECT 1", within=15)
    guest = new_place(at=other)
    with Sampling(small, shop, guest) as sampling:
        with crowd.during("1-5-2 poolers, a second PooledDatabase, a rollout, operators killed") as outcome:
            scale(shop, 5)
            wait_until(lambda: len(shop.pods()) > 1, SETTLES_SECONDS, "the first new pooler")
            kill_operator()
            shop.wait_settled(SETTLES_SECONDS)
            guest.serve(spec(guest, replicas=2))
            wait_budget(guest, lambda found: found["sharedWith"] == 1)
            with Load(agent, guest.url(), workers=8) as load:
                scale(shop, 2)
                shop.wait_settled(SETTLES_SECONDS)
                kill_operator_in_mid_rollout(shop)
                load.more(100)
        kubectl("-n", guest.data, "delete", "pooldb", "shop", "--timeout=60s", timeout=70)
        install.wait_for_rollout()
    check_never_over(sampling, shop, guest)
    crowd.check_lossless(outcome)
    assert load.figures["failed"] == 0, load.figures


def test_pods_deleted_and_evicted_at_random(shop: Place, crowd: Fleet, small: Server) -> None:
    """Pods that end and pods that begin overlap all the time. The last one that serves is left alone."""
    scale(shop, 3)
    shop.wait_settled(SETTLES_SECONDS)
    with Sampling(small, shop) as sampling:
        with crowd.during("pods deleted and evicted at random") as outcome:
            gone = delete_and_evict(shop, random.Random(5), CHAOS_SECONDS)  # noqa: S311
            shop.wait_settled(SETTLES_SECONDS)
        print(f"what became of the pods: {dict(gone)}")
    assert gone["deleted"] + gone["evicted"] >= CHAOS_SECONDS / 10, gone
    assert gone["deleted"], gone
    assert gone["evicted"], gone
    check_never_over(sampling, shop)
    crowd.check_lossless(outcome)


def delete_and_evict(place: Place, dice: random.Random, seconds: float) -> Counter[str]:
    """Every 2 to 4 s one pod, by its deletion or by an eviction, which the PodDisruptionBudget may refuse."""
    done: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(dice.uniform(2, 4))
        serving = [pod["metadata"]["name"] for pod in place.pods() if serves(pod)]
        if len(serving) < 2:
            done["left alone"] += 1
            continue
        victim, evict = dice.choice(serving), dice.random() < 0.5
        if not evict:
            core().delete_namespaced_pod(victim, place.data)
            done["deleted"] += 1
            continue
        try:
            body = client.V1Eviction(metadata=client.V1ObjectMeta(name=victim, namespace=place.data))
            core().create_namespaced_pod_eviction(victim, place.data, body)
            done["evicted"] += 1
        except client.ApiException as error:
            if error.status != 429:
                raise
            done["not evicted"] += 1
    return done


def serves(pod: Object) -> bool:
    conditions = {item["type"]: item["status"] for item in pod["status"].get("conditions", [])}
    return "deletionTimestamp" not in pod["metadata"] and conditions.get("Ready") == "True"


def test_caps_follow_when_the_server_is_started_with_fewer_connections(
    shop: Place, crowd: Fleet, small: Server
) -> None:
    """It is lowered for good; the pause is for the transactions that the restart would end."""
    scale(shop, 2)
    shop.wait_settled(SETTLES_SECONDS)
    set_max_connections(small, FEWER_CONNECTIONS)
    with Sampling(small, shop) as sampling:
        fewer = usable(FEWER_CONNECTIONS)
        wait_until(lambda: together(sampling) > fewer, 30, "all to be handed out")
        with crowd.during("a restart with fewer connections, in a pause") as outcome:
            restart_database(shop)
            wait_until(lambda: 0 < together(sampling) <= fewer, FOLLOWS_SECONDS, "smaller caps")
            followed = time.time() + FITS_SECONDS
            told = wait_budget(shop, lambda found: found["maxConnections"] == FEWER_CONNECTIONS)
            shop.wait_condition("WithinBudget", "True", "WithinBudget")
            time.sleep(EVERY_SECONDS + 1)
    assert told["arithmetic"].startswith(f"{FEWER_CONNECTIONS} (max_connections) - 3 ")
    check_not_over_after(followed, sampling, shop)
    crowd.check_lossless(outcome)


def test_caps_follow_when_foreign_connections_rise(shop: Place, crowd: Fleet, small: Server) -> None:
    """Somebody opens connections beside the poolers, and keeps them."""
    shop.patch({"budget": {"reserve": FOREIGN_RESERVE}})
    scale(shop, 2)
    shop.wait_settled(SETTLES_SECONDS)
    small.run("CREATE ROLE reports LOGIN")
    small.set_password("reports", "reports")
    most = int(small.run("SHOW max_connections")[0]["max_connections"])
    rest = usable(most, FOREIGN_RESERVE) - FOREIGN
    with Sampling(small, shop) as sampling:
        wait_until(lambda: rest < together(sampling) <= rest + FOREIGN, 30, "caps but for the reserve")
        with crowd.during(f"{FOREIGN} foreign sessions") as outcome, ExitStack() as stack:
            for _ in range(FOREIGN):
                session = Session(small.agent, dsn(small.host, "reports", "reports", "postgres"))
                stack.enter_context(session)
            with timed("caps follow", at_most=FOLLOWS_SECONDS):
                wait_until(lambda: 0 < together(sampling) <= rest, 30, "smaller caps")
            followed = time.time() + FITS_SECONDS
            told = wait_budget(shop, lambda found: found["others"] >= FOREIGN and found["held"] <= rest)
            shop.wait_condition("WithinBudget", "True", "WithinBudget")
            time.sleep(EVERY_SECONDS + 1)
    assert "(held by others)" in told["arithmetic"]
    assert sum(pod["connections"] for pod in told["pods"]) == told["held"] <= rest
    check_not_over_after(followed, sampling, shop, FOREIGN_RESERVE)
    crowd.check_lossless(outcome)


def usable(max_connections: int, reserve: int = RESERVE) -> int:
    return max_connections - SUPERUSER_RESERVED - reserve


def wait_budget(place: Place, check: Callable[[Object], bool]) -> Object:
    """What the status tells of the budget, once it passes the check. Changes follow each other there."""

    def passes() -> Object | None:
        found: Object = place.resource()["status"]["budget"]
        return found if check(found) else None

    told: Object = wait_until(passes, 10, f"what the test expects of status.budget at {place.data}/shop")
    return told


def check_not_over_after(since: float, sampling: Sampling, place: Place, reserve: int = RESERVE) -> None:
    """What the caps say is so on the server: from then on everybody together is within what is usable."""
    verdict = judge(sampling.record, {place.role}, reserve)
    print(verdict)
    assert [one for one in verdict.counts if one.at > since]
    assert [one for one in verdict.over if one[0].at > since] == [], str(verdict)
    check_nobody_refused(place.server)


def together(sampling: Sampling) -> int:
    """What all poolers that are asked may hold, by their consoles."""
    return sum(sum(caps.values()) for caps in sampling.caps().values())


def test_idle_consumers_lend_to_those_that_wait(
    make_small_server: Callable[[], Server], new_place: Callable[..., Place]
) -> None:
    """One of two consumers is flooded while the other rests; then the other one is flooded too."""
    server = make_small_server()
    place = new_place(at=server)
    consumers = [
        {"namespace": place.web, "secretName": name, "limits": {"sessionConnections": 0}}
        for name in ("busy", "idle")
    ]
    place.apply({**place.spec(replicas=2), "consumers": consumers, "budget": {"reserve": RESERVE}})
    place.wait_ready()
    place.wait_settled()
    busy, idle = (place.secret(name) for name in ("busy", "idle"))

    def cap(secret: dict[str, str]) -> int:
        return sum(caps.get(secret["PGDATABASE"], 0) for caps in sampling.caps().values())

    work = "SELECT pg_sleep(0.2)"
    with Sampling(server, place) as sampling:
        wait_until(lambda: cap(idle) == cap(busy) > 1, 10, "the consoles")
        share = cap(busy)
        with Load(server.agent, busy["DATABASE_URL"], workers=60, work=work) as flood:
            with timed("lent", at_most=60):
                wait_until(lambda: cap(busy) > share * 3 / 2, 60, "more than its share")
            print(f"{cap(busy)} instead of {share}, {cap(idle)} are left to the other")
            assert cap(idle) >= 2, "each entry keeps one on each pod"
            with (
                Load(server.agent, idle["DATABASE_URL"], workers=60, work=work) as other,
                timed("given back", at_most=15),
            ):
                wait_until(lambda: cap(idle) >= share - 1, 30, "its own share")
    assert (flood.figures["failed"], other.figures["failed"]) == (0, 0)
    verdict = judge(sampling.record, {place.role}, RESERVE)
    assert verdict.over == (), str(verdict)


def test_f2_a_rollout_of_the_only_pod_ends_whatever_its_share(place: Place, agent: Agent) -> None:
    """3 connections are its least. With 6 and more there is room for the next pod, which serves before the old
    one goes."""
    place.serve({**place.spec(replicas=1), "budget": {"maxConnections": 9}})
    for most, prepared in ((8, 0), (6, None), (5, 0), (9, None)):
        place.patch({"budget": {"maxConnections": most}})
        wait_budget(place, lambda found, most=most: found["share"] == most)
        message = place.wait_condition("WithinBudget", "True", "WithinBudget")
        assert ("interrupts the service" in message) == (most < 6)
        before = place.identities()
        place.patch({"pooler": {"parameters": {"max_prepared_statements": prepared}}})
        with timed(f"a rollout with a share of {most}", at_most=60):
            wait_until(
                lambda before=before: not before.keys() & place.identities().keys(),
                SETTLES_SECONDS,
                "the old pod to go",
            )
            place.wait_settled(SETTLES_SECONDS)
        assert place.resource()["status"]["budget"]["held"] <= most
        assert agent.query_soon(place.url(), "SELECT 1 AS one", within=10) == [{"one": "1"}]


def test_what_cannot_fit_is_said(
    make_small_server: Callable[[], Server], new_place: Callable[..., Place], agent: Agent
) -> None:
    """Ten consumers on one pooler need 10 connections, and at most 8 are there. Who comes first is served."""
    place = new_place(at=make_small_server())
    names = [f"database-{number}" for number in range(10)]
    consumers = [
        {"namespace": place.web, "secretName": name, "limits": {"sessionConnections": 0}} for name in names
    ]
    reserve = MAX_CONNECTIONS - SUPERUSER_RESERVED - 8
    place.apply({**place.spec(replicas=1), "consumers": consumers, "budget": {"reserve": reserve}})
    place.wait_condition("WithinBudget", "False", "EntriesLeftOut", within=60)
    wait_until(lambda: place.secret(names[0]), 30, "the first consumer's Secret")
    time.sleep(3)  # any other that is going to be written is there then
    status = place.resource()["status"]  # one look: what others hold is measured anew all the time
    told = status["budget"]
    [said] = [item["message"] for item in status["conditions"] if item["type"] == "WithinBudget"]
    assert told["arithmetic"] in said
    assert "no connection is left for the entries" in said
    given = [name for name in names if place.secret(name)]
    left_out = [name for name in names if name not in given]
    print(f"{len(given)} of {len(names)} consumers have their Secrets: {said}")
    assert len(given) <= told["usable"] <= 8
    assert given == names[: len(given)]
    for name in given:
        url = place.secret(name)["DATABASE_URL"]
        assert agent.query_soon(url, "SELECT 1 AS one", within=10) == [{"one": "1"}]
    assert left_out
    assert not any(place.secret(f"{name}-binding") for name in left_out)
    place.patch({"budget": {"reserve": RESERVE}})
    place.wait_condition("WithinBudget", "True", "WithinBudget", within=30)
    for name in names:
        secret = wait_until(partial(place.secret, name), 30, f"Secret {name}")
        assert agent.query_soon(secret["DATABASE_URL"], "SELECT 1 AS one", within=10) == [{"one": "1"}]
