"""Server connections that are not idle although no client is left: those of the poolers, of the keeper, and on
the server itself."""

from __future__ import annotations

import time
from collections.abc import Iterator

from e2e import kube
from e2e.bench.soak_clients import APP
from poolkeeper import names
from poolkeeper.consumers.consent import Consumer
from poolkeeper.consumers.entries import login_name
from poolkeeper.credentials.logins import from_secret, keeper_console
from tests.e2e.client import QueryError, Row, Session
from tests.e2e.keeper_kit import SECRET
from tests.e2e.kit import Place, dsn

SECONDS = 10.0
_BUSY = """SELECT pid, state, coalesce(left(query, 80), '') AS query FROM pg_stat_activity
 WHERE usename = '{role}' AND state <> 'idle'"""


def stuck(place: Place) -> list[str]:
    """What is still busy 10 s after all clients have left."""
    end = time.monotonic() + SECONDS
    while (found := [*_busy(place)]) and time.monotonic() < end:
        time.sleep(0.5)
    return found


def _busy(place: Place) -> Iterator[str]:
    try:
        with place.consoles() as consoles:
            for console in consoles:
                yield from _not_idle("a pooler", console.execute("SHOW SERVERS"))
    except QueryError as error:  # a pod that has just gone
        yield f"a pooler's console: {error}"
    with Session(place.agent, _keeper(place), console=True) as console:
        yield from _not_idle("the keeper", console.execute("SHOW SERVERS"))
    for row in place.server.run(_BUSY.format(role=place.role)):
        # The operator's own connection is in a transaction only while it measures.
        yield f"PostgreSQL: process {row['pid']} is {row['state']}: {row['query']}"


def _not_idle(owner: str, rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if row["database"] != "pgbouncer" and row["state"] not in ("idle", "used", "tested"):
            yield f"{owner}: a server connection of {row['database']} is {row['state']}"


def _keeper(place: Place) -> str:
    """Of the keeper's console."""
    secret = place.secret("shop-pooler-logins", place.data)
    authorities = from_secret({key: value.encode() for key, value in secret.items()}).authorities
    assert authorities is not None
    login = keeper_console(authorities.keepers, login_name(Consumer(place.web, SECRET)))
    pod = kube.get("pod", place.web, APP)
    assert pod is not None
    query = "?sslmode=require"
    return dsn(pod["status"]["podIP"], login.name, login.password, "pgbouncer", names.KEEPER_PORT, query)
