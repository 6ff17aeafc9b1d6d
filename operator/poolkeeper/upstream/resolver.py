"""Resolves a host by the names that it stands for (dns.py). Nothing else in the operator resolves an upstream.

The resolver of the operator's own pod would complete a host from the operator's namespace, and so lead a login
with a user's password to a Service there.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from poolkeeper.dns import Names

LOOKUPS = 32
"""Maximum number of lookups for logins at one time. They have threads of their own, and a host occupies one at
most: hosts whose DNS is slow must not delay the logins at others."""

Resolve = Callable[[Names], tuple[str, ...]]
"""Returns the addresses of the first name that exists; none if none does, or it is unknown. Blocks."""

_MISSING = (socket.EAI_NONAME, socket.EAI_NODATA)
_threads = ThreadPoolExecutor(LOOKUPS, "login-lookup")
_asked: dict[Names, Future[tuple[str, ...]]] = {}
"""The lookups under way."""


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
    done, _ = await asyncio.wait({asyncio.wrap_future(_lookup(wanted))}, timeout=timeout)
    if not done:
        raise OSError(f"failed to resolve host {host!r}: no answer within {timeout:.2g} s")
    addresses = done.pop().result()
    if not addresses:
        first = wanted.tried[0].rstrip(".")
        tried = f"tried {first}" + (f" and {len(wanted.tried) - 1} more names" if len(wanted.tried) > 1 else "")
        raise OSError(f"failed to resolve host {host!r}: {tried}")
    return {"host": ",".join([host] * len(addresses)), "hostaddr": ",".join(addresses)}


def _lookup(names: Names) -> Future[tuple[str, ...]]:
    """The lookup of these names that is under way, or a new one."""
    asked = _asked.get(names)
    if asked is None:
        asked = _asked[names] = _threads.submit(resolve, names)
        asked.add_done_callback(lambda _: _asked.pop(names, None))
    return asked
