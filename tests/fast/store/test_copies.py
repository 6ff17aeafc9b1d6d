"""Copies of the operator's objects: known by name, of no effect on anything, and left alone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from poolkeeper import names
from poolkeeper.credentials.logins import Logins, to_secret
from poolkeeper.observed.refs import Key, Ref
from poolkeeper.plan.plan import plan
from poolkeeper.store.store import Store
from tests.fast.observed.test_origin import OBJECTS, by_post, stored, title
from tests.fast.store.test_app_pods import asking
from tests.fast.worlds import KEY, NOW, SETTINGS, Simulation, body, login

Object = dict[str, Any]
NOBODY: frozenset[Key] = frozenset()


def numbered(obj: Object, version: int) -> Object:
    obj["metadata"]["resourceVersion"] = str(version)
    return obj


def filled() -> Store:
    """With a PooledDatabase and everything that belongs to it."""
    store = Store(SETTINGS)
    store.observe(numbered(body(), 1))
    for obj in OBJECTS:
        store.observe(numbered(stored(obj), 1))
    return store


def copied(obj: Object, namespace: str, name: str, version: int = 7) -> Object:
    made = numbered(by_post(stored(obj)), version)
    made["metadata"] |= {"namespace": namespace, "name": name, "uid": f"copy-{version}"}
    return made


def copies(store: Store) -> set[str]:
    return {str(ref) for ref in store.world(KEY, Logins()).copies}


@pytest.mark.parametrize("obj", OBJECTS, ids=title)
@pytest.mark.parametrize("place", [("closed", "same"), ("web", "loot"), ("data", "loot")])
def test_a_copy_is_no_child_and_concerns_the_owner_that_it_names(obj: Object, place: tuple[str, str]) -> None:
    namespace, name = place
    name = obj["metadata"]["name"] if name == "same" else name
    store = filled()
    whole = store.world(KEY, Logins())
    assert store.observe(copied(obj, namespace, name)) == {KEY}
    assert store.observe(copied(obj, namespace, name)) == NOBODY
    world = store.world(KEY, Logins())
    assert world.children == whole.children
    assert world.files == whole.files
    assert copies(store) == {f"{obj['kind']} {namespace}/{name}"}
    assert store.observe(copied(obj, namespace, name, 8), deleted=True) == {KEY}
    assert copies(store) == set()


@pytest.mark.parametrize("known", ["settled", "deleting", "gone"])
def test_no_plan_touches_a_copy(known: str) -> None:
    """Neither with its PooledDatabase, nor when that is deleted, nor when it is gone."""
    store = filled()
    for number, obj in enumerate(OBJECTS):
        store.observe(copied(obj, "closed", obj["metadata"]["name"], 20 + number))
        store.observe(copied(obj, "data", f"loot-{number}", 40 + number))
    if known == "deleting":
        going = numbered(body(), 9)
        going["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [names.FINALIZER]}
        store.observe(going)
    if known == "gone":
        store.observe(numbered(body(), 9), deleted=True)
        assert store.keys() == {KEY}
    deleted = plan(KEY, store.world(KEY, Logins()), SETTINGS, NOW).delete
    assert {uid for _, uid in deleted} <= {"1"}
    assert known == "settled" or deleted
    for ref, uid in deleted:
        store.forget(ref, uid)
    last = plan(KEY, store.world(KEY, Logins()), SETTINGS, NOW)
    assert last.delete == ()
    assert known != "deleting" or last.finalizer is False, "copies don't hold the PooledDatabase"
    assert known != "gone" or store.keys() == NOBODY


def test_a_record_of_logins_is_read_from_a_backup_in_its_place_and_from_no_copy_elsewhere() -> None:
    """If it had to be made again, every consumer would get another password."""
    [record] = [obj for obj in OBJECTS if obj["metadata"]["name"] == "shop-pooler-logins"]
    kept = Logins(console=login("poolkeeper"))
    saved = {**record, "data": to_secret(kept)}
    store = Store(SETTINGS)
    store.observe(numbered(body(), 1))
    for place in (("web", "shop-pooler-logins"), ("data", "loot")):
        store.observe(copied(saved, *place))
        assert store.secrets.logins(KEY) == Logins()
    store.observe(copied(saved, "data", "shop-pooler-logins"))
    assert store.secrets.logins(KEY) == kept
    assert Ref("Secret", "data", "shop-pooler-logins") not in store.world(KEY, Logins()).children
    assert copies(store) == {
        "Secret web/shop-pooler-logins",
        "Secret data/loot",
        "Secret data/shop-pooler-logins",
    }


def test_pods_that_ask_for_a_copy_are_not_the_consumers() -> None:
    store = filled()
    [secret] = [obj for obj in OBJECTS if obj["metadata"]["name"] == "database"]
    store.observe(copied(secret, "web", "loot"))
    pod = asking()
    pod["metadata"]["labels"][names.DATABASE_LABEL] = "loot"
    store.observe(pod)
    assert store.world(KEY, Logins()).app_pods == ()


def test_a_copy_that_the_operator_takes_over_is_a_child_and_one_made_of_a_child_is_not() -> None:
    store = filled()
    [secret] = [obj for obj in OBJECTS if obj["metadata"]["name"] == "database"]
    ref = Ref("Secret", "web", "database")
    assert store.observe(numbered(by_post(stored(secret)), 5)) == {KEY}
    assert ref not in store.world(KEY, Logins()).children
    assert copies(store) == {str(ref)}
    assert store.observe(numbered(stored(secret), 6)) == {KEY}
    assert ref in store.world(KEY, Logins()).children
    assert copies(store) == set()


def test_the_order_of_events_makes_no_difference_to_copies() -> None:
    events = [numbered(body(), 1)]
    for number, obj in enumerate(OBJECTS):
        events += [numbered(stored(obj), 2), copied(obj, "closed", f"a-{number}"), copied(obj, "web", "same")]

    def end(order: list[Object]) -> Any:
        store = Store(SETTINGS)
        for obj in order:
            store.observe(obj)
        world = store.world(KEY, Logins())
        return world.children, world.copies, store.keys()

    expected = end(events)
    shuffler = random.Random(7)  # noqa: S311
    for _ in range(20):
        order = list(events)
        shuffler.shuffle(order)
        assert end(order) == expected


def test_a_simulated_cluster_makes_what_counts_as_made() -> None:
    """The objects of these tests are the ones that plans write."""
    assert {title(obj) for obj in OBJECTS} > {"Secret web/database", "Secret data/own-keeper"}
    assert Simulation().objects == {}
