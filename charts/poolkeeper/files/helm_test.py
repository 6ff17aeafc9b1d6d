"""What `helm test` runs, in the operator's image: does a leader work, and is its API served?

A Lease with a holder proves little, since a dead leader leaves its name behind. So this waits until the
holder renews it, which needs neither a clock that agrees with the operator's nor a right to read pods.
"""

import os
import sys
import time

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

DEADLINE_S = 60.0
POLL_S = 1.0
REQUEST_TIMEOUT_S = 10.0
GROUP, VERSION = "poolkeeper.io", "v1alpha1"
SERVED = {"pooleddatabases", "pooleddatabases/status", "pooleddatabases/scale"}


def missing_resources() -> set[str]:
    """What of the PooledDatabase API the API server does not serve."""
    try:
        found = client.CustomObjectsApi().get_api_resources(GROUP, VERSION, _request_timeout=REQUEST_TIMEOUT_S)
    except ApiException as error:
        if error.status == 404:
            return SERVED
        raise
    return SERVED - {resource.name for resource in found.resources}


def lease(namespace: str, name: str) -> tuple[str, object]:
    """The holder and the time of the last renewal; an empty holder where nobody works."""
    api = client.CoordinationV1Api()
    try:
        spec = api.read_namespaced_lease(name, namespace, _request_timeout=REQUEST_TIMEOUT_S).spec
    except ApiException as error:
        if error.status == 404:
            return "", None
        raise
    return spec.holder_identity or "", spec.renew_time


def check(namespace: str, name: str) -> str:
    """Return what was seen; raise TimeoutError with the last problem when the deadline passes."""
    first: tuple[str, object] | None = None
    where = f"Lease {namespace}/{name}"
    problem = ""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            missing = missing_resources()
            now = lease(namespace, name)
            if missing:
                problem = f"the API server does not serve {', '.join(sorted(missing))} of {GROUP}/{VERSION}"
            elif not now[0]:
                problem = f"{where} has no holder: no operator pod works"
            elif first is None or first[0] != now[0]:
                first = now
                problem = f"{where} is held by {now[0]} but not renewed: that pod hangs or is gone"
            elif first[1] != now[1]:
                return f"{now[0]} leads and renews its Lease; {GROUP}/{VERSION} is served"
        except ApiException as error:
            problem = f"the API server answered {error.status} {error.reason}"
        except HTTPError as error:
            problem = f"the API server could not be reached: {error}"
        time.sleep(POLL_S)
    raise TimeoutError(problem)


if __name__ == "__main__":
    config.load_incluster_config()
    try:
        print(check(os.environ["POOLKEEPER_NAMESPACE"], os.environ["POOLKEEPER_LEASE"]))
    except TimeoutError as error:
        sys.exit(f"{error} (waited {DEADLINE_S:.0f} s)")
