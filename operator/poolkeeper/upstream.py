"""The operator's own logins: to an upstream, and through a pooler pod as one of its consumers.

Knows libpq through psycopg, and says what a failure means to the user. Nothing else speaks to PostgreSQL.
"""

import asyncio
import contextlib
from dataclasses import dataclass

import psycopg

from poolkeeper import faults, libpq
from poolkeeper.logins import Login
from poolkeeper.target import Target

REACHABLE = "Reachable"
POOLER_REFUSED = "PoolerRefused"

_POOLER_REFUSALS = (
    "no authentication method is found",
    "SASL authentication failed",
    "no such database",
    "not allowed",
)
"""What PgBouncer says when a login isn't in its userlist or hba file, or an entry not in its [databases]."""

_REMEDIES = {
    faults.AUTHENTICATION_FAILED: "correct user name and password in the Secret, or the server's pg_hba.conf",
    faults.DATABASE_MISSING: "create the database, or correct its name in spec.upstream",
    faults.TLS_FAILED: "check spec.upstream.tls: its mode, its CA, and the name in the server's certificate",
    faults.DNS_FAILED: "correct spec.upstream.host, or create the Service that it names",
    faults.CONNECTION_REFUSED: "start the server, or correct host and port in spec.upstream",
    faults.TIMEOUT: "check that the server is up and that no firewall or NetworkPolicy drops the packets",
    faults.TOO_MANY_CONNECTIONS: "raise max_connections of the server, or lower what its other clients use",
    faults.UNAVAILABLE: "check the server's log",
}


@dataclass(frozen=True)
class Observation:
    """The outcome of one login. `server_version` is PostgreSQL's number (170011); None without a login."""

    reachable: bool
    reason: str
    message: str
    server_version: int | None = None


async def probe(target: Target, timeout: float) -> Observation:
    """Log in to the upstream and run SELECT 1, in at most `timeout` seconds.

    Never raises for what is wrong with the database or the way to it; no message holds the password.
    """
    where = f"{target.host}:{target.port}"
    try:
        with _authority(target) as authority:
            version = await _log_in(
                timeout,
                host=target.host,
                port=str(target.port),
                dbname=target.database,
                user=target.user,
                password=target.password,
                sslmode=target.sslmode,
                **authority,
            )
    except TimeoutError:
        return _unreachable(faults.TIMEOUT, where, f"no answer within {timeout:.2g} s")
    except (psycopg.Error, OSError, UnicodeError, ValueError) as error:
        text = str(error)
        reason = faults.reason(text, target.user, target.database)
        return _unreachable(reason, where, faults.quoted(text, target.password))
    return Observation(True, REACHABLE, f"logged in at {where} as {target.user}", version)


async def trial_login(host: str, port: int, login: Login, entry: str, timeout: float) -> Observation:
    """Log in at a pooler as a consumer and run SELECT 1, in at most `timeout` seconds.

    Success proves the login's lines in userlist and hba file, its entry, and that the pooler reaches the
    upstream. (It may be served by a server connection that the pooler holds already.) A refusal by the pooler
    itself has the reason PoolerRefused; any other failure has the reason that probe() would give.
    """
    where = f"{host}:{port}"
    try:
        version = await _log_in(
            timeout,
            host=host,
            port=str(port),
            dbname=entry,
            user=login.name,
            password=login.password,
            sslmode="disable",
        )
    except TimeoutError:
        # PgBouncer lets a login wait while it keeps trying the upstream.
        message = (
            f"login through the pooler at {where} did not finish within {timeout:.2g} s: the pooler can't log"
            " in to the upstream (its log says why), or can't be reached itself"
        )
        return Observation(False, faults.TIMEOUT, message)
    except (psycopg.Error, OSError) as error:
        text = str(error)
        said = faults.quoted(text, login.password)
        if any(refusal in text for refusal in _POOLER_REFUSALS):
            return Observation(False, POOLER_REFUSED, f"the pooler at {where} refuses {login.name}: {said}")
        reason = faults.reason(text, login.name, entry)
        return Observation(False, reason, f"login through the pooler at {where}: {said}")
    return Observation(True, REACHABLE, f"logged in through the pooler at {where}", version)


def _unreachable(reason: str, where: str, said: str) -> Observation:
    return Observation(False, reason, f"login at {where}: {said}; {_REMEDIES[reason]}")


async def _log_in(timeout: float, **parameters: str) -> int:
    """One login and one query, together within `timeout`; returns the server's version."""
    end = asyncio.get_running_loop().time() + timeout
    async with libpq.connect(timeout, **parameters) as connection:
        await libpq.execute(connection, "SELECT 1", end - asyncio.get_running_loop().time())
        return connection.info.server_version


def _authority(target: Target) -> contextlib.AbstractContextManager[dict[str, str]]:
    """The CA where it is verified. None for `require`, which a CA would turn into verify-ca."""
    if target.sslmode.startswith("verify-"):
        return libpq.authority(target.ca or "")
    return contextlib.nullcontext({})
