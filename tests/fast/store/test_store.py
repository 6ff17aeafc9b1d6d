"""What the store makes of what it is shown: in any order, with echoes, and who has to be looked at again."""

import base64
import copy
import random
import time
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from poolkeeper import names
from poolkeeper.credentials.logins import Logins, to_secret
from poolkeeper.observed.consoles import PauseSeen, Shown
from poolkeeper.observed.poolers import Moved, RenewalCause, Renewed
from poolkeeper.observed.refs import ApiRefusal, Key, Ref
from poolkeeper.observed.upstream import Probe, Whereabouts
from poolkeeper.plan.ownership import desired_digest
from poolkeeper.plan.world import Child
from poolkeeper.store.store import Store
from poolkeeper.upstream.target import Target
from tests.fast.worlds import KEY, SETTINGS, UID, body, login

Object = dict[str, Any]
NOBODY: frozenset[Key] = frozenset()
LOGINS = Ref("Secret", "data", "shop-pooler-logins")


def resource(version: int = 1, **spec: Any) -> Object:
    made = body(**spec)
    made["metadata"]["resourceVersion"] = str(version)
    return made


def namespace(name: str, version: int = 1, accept_from: str = "", **labels: str) -> Object:
    annotations = {names.ACCEPT_FROM_ANNOTATION: accept_from} if accept_from else {}
    metadata = {"name": name, "resourceVersion": str(version), "labels": labels, "annotations": annotations}
    return {"kind": "Namespace", "metadata": metadata}


def child(
    kind: str = "Service",
    name: str = "shop-pooler",
    version: int = 1,
    role: str = names.ROLE_POOLER,
    **parts: Any,
) -> Object:
    metadata = {
        "namespace": "data",
        "name": name,
        "uid": f"uid-of-{name}",
        "resourceVersion": str(version),
        "labels": names.child_labels("data", "shop", UID, role),
        "annotations": {names.OWNER_ANNOTATION: "data/shop"},
    }
    return {"kind": kind, "metadata": metadata, **parts}


def source(version: int = 1, password: bytes = b"p", *, name: str = "shop-owner") -> Object:
    labels = {names.ROLE_LABEL: names.ROLE_SOURCE}
    metadata = {
        "namespace": "data",
        "name": name,
        "resourceVersion": str(version),
        "labels": labels,
        "uid": "s",
    }
    return {"kind": "Secret", "metadata": metadata, "data": {"password": base64.b64encode(password).decode()}}


def filled() -> Store:
    store = Store(SETTINGS)
    for obj in (resource(), namespace("data"), namespace("web", accept_from="data"), source(), child()):
        store.observe(obj)
    return store


def test_an_echo_concerns_nobody() -> None:
    store = filled()
    for obj in (resource(), namespace("web", accept_from="data"), source(), child()):
        assert store.observe(obj) == NOBODY


def test_a_later_version_without_a_change_that_matters_concerns_nobody() -> None:
    store = filled()
    assert store.observe(namespace("web", 2, accept_from="data")) == NOBODY
    assert store.observe(source(2)) == NOBODY
    assert store.observe(child(version=2)) == NOBODY


def test_an_older_version_that_comes_late_is_ignored() -> None:
    store = filled()
    assert store.observe(source(5, b"new")) == {KEY}
    assert store.observe(source(4, b"old")) == NOBODY
    assert store.sources.get(Ref("Secret", "data", "shop-owner")) == {"password": b"new"}


def test_a_deletion_that_comes_late_does_not_take_the_successor_away() -> None:
    store = filled()
    store.observe(child(version=9))
    assert store.observe(child(version=8), deleted=True) == NOBODY
    assert Ref("Service", "data", "shop-pooler") in store.world(KEY, Logins()).children


def test_a_child_that_vanishes_concerns_its_owner() -> None:
    store = filled()
    assert store.observe(child(version=2), deleted=True) == {KEY}
    assert not store.world(KEY, Logins()).children


def test_an_object_that_was_deleted_is_forgotten_but_not_its_successor() -> None:
    """The answer to a deletion may come after what was made in the object's place."""
    store, ref = filled(), Ref("Service", "data", "shop-pooler")
    assert store.forget(ref, "uid-of-the-one-before") == NOBODY
    assert ref in store.world(KEY, Logins()).children
    assert store.forget(ref, "uid-of-shop-pooler") == {KEY}
    assert ref not in store.world(KEY, Logins()).children


def normalised(version: int, amount: str) -> Object:
    """As the API server answers when it stores another text of the same meaning."""
    fields: dict[str, Any] = {"f:spec": {"f:amount": {}}}
    managed = [{"manager": names.MANAGER, "operation": "Apply", "fieldsV1": fields}]
    answer = child(version=version, spec={"amount": amount})
    return {**answer, "metadata": {**answer["metadata"], "managedFields": managed}}


def test_what_the_api_server_says_in_other_words_is_not_written_again() -> None:
    store, ref = filled(), Ref("Service", "data", "shop-pooler")
    wanted = child(spec={"amount": "1000m"})

    def found() -> Child:
        return store.world(KEY, Logins()).children[ref]

    store.applied(wanted, normalised(2, "1"))
    assert desired_digest(wanted) not in (found().digest, b"")
    assert found().applied == desired_digest(wanted)
    store.observe({**normalised(3, "1"), "status": {"ready": True}})
    assert found().applied == desired_digest(wanted)
    store.observe(normalised(4, "2"))  # somebody edits it
    assert found().applied == b""


def test_a_namespace_concerns_those_that_name_or_select_it_before_or_after() -> None:
    store = filled()
    store.observe(resource(2, consumers=[{"namespaceSelector": {"matchLabels": {"tier": "apps"}}}]))
    assert store.observe(namespace("web", 2, accept_from="data", tier="apps")) == {KEY}
    assert store.observe(namespace("web", 3, tier="apps")) == {KEY}
    assert store.observe(namespace("web", 4)) == {KEY}
    assert store.observe(namespace("web", 5, other="label")) == NOBODY
    store.observe(resource(3, consumers=[{"namespace": "new"}]))
    assert store.observe(namespace("new", 6)) == {KEY}
    assert store.observe(namespace("new", 7), deleted=True) == {KEY}


def test_a_source_secret_concerns_its_readers_only() -> None:
    store = filled()
    assert store.observe(source(2, b"new")) == {KEY}
    assert store.observe(source(3, name="unrelated")) == NOBODY
    assert store.observe(source(4, b"new"), deleted=True) == {KEY}
    assert store.sources.get(Ref("Secret", "data", "shop-owner")) is None


def test_a_mark_that_nobody_needs_any_more_is_reported_to_be_taken_off() -> None:
    store = filled()
    assert store.world(KEY, Logins()).marked == {"shop-owner"}
    changed = resource(2)
    changed["spec"]["upstream"]["credentialsSecretRef"]["name"] = "other"
    store.observe(changed)
    assert store.world(KEY, Logins()).marked == {"shop-owner"}
    store.observe(source(3), deleted=True)
    assert store.world(KEY, Logins()).marked == frozenset()


def test_a_child_whose_owner_is_edited_concerns_the_one_before_and_the_one_after() -> None:
    store = filled()
    edited = child(version=2)
    edited["metadata"]["annotations"][names.OWNER_ANNOTATION] = "some/body"
    assert store.observe(edited) == {KEY, Key("some", "body")}
    edited = child(version=3)
    del edited["metadata"]["annotations"]
    assert store.observe(edited) == {Key("some", "body")}
    assert store.keys() == {KEY}


def test_an_object_without_labels_does_not_confuse_it() -> None:
    """Met under a name of ours, with our annotation alone."""
    store = filled()
    bare = child(name="bare")
    del bare["metadata"]["labels"]
    store.observe(bare)
    found = store.world(KEY, Logins()).children[Ref("Service", "data", "bare")]
    assert (found.owner_uid, found.role) == ("", "")


def test_logins_are_read_from_the_secret_of_that_name_in_the_owners_namespace_only() -> None:
    store = filled()
    stored = Logins(console=login("poolkeeper"))
    secret = child("Secret", LOGINS.name, role=names.ROLE_LOGINS, data=to_secret(stored))
    for forged in ({"namespace": "web"}, {"name": "loot"}):
        other = copy.deepcopy(secret)
        other["metadata"] |= forged
        store.observe(other)
        assert store.secrets.logins(KEY) == Logins()
    store.observe(secret)
    assert store.secrets.logins(KEY) == stored


def test_a_pod_elsewhere_is_no_pooler() -> None:
    store = filled()
    pod = child("Pod", "p", status={"podIP": "192.0.2.1"})
    pod["metadata"]["namespace"] = "web"
    assert store.observe(pod) == NOBODY
    assert not store.world(KEY, Logins()).pods


def test_a_pooler_whose_owner_is_edited_concerns_the_one_before_and_the_one_after() -> None:
    store, pod = filled(), child("Pod", "p", spec={"containers": []})
    store.observe(pod)
    edited = copy.deepcopy(pod)
    edited["metadata"] |= {"resourceVersion": "2", "annotations": {names.OWNER_ANNOTATION: "data/other"}}
    assert store.observe(edited) == {KEY, Key("data", "other")}
    assert not store.pods(KEY)
    assert store.pods(Key("data", "other"))


def test_what_belongs_to_a_resource_that_does_not_exist_is_a_key_too() -> None:
    store = Store(SETTINGS)
    store.observe(child())
    assert store.keys() == {KEY}
    assert store.world(KEY, Logins()).resource is None


async def pages(*objects: Object, version: int) -> AsyncIterator[tuple[list[Object], int]]:
    yield list(objects), version


async def test_a_complete_list_removes_what_it_lacks_unless_that_was_seen_later() -> None:
    store = filled()
    store.observe(child(name="old", version=3))
    store.observe(child(name="young", version=30))
    concerned = await store.replace("Service", pages(child(version=5), version=20))
    assert concerned == {KEY}
    assert {ref.name for ref in store.world(KEY, Logins()).children} == {"shop-pooler", "young"}
    assert store.sources.get(Ref("Secret", "data", "shop-owner")) is not None, "other kinds stay"


async def test_a_list_of_one_namespace_says_nothing_of_another() -> None:
    store = filled()
    await store.replace("Service", pages(version=20), namespace="web")
    assert store.world(KEY, Logins()).children
    await store.replace("Service", pages(version=20), namespace="data")
    assert not store.world(KEY, Logins()).children


def test_a_refusal_holds_for_one_run() -> None:
    store = filled()
    ref, refusal = Ref("Service", "data", "shop-pooler"), ApiRefusal("Forbidden", "no")
    store.refuse(KEY, ref, refusal)
    assert store.world(KEY, Logins()).refusals == {ref: refusal}
    assert store.begin(KEY) == {ref: refusal}
    assert store.world(KEY, Logins()).refusals == {}


def test_a_probe_is_due_once_its_interval_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled()
    store.upstreams.probed(KEY, Probe(Target("h", 5432, "d", "u", "p", "disable", None), True, "Reachable", ""))
    now = time.monotonic()
    for later, due, seconds in ((0, False, 60), (59, False, 1), (61, True, 0.1)):
        monkeypatch.setattr(time, "monotonic", lambda at=now + later: at)
        world = store.world(KEY, Logins())
        assert world.probe_due == due
        assert world.next_probe_seconds == pytest.approx(seconds, abs=0.05)


def remembered(store: Store) -> list[set[str]]:
    world = store.world(KEY, Logins())
    return [set(memory) for memory in (world.shown, world.paused, world.moved, world.renewed)]


def test_what_is_remembered_of_a_pooler_goes_with_its_pod() -> None:
    store, uid, pod = filled(), "uid-of-p", child("Pod", "p", spec={"containers": []})
    store.observe(pod)
    store.processes.show(uid, Shown("g", 0, ""))
    store.processes.paused[uid] = PauseSeen()
    store.processes.moved[uid] = Moved(Whereabouts("pg"), 1.0, 0)
    store.processes.renewed[uid] = Renewed(RenewalCause(), 1.0, 0)
    assert remembered(store) == [{uid}] * 4
    store.observe(pod, deleted=True)
    store.observe({**pod, "metadata": {**pod["metadata"], "resourceVersion": "2"}})
    assert remembered(store) == [set()] * 4


def test_the_order_of_events_makes_no_difference_in_the_end() -> None:
    """Whatever the watches of several kinds tell first."""
    events = [
        resource(1),
        resource(6, consumers=[{"namespace": "api"}]),
        namespace("web", 2, accept_from="data"),
        namespace("web", 7),
        source(3, b"old"),
        source(8, b"new"),
        child(version=4),
        child("Secret", LOGINS.name, 5, names.ROLE_LOGINS, data=to_secret(Logins(console=login("poolkeeper")))),
    ]

    def end(order: list[Object]) -> Any:
        store = Store(SETTINGS)
        for obj in order:
            store.observe(obj)
        if (
            store.sources.get(Ref("Secret", "data", "shop-owner")) is None
        ):  # seen before anything named it: a run reads it
            store.read(source(8, b"new"))
        return (
            store.world(KEY, store.secrets.logins(KEY)),
            store.sources.get(Ref("Secret", "data", "shop-owner")),
            store.keys(),
        )

    expected = end(events)
    shuffler = random.Random(7)  # noqa: S311
    for _ in range(50):
        order = list(events)
        shuffler.shuffle(order)
        assert end(order) == expected


@pytest.mark.parametrize(
    ("text", "weight"),
    [("300", 300), ("1", 1), ("1000", 1000)]
    + [(text, 100) for text in ("", "0", "1001", "-5", "1e3", " 7", "007", "\u0663", "9" * 5000)],
)
def test_a_namespace_s_weight_is_a_whole_number_and_anything_else_counts_as_none(
    text: str, weight: int
) -> None:
    store = Store(SETTINGS)
    store.observe(resource())
    annotated = namespace("data", 2)
    annotated["metadata"]["annotations"] = {names.BUDGET_WEIGHT_ANNOTATION: text}
    assert store.observe(annotated) == {KEY}, "its own PooledDatabases are divided anew"
    assert store.namespaces()["data"].budget_weight == weight


def marked(number: int, size: int, version: int = 1) -> Object:
    made = source(version, b"x" * size, name=f"big-{number}")
    made["metadata"]["namespace"] = f"tenant-{number % 7}"
    return made


def test_of_a_secret_that_nothing_names_no_data_are_kept() -> None:
    """A hundred Secrets of 1 MB with the mark, which every tenant can put on one."""
    store = filled()
    tracemalloc.start()
    try:
        for number in range(100):
            assert store.observe(marked(number, 2**20)) == NOBODY
        for number in range(100):
            store.observe(marked(number, 2**20, version=2))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2**20
    assert store.sources.get(Ref("Secret", "tenant-3", "big-3")) is None
    assert store.sources.get(Ref("Secret", "data", "shop-owner")) == {"password": b"p"}
    for number in range(100):
        store.observe(marked(number, 1, version=3), deleted=True)


def renamed(version: int, name: str) -> Object:
    changed = resource(version)
    changed["spec"]["upstream"]["credentialsSecretRef"]["name"] = name
    return changed


def test_data_of_a_secret_are_kept_from_the_first_that_names_it_to_the_last() -> None:
    store = filled()
    store.observe(source(2, b"early", name="other"))
    assert store.sources.get(Ref("Secret", "data", "other")) is None
    assert store.world(KEY, Logins()).marked == {"shop-owner", "other"}
    store.observe(renamed(3, "other"))
    assert store.sources.get(Ref("Secret", "data", "other")) is None, "to be read"
    assert store.sources.get(Ref("Secret", "data", "shop-owner")) is None, "nothing names it any more"
    store.read(source(2, b"early", name="other"))
    assert store.sources.get(Ref("Secret", "data", "other")) == {"password": b"early"}
    assert store.observe(source(4, b"late", name="other")) == {KEY}
    store.read(source(2, b"early", name="other"))
    assert store.sources.get(Ref("Secret", "data", "other")) == {"password": b"late"}, (
        "an answer that comes late"
    )
    assert store.world(KEY, Logins()).marked == {"shop-owner", "other"}


def test_a_source_that_gets_another_role_is_none_any_more() -> None:
    store = filled()
    assert store.observe(child("Secret", "shop-owner", 2, names.ROLE_CONSUMER)) == {KEY}
    assert store.sources.get(Ref("Secret", "data", "shop-owner")) is None
    assert store.world(KEY, Logins()).marked == frozenset()
