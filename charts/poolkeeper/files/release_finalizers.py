"""What `helm uninstall` runs last, in the operator's image: takes the operator's finalizer off what is left.

Without the operator nobody would ever do that, and a PooledDatabase, its namespace or the CRD could not be
deleted any more. Poolers and Secrets stay as they are, so that apps go on working. An operator that is
installed again puts the finalizer back and carries on.
"""

import os
import sys
import time
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

DEADLINE_S = 90.0
POLL_S = 1.0
REQUEST_TIMEOUT_S = 30.0
FINALIZER = "poolkeeper.io/cleanup"
KIND = {"group": "poolkeeper.io", "version": "v1alpha1", "plural": "pooleddatabases"}
GONE_OR_CHANGED = (404, 409)


def held(namespaces: list[str]) -> list[dict[str, Any]]:
    """Metadata of every PooledDatabase that carries the finalizer; none where the CRD is gone."""
    api = client.CustomObjectsApi()
    limit = {"_request_timeout": REQUEST_TIMEOUT_S}
    try:
        if namespaces:
            lists = [api.list_namespaced_custom_object(namespace=name, **KIND, **limit) for name in namespaces]
        else:
            lists = [api.list_cluster_custom_object(**KIND, **limit)]
    except ApiException as error:
        if error.status == 404:
            return []
        raise
    found = [item["metadata"] for page in lists for item in page["items"]]
    return [metadata for metadata in found if FINALIZER in metadata.get("finalizers", [])]


def release(metadata: dict[str, Any]) -> None:
    """Take the finalizer off, unless the resource has changed since it was read."""
    others = [name for name in metadata["finalizers"] if name != FINALIZER]
    client.CustomObjectsApi().patch_namespaced_custom_object(
        namespace=metadata["namespace"],
        name=metadata["name"],
        body={"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": others}},
        _request_timeout=REQUEST_TIMEOUT_S,
        **KIND,
    )
    print(f"released {metadata['namespace']}/{metadata['name']}")


def release_all(namespaces: list[str]) -> bool:
    """Until nothing carries the finalizer (True) or the deadline passes (False)."""
    deadline = time.monotonic() + DEADLINE_S
    while left := held(namespaces):
        if time.monotonic() > deadline:
            return False
        for metadata in left:
            try:
                release(metadata)
            except ApiException as error:
                if error.status not in GONE_OR_CHANGED:
                    raise
        time.sleep(POLL_S)
    return True


if __name__ == "__main__":
    config.load_incluster_config()
    watched = os.environ["POOLKEEPER_WATCH_NAMESPACES"]
    if not release_all([name for name in watched.split(",") if name]):
        sys.exit(f"some PooledDatabases still carry the finalizer {FINALIZER} after {DEADLINE_S:.0f} s")
