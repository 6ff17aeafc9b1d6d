"""Lists of the API server's client: how much of them is in memory at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from poolkeeper.kube.client import Broken, Cluster, ClusterError, Expired, Refused, watch_event

Object = dict[str, Any]
MEBIBYTE = 2**20


class Lists(Cluster):
    """Answers requests for pages of a list with 60 objects."""

    def __init__(self) -> None:
        super().__init__(None)
        self.limits: list[int] = []

    async def _request(
        self, method: str, path: str, query: Mapping[str, str] | None = None, *_: Any, **__: Any
    ) -> Object:
        assert query is not None
        start, limit = int(query.get("continue", 0)), int(query["limit"])
        self.limits.append(limit)
        items = [{"metadata": {"name": f"n-{number}"}} for number in range(start, min(start + limit, 60))]
        more = {"continue": str(start + limit)} if start + limit < 60 else {}
        return {"metadata": {"resourceVersion": "7", **more}, "items": items}


async def listed(kind: str) -> tuple[list[int], int]:
    """The limits of the requests, and how many objects came."""
    cluster = Lists()
    pages = [page async for page, _ in cluster.pages(kind, None, "poolkeeper.io/role")]
    assert all(item["kind"] == kind for page in pages for item in page)
    return cluster.limits, len({item["metadata"]["name"] for page in pages for item in page})


async def test_a_page_of_secrets_is_small_since_each_may_have_a_mebibyte() -> None:
    limits, count = await listed("Secret")
    assert count == 60
    assert max(limits) * MEBIBYTE <= 32 * MEBIBYTE


@pytest.mark.parametrize("kind", ["Deployment", "PooledDatabase", "Pod"])
async def test_a_page_of_other_objects_is_large(kind: str) -> None:
    assert await listed(kind) == ([500], 60)


def event(kind: str, **obj: Any) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode()


def test_an_event_of_a_watch() -> None:
    metadata = {"resourceVersion": "7"}
    for kind in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
        assert watch_event(event(kind, metadata=metadata), "/x") == (kind, {"metadata": metadata})


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        (event("ERROR", code=410, message="too old"), Expired, "too old"),
        (event("ERROR", code=403, message="not yours"), Refused, "not yours"),
        (event("ERROR", code=500, message="etcd"), Broken, "etcd"),
        (event("ERROR", code=504, message="slow"), Broken, "slow"),
        (event("ERROR", code=429, message="busy"), Broken, "busy"),
        (event("ERROR", code=404, message="no CRD"), Broken, "no CRD"),
        (event("ERROR", message="who knows"), Broken, "who knows"),
        (event("ERROR"), Broken, "/x answered 500"),
        (event("ERROR", code="many"), Broken, "no event"),
        (event("ADDED"), Broken, "no event"),
        (event("ADDED", metadata=None), Broken, "no event"),
        (b'{"type": "ERROR", "object": "text"}', Broken, "no event"),
        (b'{"type": "ADDED"}', Broken, "no event"),
        (b'["ADDED"]', Broken, "no event"),
        (b"7", Broken, "no event"),
        (b"<html>" * 1000, Broken, "no event"),
        (b"\xff", Broken, "no event"),
    ],
)
def test_an_error_of_a_watch_says_what_to_do(line: bytes, kind: type[ClusterError], said: str) -> None:
    with pytest.raises(ClusterError, match=said) as caught:
        watch_event(line, "/x")
    assert type(caught.value) is kind
    assert len(caught.value.message) < 200
