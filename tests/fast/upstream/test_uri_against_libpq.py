"""Whatever URL libpq's own parser accepts is understood here in the same way, or refused with a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import psycopg
import psycopg.conninfo
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg import pq

from poolkeeper.spec.parse import SecretKeyRef, Tls, Upstream
from poolkeeper.upstream import uri_parameters
from poolkeeper.upstream.target import Target, TargetError, resolve

PEM = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
EFFECTIVE = {"require": "verify-ca"}
"""What libpq makes of a mode if it has a CA (its page on SSL support)."""

LIBPQ = sorted(option.keyword.decode() for option in pq.Conninfo.get_defaults())
DRIVERS = [
    "pool",
    "pool_size",
    "connection_limit",
    "schema",
    "ssl",
    "sslaccept",
    "pgbouncer",
    "search_path",
    "x",
]
VALUES = st.one_of(
    st.sampled_from(
        ["disable", "allow", "prefer", "require", "verify-ca", "verify-full", "no-verify", "system"]
    ),
    st.sampled_from(["any", "primary", "standby", "read-write", "strict", "public", "true", "false", "", "0"]),
    st.sampled_from(
        ["/a/ca.pem", "5432", "70000", "endpoint%3Dx", "--cluster%3Dx", "-c%20a%3Db", "a%20b", " a"]
    ),
    st.sampled_from(["%", "%00", "%ff", "a=b", "scram-sha-256", "x@y"]),
)
PART = st.text("ab:@/?#[]%&=+ ,;\\'\"é\t" + "012", max_size=8)
ENCODED = st.one_of(PART.map(lambda text: quote(text, safe="")), st.just("ab"), PART)
HOST = st.one_of(
    st.sampled_from(["h", "pg.data.svc", "10.0.0.1", "[::1]", "h."]),
    st.sampled_from(["[fe80::1%25eth0]", "h1,h2", "h1%2Ch2", "%2Frun", "", "::1", "h@x", "[h]", "[::1]x"]),
)
PORT = st.sampled_from(
    ["", ":", ":5432", ":05432", ":65535", ":0", ":65536", ":99999999", ":+1", ":5432,", ":x"]
)
SCHEME = st.sampled_from(["postgres://", "postgresql://", "Postgres://", "postgresql+psycopg://"])
PAIR = st.one_of(
    st.tuples(st.sampled_from([*sorted(uri_parameters.OF_TLS), "ssl"]), VALUES),
    st.tuples(st.sampled_from(LIBPQ + DRIVERS), VALUES),
).map("=".join)
QUERY = st.one_of(
    st.lists(PAIR, max_size=3).map(lambda pairs: "?" + "&".join(pairs)), st.sampled_from(["", "?x&"])
)


def one_odd(plain: str, odd: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Mostly plain: a URL with several oddities is refused for the first of them."""
    return st.integers(0, 3).flatmap(lambda number: odd if number == 0 else st.just(plain))


@st.composite
def urls(draw: st.DrawFn) -> str:
    login = draw(one_odd("u:pw", st.tuples(ENCODED, ENCODED).map(":".join)))
    host, port = draw(one_odd("h", HOST)), draw(one_odd(":5433", PORT))
    path = draw(one_odd("/db", st.one_of(ENCODED.map(lambda name: f"/{name}"), st.just(""))))
    return f"{draw(one_odd('postgres://', SCHEME))}{login}@{host}{port}{path}{draw(QUERY)}"


def understood(url: str, *, ca: bool) -> Target | None:
    """What the URL means here; None if it is refused, which takes a reason and a remedy."""
    tls = Tls(None, SecretKeyRef("ca", "ca.crt") if ca else None)
    upstream = Upstream(None, 5432, None, None, SecretKeyRef("url", "uri"), tls)
    try:
        return resolve(upstream, {"url": {"uri": url.encode()}, "ca": {"ca.crt": PEM}})
    except TargetError as refusal:
        if "; " not in refusal.message:
            raise
        return None


def of_libpq(url: str) -> Mapping[str, str] | None:
    """What the URL means to libpq, None if it is an error there."""
    try:
        return {name: str(value) for name, value in psycopg.conninfo.conninfo_to_dict(url).items()}
    except (psycopg.ProgrammingError, UnicodeDecodeError):
        return None


@given(url=urls(), ca=st.booleans())
@example(url="postgres://u:pw@h/db?sslmode=disable&ssl=true", ca=True)
@example(url="postgres://u:pw@h/db?sslmode=verify-full&sslmode=require", ca=True)
@example(url="postgres://u:pw@h/db?sslmode=verify-full&sslrootcert=system", ca=True)
@example(url="postgres://u:pw@h/db?channel_binding=require", ca=False)
@settings(max_examples=250)
def test_a_url_means_the_same_as_to_libpq_or_is_refused(url: str, ca: bool) -> None:
    target, libpq = understood(url, ca=ca), of_libpq(url)
    if target is None:
        return
    if libpq is None or "@" in libpq.get("host", "") + libpq.get("port", ""):
        # More than libpq takes: a scheme in capitals, parameters of drivers, an @ that was not encoded. None of
        # them becomes the part of a host or a login that was not meant.
        assert url.lower().startswith(("postgres://", "postgresql://"))
        return
    assert (target.host, target.user, target.password, target.database) == tuple(
        libpq[name] for name in ("host", "user", "password", "dbname")
    )
    assert target.port == int(libpq.get("port", "5432"))
    mode = libpq.get("sslmode", "verify-full" if libpq.get("sslrootcert") == "system" else "require")
    assert target.sslmode == (EFFECTIVE.get(mode, mode) if ca else mode)
    assert ca == (target.ca is not None)
    for name, value in libpq.items():
        if name in {"host", "port", "user", "password", "dbname"}:
            continue
        assert (
            name in uri_parameters.OF_TLS
            or uri_parameters.is_clients(name)
            or uri_parameters.is_done_anyway(name, value)
        ), name


def test_every_parameter_of_libpq_has_a_destination() -> None:
    assert [name for name in LIBPQ if not uri_parameters.is_known(name)] == []


@given(name=st.sampled_from(LIBPQ + DRIVERS), value=st.text(max_size=20))
def test_no_remedy_quotes_a_value(name: str, value: str) -> None:
    marked = f"Tr0ub4dor{value}"
    assert "Tr0ub4dor" not in uri_parameters.remedy(name, marked)
