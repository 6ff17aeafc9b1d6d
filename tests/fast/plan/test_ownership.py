"""Digests: equal where the API server stored what was applied, whoever else set other fields."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.plan.ownership import desired_digest, live_digest

Object = dict[str, Any]
MANAGER = "poolkeeper"

DESIRED: Object = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "shop", "namespace": "data", "labels": {"app": "shop"}},
    "spec": {
        "replicas": 2,
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "main",
                        "image": "a",
                        "resources": {"requests": {"cpu": "1000m"}},
                        "command": ["x", "y"],
                    }
                ]
            }
        },
    },
}
FIELDS: Object = {
    "f:metadata": {"f:labels": {"f:app": {}}},
    "f:spec": {
        "f:replicas": {},
        "f:template": {
            "f:spec": {
                "f:containers": {
                    'k:{"name":"main"}': {
                        ".": {},
                        "f:name": {},
                        "f:image": {},
                        "f:command": {},
                        "f:resources": {"f:requests": {"f:cpu": {}}},
                    }
                }
            }
        },
    },
}


def live(fields: Object = FIELDS, **entry: Any) -> Object:
    """DESIRED as the API server would show it: with defaults, others' fields and who owns what."""
    obj = copy.deepcopy(DESIRED)
    obj["metadata"] |= {"uid": "1", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"}
    obj["spec"]["progressDeadlineSeconds"] = 600
    container(obj)["imagePullPolicy"] = "Always"
    obj["spec"]["template"]["spec"]["containers"].append({"name": "theirs", "image": "b"})
    obj["status"] = {"replicas": 2}
    own = {"manager": MANAGER, "operation": "Apply", "fieldsV1": fields, **entry}
    theirs = {"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    status = {"manager": MANAGER, "operation": "Apply", "subresource": "status", "fieldsV1": {"f:status": {}}}
    obj["metadata"]["managedFields"] = [theirs, own, status]
    return obj


def container(obj: Object) -> Object:
    found: Object = obj["spec"]["template"]["spec"]["containers"][0]
    return found


def test_what_the_server_adds_and_others_own_makes_no_difference() -> None:
    assert live_digest(live(), MANAGER) == desired_digest(DESIRED)


def test_the_order_of_keys_makes_no_difference() -> None:
    turned = json.loads(json.dumps(DESIRED, sort_keys=True))
    assert desired_digest(turned) == desired_digest(DESIRED)


def test_names_and_versions_are_no_part_of_it() -> None:
    other = copy.deepcopy(DESIRED)
    other["metadata"] |= {"uid": "2", "resourceVersion": "1"}
    assert desired_digest(other) == desired_digest(DESIRED)


def edit_value(obj: Object) -> None:
    obj["spec"]["replicas"] = 3


def edit_list(obj: Object) -> None:
    container(obj)["command"].append("z")


def remove_item(obj: Object) -> None:
    del obj["spec"]["template"]["spec"]["containers"][0]


def remove_value(obj: Object) -> None:
    del obj["metadata"]["labels"]["app"]


def edit_quantity(obj: Object) -> None:
    container(obj)["resources"]["requests"]["cpu"] = "1001m"


@pytest.mark.parametrize("edit", [edit_value, edit_list, remove_item, remove_value, edit_quantity])
def test_a_change_of_a_field_of_ours_shows(edit: Any) -> None:
    changed = live()
    edit(changed)
    assert live_digest(changed, MANAGER) != desired_digest(DESIRED)


def test_a_field_that_somebody_took_over_shows() -> None:
    """A forced change takes the field away from us, even where the value is the same."""
    fields = copy.deepcopy(FIELDS)
    del fields["f:spec"]["f:replicas"]
    assert live_digest(live(fields), MANAGER) != desired_digest(DESIRED)


@pytest.mark.parametrize("entry", [{"manager": "other"}, {"operation": "Update"}, {"subresource": "scale"}])
def test_only_what_we_applied_is_ours(entry: Object) -> None:
    assert live_digest(live(**entry), MANAGER) != desired_digest(DESIRED)


def test_a_field_that_is_wanted_no_more_shows() -> None:
    less = copy.deepcopy(DESIRED)
    del less["spec"]["replicas"]
    assert live_digest(live(), MANAGER) != desired_digest(less)


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("1000m", "1"),
        ("0.5Gi", "512Mi"),
        ("0.1", "100m"),
        ("129e6", "129M"),
        ("1e3Mi", "1000Mi"),
        (1, "1"),
        (0.5, "500m"),
        ("1024Ki", "1Mi"),
        ("5e-1", "500m"),
        ("0", "0"),
        ("+1", "1"),
    ],
)
def test_quantities_are_compared_by_their_amount(written: Any, stored: str) -> None:
    desired, found = copy.deepcopy(DESIRED), live()
    container(desired)["resources"]["requests"]["cpu"] = written
    container(found)["resources"]["requests"]["cpu"] = stored
    assert live_digest(found, MANAGER) == desired_digest(desired)


def test_amounts_elsewhere_are_texts() -> None:
    """`1000m` in a label is not `1`."""
    desired, found = copy.deepcopy(DESIRED), live()
    desired["metadata"]["labels"]["app"] = "1000m"
    found["metadata"]["labels"]["app"] = "1"
    assert live_digest(found, MANAGER) != desired_digest(desired)


def test_members_of_a_set_that_others_added_are_theirs() -> None:
    desired = {"metadata": {"name": "a", "finalizers": ["ours"]}}
    found = {
        "metadata": {
            "name": "a",
            "finalizers": ["theirs", "ours"],
            "managedFields": [
                {
                    "manager": MANAGER,
                    "operation": "Apply",
                    "fieldsV1": {"f:metadata": {"f:finalizers": {".": {}, 'v:"ours"': {}}}},
                }
            ],
        }
    }
    assert live_digest(found, MANAGER) == desired_digest(desired)


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=5), min_size=1, max_size=4))
def test_equal_maps_have_equal_digests_and_others_do_not(data: dict[str, str]) -> None:
    desired = {"metadata": {"name": "a"}, "data": data}
    fields: Any = {"f:data": {f"f:{key}": {} for key in data}}
    entry = {"manager": MANAGER, "operation": "Apply", "fieldsV1": fields}
    found: Any = {"metadata": {"name": "a", "managedFields": [entry]}, "data": dict(data)}
    assert live_digest(found, MANAGER) == desired_digest(desired)
    key = next(iter(data))
    found["data"][key] += "x"
    assert live_digest(found, MANAGER) != desired_digest(desired)
