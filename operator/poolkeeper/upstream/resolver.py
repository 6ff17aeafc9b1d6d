"""Resolves a host by the names that it stands for (dns.py). Nothing else in the operator resolves an upstream.

The resolver of the operator's own pod would complete a host from the operator's namespace, and so lead a login
with a user's password to a Service there.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from poolkeeper.dns import Names

LOOKUPS = 4
"""Maximum number of lookups for one namespace at one time."""

Resolve = Callable[[Names], tuple[str, ...]]
"""Returns the addresses of the first name that exists; none if none does, or it is unknown. Blocks."""

_MISSING = (socket.EAI_NONAME, socket.EAI_NODATA)


def resolve(names: Names) -> tuple[str, ...]:
    """Resolve a host. If the cluster's DNS gives no answer for a name of its own, the host is unknown: a later
    name may lead out of the cluster (`pg.dev`)."""
    for name in names.tried:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError as error:
            if error.errno not in _MISSING and names.is_of_cluster(name):
                return ()
        except UnicodeError:
            pass
        else:
            return tuple(dict.fromkeys(str(item[4][0]) for item in found))
    return ()


async def parameters(host: str, names: Names | None, timeout: float) -> dict[str, str]:
    """The libpq parameters that lead to a host, within `timeout` seconds: each of its addresses, in turn.
    Certificates are verified against the host as it is written, as poolers do it. Without `names`, the host is
    complete.

    Raises OSError if the host is not resolved.
    """
    wanted = Names.of(host) if names is None else names
    if not wanted.tried:
        return {"host": host}
    done, _ = await asyncio.wait({asyncio.wrap_future(_for_logins.ask(wanted, resolve))}, timeout=timeout)
    if not done:
        raise OSError(f"failed to resolve host {host!r}: no answer within {timeout:.2g} s")
    addresses = done.pop().result()
    if not addresses:
        first = wanted.tried[0].rstrip(".")
        tried = f"tried {first}" + (f" and {len(wanted.tried) - 1} more names" if len(wanted.tried) > 1 else "")
        raise OSError(f"failed to resolve host {host!r}: {tried}")
    return {"host": ",".join([host] * len(addresses)), "hostaddr": ",".join(addresses)}


class Lookups:
    """Lookups in threads, a few for each namespace: hosts whose DNS is slow delay no other namespace's. A host
    occupies one thread at most."""

    def __init__(self) -> None:
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._asked: dict[Names, Future[tuple[str, ...]]] = {}
        self._lock = threading.RLock()

    def ask(self, names: Names, how: Resolve) -> Future[tuple[str, ...]]:
        """The lookup of these names that is under way, or a new one."""
        with self._lock:
            asked = self._asked.get(names)
            if asked is None:
                if names.namespace not in self._threads:
                    self._threads[names.namespace] = ThreadPoolExecutor(LOOKUPS, "lookup")
                asked = self._asked[names] = self._threads[names.namespace].submit(how, names)
                asked.add_done_callback(lambda _: self._forget(names))
        return asked

    def _forget(self, names: Names) -> None:
        with self._lock:
            del self._asked[names]
            if all(other.namespace != names.namespace for other in self._asked):
                self._threads.pop(names.namespace).shutdown(wait=False)


_for_logins = Lookups()
