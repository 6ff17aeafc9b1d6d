"""Lists of the API server's client: how much of them is in memory at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from poolkeeper.kube.client import Cluster

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
