"""The operator's process: settings, watches, leadership."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import kopf

from poolkeeper import names, settings
from poolkeeper.host_port import host_port
from poolkeeper.kube.client import Cluster, ClusterError, Conflict, connect
from poolkeeper.kube.leader import LostLease
from poolkeeper.kube.leadership import Leadership
from poolkeeper.observed.refs import Key
from poolkeeper.printable import LogFormatter
from poolkeeper.queue import Queue
from poolkeeper.reconcile import Reconciler
from poolkeeper.store.store import Store
from poolkeeper.watch import handlers, resync, watches
from poolkeeper.webhook import server

log = logging.getLogger(__name__)

RECURSION_LIMIT = 25_000
"""The API server stores objects that are nested 10,000 levels deep, and each level takes one of recursion to
decode and up to two to copy: with Python's own limit, 1,000, such an object ends every watch of its kind."""


def main() -> None:
    """Run until a signal ends the process (exit 0) or the lease is lost (exit 1)."""
    sys.setrecursionlimit(RECURSION_LIMIT)
    try:
        own = settings.from_environment(os.environ, _resolv_conf())
    except settings.SettingsError as error:
        sys.exit(f"poolkeeper: {error}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)-7s %(name)s %(message)s"))
    logging.basicConfig(level=own.log_level, handlers=[handler])
    for noisy in ("kopf", "aiohttp.access"):  # the second logs every health probe
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It logs every attempt of its watches. poolkeeper.watch reports each failure of the API server itself.
    logging.getLogger("kopf._cogs.clients.watching").setLevel(logging.CRITICAL)
    log.info("names of the cluster's Services end with .svc.%s", own.dns.domain)
    try:
        asyncio.run(_run(own))
    except LostLease as error:
        sys.exit(f"poolkeeper: {error}")


def _resolv_conf() -> str:
    """The text of the pod's own resolver configuration."""
    try:
        return Path("/etc/resolv.conf").read_text(errors="replace")
    except OSError:
        return ""


async def _run(own: settings.Settings) -> None:
    # Admission has a connection of its own, like the Lease: neither must queue behind other requests.
    cluster, admission = await connect(), await connect()
    store = Store(own)
    leadership = Leadership(own)
    reconciler = Reconciler(cluster, store, own, leadership)
    watching = asyncio.Event()
    tasks = [
        asyncio.create_task(_signalled(watching)),
        *([asyncio.create_task(server.serve(admission, own, own.webhook))] if own.webhook else []),
        asyncio.create_task(_watch(cluster, store, reconciler.queue, own, watching)),
        asyncio.create_task(watches.watch(cluster, store, reconciler.queue)),
        asyncio.create_task(leadership.lead(lambda: resync.work(cluster, store, reconciler.queue, own))),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    finally:
        # The leader first: when kopf ends, it cancels every younger task, also the wait for the Lease's end.
        for task in reversed(tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for one in (cluster, admission):
            await one.close()


async def _signalled(watching: asyncio.Event) -> None:
    """Wait for a signal to end. kopf takes over SIGTERM and SIGINT at its start: this takes them back."""
    await watching.wait()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


async def _watch(
    cluster: Cluster, store: Store, queue: Queue[Key], own: settings.Settings, watching: asyncio.Event
) -> None:
    await _installed(cluster, own)
    await kopf.operator(
        registry=handlers.registry(store, queue, own),
        settings=handlers.watch_settings(own),
        standalone=True,
        # Of itself kopf asks for the name of the user, and one that the cluster assigned has none.
        identity=own.identity,  # type: ignore[arg-type]
        clusterwide=not own.watch_namespaces,
        namespaces=own.watch_namespaces,
        ready_flag=watching,
        liveness_endpoint=f"http://{host_port(own.health_address, own.health_port)}/healthz",
    )


async def _installed(cluster: Cluster, own: settings.Settings) -> None:
    """Wait for the CRD: if kopf doesn't find a kind at its start, it never searches for it again."""
    while True:
        try:
            await cluster.version(names.KIND, next(iter(own.watch_namespaces), None))
        except Conflict:
            log.warning(
                "PooledDatabases are unknown to the API server: install the CRD, with the chart's "
                "crds.enabled=true or by kubectl apply --server-side -f crds/pooleddatabases.yaml"
            )
            await asyncio.sleep(handlers.RETRY_SECONDS)
            continue
        except ClusterError:
            pass  # kopf tries again by itself
        return


if __name__ == "__main__":
    main()
