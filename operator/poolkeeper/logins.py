"""The logins of one PooledDatabase's poolers, and how they are kept in the operator's own Secret.

Knows the layout of that Secret. Doesn't know how a login is made (mint.py) nor how PgBouncer reads it
(desired/). A password is kept beside its SCRAM verifier: a verifier made anew would have another salt, and
every reconcile would change the poolers' configuration.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from poolkeeper.names import CONSOLE_LOGIN
from poolkeeper.scalars import forbidden_character
from poolkeeper.target import Target

CONSOLE_KEY = "console"
CONSUMER_PREFIX = "consumer."
UPSTREAM_KEY = "upstream"

# The form in which PostgreSQL and PgBouncer store a SCRAM secret: iterations, salt, StoredKey and ServerKey.
_VERIFIER = re.compile(
    r"SCRAM-SHA-256\$[1-9][0-9]{0,8}:[A-Za-z0-9+/]+=*\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}="
)
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


@dataclass(frozen=True)
class Login:
    """A name at the pooler, its password, and the SCRAM verifier that the pooler knows instead of it."""

    name: str
    password: str = field(repr=False)
    verifier: str = field(repr=False)


@dataclass(frozen=True)
class Logins:
    """Every login of one PooledDatabase.

    `consumers` is keyed by login name. `upstream` is the target that a login last proved right: the poolers
    stay on it while a new password in the source Secret turns out to be wrong.
    """

    console: Login | None = None
    consumers: Mapping[str, Login] = field(default_factory=dict)
    upstream: Target | None = None


def from_secret(data: Mapping[str, bytes]) -> Logins:
    """Read the Secret's data (base64 taken off). What is unreadable counts as absent, so it is made anew."""
    consumers = {}
    for key, value in data.items():
        if key.startswith(CONSUMER_PREFIX):
            login = _login(key.removeprefix(CONSUMER_PREFIX), value)
            if login is not None:
                consumers[login.name] = login
    return Logins(
        console=_login(CONSOLE_LOGIN, data.get(CONSOLE_KEY, b"")),
        consumers=consumers,
        upstream=_target(data.get(UPSTREAM_KEY, b"")),
    )


def to_secret(logins: Logins) -> dict[str, str]:
    """The Secret's data, base64 as the API takes it. The same logins give the same bytes."""
    texts = {f"{CONSUMER_PREFIX}{name}": _dump_login(login) for name, login in logins.consumers.items()}
    if logins.console is not None:
        texts[CONSOLE_KEY] = _dump_login(logins.console)
    if logins.upstream is not None:
        texts[UPSTREAM_KEY] = json.dumps(asdict(logins.upstream), sort_keys=True)
    return {key: base64.b64encode(text.encode()).decode() for key, text in sorted(texts.items())}


def _dump_login(login: Login) -> str:
    fields = {"password": login.password, "verifier": login.verifier, "check": _check(login)}
    return json.dumps(fields, sort_keys=True)


def _check(login: Login) -> str:
    """Ties name, password and verifier together, so that an edit of one of them by hand is noticed."""
    parts = json.dumps([login.name, login.password, login.verifier])
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _object(value: bytes) -> dict[str, object]:
    try:
        loaded = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _login(name: str, value: bytes) -> Login | None:
    match _object(value):
        case {"password": str(password), "verifier": str(verifier), "check": str(check)}:
            login = Login(name, password, verifier)
        case _:
            return None
    sound = _NAME.fullmatch(name) and password.isascii() and password and not forbidden_character(password)
    return login if sound and _VERIFIER.fullmatch(verifier) and check == _check(login) else None


def _target(value: bytes) -> Target | None:
    match _object(value):
        case {
            "host": str(host),
            "port": int(port),
            "database": str(database),
            "user": str(user),
            "password": str(password),
            "sslmode": str(sslmode),
            "ca": (str() | None) as ca,
        } if not isinstance(port, bool) and 0 < port < 65536:
            return Target(host, port, database, user, password, sslmode, ca)
        case _:
            return None
