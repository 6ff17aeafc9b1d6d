"""The logins of one PooledDatabase's poolers, and how they are kept in the operator's own Secret.

Knows the layout of that Secret, but neither how a login is made (mint.py) nor how PgBouncer reads it
(pgbouncer/). A password is kept along with its SCRAM verifier: a new verifier would have another salt, so every
reconcile would change the poolers' configuration.
"""

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from poolkeeper.credentials import certificates
from poolkeeper.credentials.certificates import Certificate, derive
from poolkeeper.credentials.scram import SALT_BYTES, verifier
from poolkeeper.names import APP_USER, CONSOLE_LOGIN
from poolkeeper.spec.values import forbidden_character
from poolkeeper.upstream.target import Target

AUTHORITIES_KEY = "authorities"
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
    """A user name at the pooler, its password, and the SCRAM verifier that the pooler has instead of it."""

    name: str
    password: str = field(repr=False)
    verifier: str = field(repr=False)


@dataclass(frozen=True)
class Authorities:
    """The certificate authorities of one PooledDatabase. There are two, since a keeper's key lies in its
    consumer's namespace, and must not allow its holder to pose as a pooler."""

    poolers: Certificate
    keepers: Certificate


@dataclass(frozen=True)
class Logins:
    """Every login of one PooledDatabase, and the authorities that sign its certificates.

    `consumers` is keyed by login name. `upstream` is the last target that a login has proved right: if a new
    password in the source Secret is wrong, the poolers stay on that target.
    """

    console: Login | None = None
    consumers: Mapping[str, Login] = field(default_factory=dict)
    upstream: Target | None = None
    authorities: Authorities | None = None


@functools.lru_cache(maxsize=2**16)
def keeper_console(keepers: Certificate, name: str) -> Login:
    """The operator's login at the consoles of the keepers of the consumer whose login is `name`.

    Each consumer has a different one, so a forged keeper in its namespace learns nothing that helps elsewhere.
    The login is derived from the authority's key, so nothing has to be stored.
    """
    password = base64.urlsafe_b64encode(derive(keepers, f"console/{name}")).decode().rstrip("=")
    # One iteration: the password has 256 bits, and the operator logs in at hundreds of keepers a second.
    salt = derive(keepers, f"salt/{name}")[:SALT_BYTES]
    return Login(CONSOLE_LOGIN, password, verifier(password, salt, iterations=1))


@functools.lru_cache(maxsize=2**16)
def keeper_app(keepers: Certificate, name: str) -> Login:
    """The app's login at the keepers of the consumer whose login is `name`, if they demand one.

    It is derived likewise. The password has only letters, digits, `-` and `_`, and stands in URLs unencoded.
    """
    password = base64.urlsafe_b64encode(derive(keepers, f"app/{name}")).decode().rstrip("=")
    # PostgreSQL's number of iterations: some drivers (JDBC) refuse a smaller one.
    return Login(APP_USER, password, verifier(password, derive(keepers, f"app-salt/{name}")[:SALT_BYTES]))


def keeper_certificate_name(name: str) -> str:
    """The name, which no host has, in the certificate of keepers whose consumer's login is `name`."""
    return f"{name}.keeper"


def from_secret(data: Mapping[str, bytes]) -> Logins:
    """Read the Secret's data, base64-decoded. What is unreadable counts as absent, so it is made again."""
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
        authorities=_authorities(data.get(AUTHORITIES_KEY, b"")),
    )


def to_secret(logins: Logins) -> dict[str, str]:
    """The Secret's data, base64-encoded for the API. The same logins give the same bytes."""
    texts = {f"{CONSUMER_PREFIX}{name}": _dump_login(login) for name, login in logins.consumers.items()}
    if logins.console is not None:
        texts[CONSOLE_KEY] = _dump_login(logins.console)
    if logins.upstream is not None:
        texts[UPSTREAM_KEY] = json.dumps(asdict(logins.upstream), sort_keys=True)
    if logins.authorities is not None:
        poolers, keepers = logins.authorities.poolers.key, logins.authorities.keepers.key
        texts[AUTHORITIES_KEY] = json.dumps(
            {"poolers": poolers, "keepers": keepers, "check": _check(poolers, keepers)}, sort_keys=True
        )
    return {key: base64.b64encode(text.encode()).decode() for key, text in sorted(texts.items())}


def authorities(poolers: str, keepers: str) -> Authorities:
    """The authorities with these private keys (PEM, P-256). Raises ValueError for another kind of key."""
    return Authorities(
        certificates.authority("Poolkeeper poolers", poolers),
        certificates.authority("Poolkeeper keepers", keepers),
    )


def _dump_login(login: Login) -> str:
    fields = {"password": login.password, "verifier": login.verifier, "check": _login_check(login)}
    return json.dumps(fields, sort_keys=True)


def _login_check(login: Login) -> str:
    return _check(login.name, login.password, login.verifier)


def _check(*parts: str) -> str:
    """A digest over parts that belong together, by which a manual edit of one part is noticed."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _object(value: bytes) -> dict[str, object]:
    try:
        loaded = json.loads(value)
        json.dumps(loaded, ensure_ascii=False).encode()  # raises for half a surrogate, which no file can hold
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
    return login if sound and _VERIFIER.fullmatch(verifier) and check == _login_check(login) else None


def _authorities(value: bytes) -> Authorities | None:
    match _object(value):
        case {"poolers": str(poolers), "keepers": str(keepers), "check": str(check)}:
            if check != _check(poolers, keepers):
                return None
            try:
                return authorities(poolers, keepers)
            except ValueError:
                return None
        case _:
            return None


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
