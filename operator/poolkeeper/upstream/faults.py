"""Classifies failed PostgreSQL connections by their text.

For a failed connection libpq gives no SQLSTATE, only text: its own, or the server's after a severity. Pure, and
knows neither host nor Secret.
"""

import re

from poolkeeper.upstream import tls

AUTHENTICATION_FAILED = "AuthenticationFailed"
DATABASE_MISSING = "DatabaseMissing"
TLS_FAILED = "TlsFailed"
DNS_FAILED = "DnsFailed"
CONNECTION_REFUSED = "ConnectionRefused"
TIMEOUT = "Timeout"
TOO_MANY_CONNECTIONS = "TooManyConnections"
OVERSIZED = "AnswerTooLarge"
"""The server sends more than PostgreSQL does. libpq does not say so: upstream/libpq.py does."""
UNAVAILABLE = "Unavailable"

ANSWERED = frozenset({AUTHENTICATION_FAILED, DATABASE_MISSING, TOO_MANY_CONNECTIONS})
"""The server itself said so: more telling than a failure of the way to it."""

MESSAGE_LIMIT = 300

# The first match counts: of several addresses tried, one whose server answered says more than one where
# nothing listens. The servers' messages are those of PostgreSQL, PgBouncer and hosted poolers.
_PATTERNS = (
    (
        AUTHENTICATION_FAILED,
        r"(password|SASL|SCRAM|GSSAPI|LDAP|PAM|RADIUS|certificate|Ident|Peer) authentication failed"
        r"|no pg_hba\.conf entry|pg_hba\.conf rejects|is not permitted to log in|role \S+ does not exist"
        r"|permission denied for database|no password supplied|no authentication method is found"
        r"|Tenant or user not found|no such user|authentication method \d+ not supported|wrong password"
        r"|authentication method requirement \S+ failed",
    ),
    (DATABASE_MISSING, r"database \S.* does not exist|no such database"),
    (
        TOO_MANY_CONNECTIONS,
        r"too many (clients|connections)|connection slots are reserved|no more connections allowed"
        r"|max_client_conn",
    ),
    (
        TLS_FAILED,
        r"SSL error|SSL was required|does not support SSL|certificate|[tT][lL][sS]v?[0-9.]* alert|SSL SYSCALL"
        r"|SSL connection|SSL context|TLS",
    ),
    (DNS_FAILED, r"failed to resolve host|could not translate host name|'idna' codec|DNS lookup failed"),
    (TIMEOUT, r"timeout expired|timed out|login_timeout|Connection timed out"),
    (CONNECTION_REFUSED, r"Connection refused|the pooler is shutting down"),
)
_COMPILED = tuple((reason, re.compile(pattern)) for reason, pattern in _PATTERNS)

_PREFIX = re.compile(
    r'(?:connection failed: )?connection to server at "[^"]*"(?: \([^)]*\))?, port \d+ failed: '
)
_SEVERITY = re.compile(r"^(\w{3,30}):  ", re.MULTILINE)


def reason(text: str, user: str, database: str) -> str:
    """Classify the text of a failed connection attempt as one of the reasons above."""
    said = _PREFIX.sub("", text)
    for found, pattern in _COMPILED:
        if pattern.search(said):
            return found
    if _SEVERITY.search(said):
        # The server's answer in another language names the user if the server rejects the login, the database
        # if that is missing, and neither if the server is starting, stopping or full.
        if _mentions(said, user):
            return AUTHENTICATION_FAILED
        if _mentions(said, database):
            return DATABASE_MISSING
    return UNAVAILABLE


def quoted(text: str, password: str) -> str:
    """The first line of the text from libpq or the server, without its preamble, at most MESSAGE_LIMIT long. Of
    several attempts at several addresses, the most telling one is quoted.

    A server can send any text, so a password that it repeats is blotted out.
    """
    said = _SEVERITY.sub("", _most_telling(text)).strip()
    if password:
        said = said.replace(password, "[password]")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    first = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", lines[0]) if lines else "no reason given"
    return first if len(first) <= MESSAGE_LIMIT else first[: MESSAGE_LIMIT - 1] + "…"


def lacks_tls(text: str) -> bool:
    """Whether the most telling attempt failed since the server offers no TLS."""
    return tls.NOT_OFFERED in _most_telling(text)


def _most_telling(text: str) -> str:
    attempts = [attempt for attempt in _PREFIX.split(text) if attempt.strip()]
    return min(attempts, key=_rank, default="")


def _rank(text: str) -> int:
    """The lower, the more telling."""
    found = (number for number, (_, pattern) in enumerate(_COMPILED) if pattern.search(text))
    return next(found, len(_COMPILED))


def _mentions(text: str, name: str) -> bool:
    return bool(name) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
