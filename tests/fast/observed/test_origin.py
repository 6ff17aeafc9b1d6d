"""What proves that the operator made an object, whichever tool copies it and whatever is edited by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper import names
from poolkeeper.observed.origin import conflict, made_here, put_back
from poolkeeper.observed.refs import Ref
from tests.fast.worlds import Simulation

Object = dict[str, Any]


def fields(value: Any) -> Object:
    """fieldsV1 of an applied object: every field of its maps."""
    return {f"f:{key}": fields(item) if isinstance(item, dict) else {} for key, item in value.items()}


def stored(body: Object) -> Object:
    """What the API server stores of an object that the operator applies."""
    live = copy.deepcopy(body)
    part = {key: body["metadata"][key] for key in ("labels", "annotations")}
    entry = {"manager": names.MANAGER, "operation": "Apply", "fieldsV1": fields({"metadata": part})}
    live["metadata"] |= {"uid": "1", "resourceVersion": "1", "managedFields": [entry]}
    return live


def every_object() -> list[Object]:
    cluster = Simulation()
    cluster.edit(
        consumers=[{"namespace": "web"}, {"namespace": "data", "secretName": "own"}],
        pooler={"autoscaling": {"min": 1, "max": 2}},
    )
    cluster.settle()
    return list(cluster.objects.values())


OBJECTS = every_object()
SECRET = next(obj for obj in OBJECTS if obj["metadata"]["name"] == "database")


def title(obj: Object) -> str:
    return f"{obj['kind']} {obj['metadata']['namespace']}/{obj['metadata']['name']}"


@pytest.mark.parametrize("body", OBJECTS, ids=title)
def test_what_the_operator_applied_is_its_own(body: Object) -> None:
    assert made_here(stored(body))
    assert put_back(stored(body))


@pytest.mark.parametrize("body", OBJECTS, ids=title)
def test_an_object_of_an_operator_that_wrote_no_place_is_its_own_and_a_copy_of_it_is_not(body: Object) -> None:
    older = copy.deepcopy(body)
    del older["metadata"]["annotations"][names.ORIGIN_ANNOTATION]
    assert made_here(stored(older))
    assert not made_here(by_post(stored(older)))


def by_post(live: Object) -> Object:
    """`kubectl get -o yaml | kubectl create`, a reflector: the copy's fields are another manager's."""
    made = copy.deepcopy(live)
    entry = {"manager": "kubectl-create", "operation": "Update", "fieldsV1": {"f:data": {}}}
    made["metadata"] |= {"uid": "2", "resourceVersion": "2", "managedFields": [entry]}
    return made


def by_apply(live: Object) -> Object:
    made = by_post(live)
    made["metadata"]["managedFields"][0] |= {"manager": "kubectl", "operation": "Apply"}
    return made


def with_records(live: Object) -> Object:
    """A backup tool that restores managedFields too."""
    made = by_post(live)
    made["metadata"]["managedFields"] += live["metadata"]["managedFields"]
    return made


TOOLS: list[Callable[[Object], Object]] = [by_post, by_apply, with_records]


@given(
    st.sampled_from(OBJECTS),
    st.sampled_from(TOOLS),
    st.sampled_from(["web", "data", "closed", "web-2"]),
    st.sampled_from(["database", "loot", "database-binding", "shop-pooler", "own"]),
)
def test_a_copy_elsewhere_is_never_the_operators_own(
    body: Object, tool: Callable[[Object], Object], namespace: str, name: str
) -> None:
    made = tool(stored(body))
    made["metadata"] |= {"namespace": namespace, "name": name}
    in_place = (namespace, name) == (body["metadata"]["namespace"], body["metadata"]["name"])
    assert put_back(made) == in_place
    assert not made_here(made) or (in_place and tool is with_records)


@given(
    st.sampled_from(OBJECTS),
    st.sampled_from(["labels", "annotations"]),
    st.sampled_from([None, "", "some/body", "web/loot"]),
    st.data(),
)
def test_an_object_of_which_a_label_or_annotation_is_edited_stays_the_operators_own(
    body: Object, part: str, value: str | None, data: st.DataObject
) -> None:
    """An edited field is no longer in the record of what the operator applied."""
    live = stored(body)
    key = data.draw(st.sampled_from(sorted(live["metadata"][part])))
    live["metadata"][part].pop(key)
    if value is not None:
        live["metadata"][part][key] = value
    del live["metadata"]["managedFields"][0]["fieldsV1"]["f:metadata"][f"f:{part}"][f"f:{key}"]
    assert made_here(live)


def test_without_any_record_the_place_has_to_do() -> None:
    live = stored(SECRET)
    live["metadata"]["managedFields"] = []
    assert made_here(live)
    live["metadata"]["name"] = "loot"
    assert not made_here(live)


def refusal(live: Object, name: str = "database", kind: str = "Secret", database: str = "shop") -> str:
    """What follows after the object's own name."""
    message = conflict(Ref(kind, "web", name), live, database)
    start, middle = f"{kind} web/{name} exists and ", ", so it stays untouched"
    assert message.startswith(start)
    return message.removeprefix(start).replace(middle, "")


def test_a_conflict_says_whose_the_object_is_and_what_helps() -> None:
    foreign: Object = {"metadata": {"name": "x", "managedFields": [{"manager": "kubectl"}]}}
    assert refusal(foreign) == "is not Poolkeeper's; rename or delete it, or choose another secretName"
    for kind, name in (("Service", "shop-pooler"), ("Secret", "shop-pooler-config")):
        assert refusal(foreign, name, kind) == "is not Poolkeeper's; rename or delete it"
    by_name = {obj["metadata"]["name"]: stored(obj) for obj in OBJECTS if obj["kind"] == "Secret"}
    belongs = "belongs to PooledDatabase data/shop; "
    for name in ("database", "database-binding", "database-keeper"):
        assert refusal(by_name[name]) == f"{belongs}choose another secretName here or there"
        assert refusal(by_name[name], "x-pooler-config", database="x") == (
            f"{belongs}choose another secretName there"
        )
    assert refusal(by_name["shop-pooler-logins"]) == f"{belongs}choose another secretName here"
    assert refusal(by_name["shop-pooler-logins"], "x-pooler-logins", database="x") == (
        f"{belongs}give one of the two another name"
    )
    copied = by_post(stored(SECRET))
    copied["metadata"]["name"] = "loot"
    assert refusal(copied, "loot") == (
        "is a copy of an object of Poolkeeper's; rename or delete it, or choose another secretName"
    )
