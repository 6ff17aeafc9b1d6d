"""The poolers' Service: its annotations are the user's, and the operator's own."""

from __future__ import annotations

from poolkeeper.desired import service
from poolkeeper.names import OWNER_ANNOTATION
from poolkeeper.spec.parse import parse
from tests import specs


def test_the_users_annotations_come_with_the_operators_own() -> None:
    plain = service.render(parse(specs.body(specs.MINIMAL)))
    annotated = specs.changed("pooler.serviceAnnotations", {"example.com/a": "b"})
    made = service.render(parse(specs.body(annotated)))
    assert made["metadata"]["annotations"] == {**plain["metadata"]["annotations"], "example.com/a": "b"}
    assert made["metadata"]["annotations"][OWNER_ANNOTATION] == "data/shop"
    assert made["spec"] == plain["spec"]
