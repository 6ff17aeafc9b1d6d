"""Every refusal of a URL names its own case, and its remedy, executed as printed, mends that case."""

from __future__ import annotations

import pytest

from poolkeeper.spec.parse import SecretKeyRef, Tls, Upstream
from poolkeeper.upstream.target import Target, TargetError, resolve, unused_parameters

PEM = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
NO_CA = Tls(None, None)
CA = Tls(None, SecretKeyRef("ca", "ca.crt"))
LOGIN = "postgres://u:pw@h/db"
NEED_CA = "spec.upstream.tls.caSecretRef"


def target(url: str, tls: Tls = NO_CA, ca: bytes = PEM) -> Target:
    upstream = Upstream(None, 5432, None, None, SecretKeyRef("url", "uri"), tls)
    return resolve(upstream, {"url": {"uri": url.encode()}, "ca": {"ca.crt": ca}})


def refusal(url: str, tls: Tls = NO_CA, ca: bytes = PEM) -> str:
    with pytest.raises(TargetError) as refused:
        target(url, tls, ca)
    return refused.value.message


# The mode that counts: what the URL says, whether the spec names a CA, and what becomes of it.
MODES = [
    ("", NO_CA, "require"),
    ("", CA, "verify-ca"),
    ("?sslmode=require", NO_CA, "require"),
    ("?sslmode=require", CA, "verify-ca"),
    ("?sslmode=verify-ca", CA, "verify-ca"),
    ("?sslmode=verify-full", CA, "verify-full"),
    ("?sslmode=disable", NO_CA, "disable"),
    ("?ssl=true", CA, "verify-ca"),
    ("?sslmode=verify-full&ssl=true", CA, "verify-ca"),
    ("?ssl=true&sslmode=verify-full", CA, "verify-full"),
    ("?sslmode=disable&sslmode=require", NO_CA, "require"),
    ("?sslrootcert=/etc/ca.pem", CA, "verify-ca"),
    ("?sslmode=require&sslrootcert=/etc/ca.pem", CA, "verify-ca"),
    ("?sslrootcert=system", CA, "verify-full"),
    ("?sslmode=verify-full&sslrootcert=system", CA, "verify-full"),
    ("?sslmode=require&sslaccept=strict", CA, "verify-full"),
    ("?sslaccept=accept_invalid_certs", NO_CA, "require"),
    ("?sslmode=verify-full&channel_binding=require", CA, "verify-full"),
    ("?sslmode=require&channel_binding=disable", NO_CA, "require"),
    ("?sslmode=verify-full&sslrootcert=system&channel_binding=require", Tls("require", None), "require"),
    ("?sslmode=prefer", Tls("require", CA.ca), "verify-ca"),
    ("?ssl=false", Tls("require", None), "require"),
]


@pytest.mark.parametrize(("query", "tls", "mode"), MODES, ids=[f"{row[0]}-{row[1].ca}" for row in MODES])
def test_the_mode_and_the_ca_count_as_they_do_for_libpq_f5(query: str, tls: Tls, mode: str) -> None:
    got = target(f"{LOGIN}{query}", tls)
    assert got.sslmode == mode
    assert got.ca == (PEM.decode() if tls.ca else None)


REFUSED = [
    # A parameter's own destination.
    ("?options=endpoint%3Dep-1", ("Neon", "sslmode=verify-full", NEED_CA)),
    ("?options=project%3Dep-1", ("Neon", "sslmode=verify-full", NEED_CA)),
    ("?options=reference%3Dabc", ("<user>.<reference>",)),
    ("?options=--cluster%3Dpony-12", ("<cluster>.<database>",)),
    ("?options=-ccluster%3Dpony-12", ("<cluster>.<database>",)),
    ("?options=-c%20search_path%3Dx", ("ALTER ROLE",)),
    ("?options=-csearch_path%3Dx%20-cjit%3Doff", ("ALTER ROLE",)),
    ("?options=--statement-timeout%3D5s", ("ALTER ROLE",)),
    ("?options=endpoint%3Dep-1%20-c%20jit%3Doff", ("Neon", "ALTER ROLE")),
    ("?options=-d%205", ("no such options",)),
    ("?statement_timeout=5s", ("ALTER ROLE",)),
    ("?TimeZone=UTC", ("ALTER ROLE",)),
    ("?currentSchema=x", ("search_path", "ALTER ROLE")),
    ("?schema=x", ("search_path", "ALTER ROLE")),
    ("?pool_mode=session", ("spec.pooler.mode",)),
    ("?ssl=false", ("sslmode=require", "sslmode=disable")),
    ("?ssl=require", ("sslmode=require", "sslmode=disable")),
    ("?ssl_min_protocol_version=TLSv1.3", ("server_tls_protocols",)),
    ("?require_auth=scram-sha-256", ("sslmode=verify-full", NEED_CA)),
    ("?sslsni=0", ("sslmode=verify-full",)),
    ("?sslnegotiation=direct", ("remove it",)),
    ("?gssencmode=require", ("sslmode",)),
    ("?host=/cloudsql/p:r:i", ("Unix socket",)),
    ("?hostaddr=10.0.0.1", ("before the question mark", "host")),
    ("?user=a@b", ("before the question mark",)),
    ("?target_session_attrs=read-write", ("takes writes",)),
    ("?target_session_attrs=standby", ("is a standby",)),
    ("?target_session_attrs=prefer-standby", ("is a standby",)),
    ("?targetServerType=secondary", ("is a standby",)),
    ("?load_balance_hosts=random", ("in turn",)),
    ("?passfile=/x", ("password itself",)),
    ("?service=x", ("into the URL",)),
    ("?sslcert=/ca.pem", ("client certificate", NEED_CA)),
    ("?frobnicate=1", ("parameter frobnicate", "URL of the app", "ALTER ROLE")),
    # TLS.
    ("?channel_binding=require", ("sslmode=verify-full", NEED_CA, "spec.upstream.tls.mode")),
    ("?sslmode=require&channel_binding=require", ("sslmode=verify-full", NEED_CA)),
    ("?sslmode=disable&channel_binding=require", ("needs TLS",)),
    ("?sslmode=disable&sslrootcert=/x", ("no effect",)),
    ("?sslrootcert=system", ("public authorities", NEED_CA)),
    ("?sslrootcert=/x", ("a file of another machine", NEED_CA)),
    ("?sslmode=require&sslaccept=strict", ("sslaccept=strict", NEED_CA)),
    ("?sslaccept=perhaps", ("sslaccept is unknown", "sslmode=verify-full")),
    ("?sslmode=", ("use one of them",)),
    # The shape.
    ("/?x", ("slash follows its database",)),
    ("/", ("slash follows its database",)),
    ("/public", ("name holds a slash", "%2F")),
    ("?x", ("has no value",)),
    (" ", ("holds a space", "%20")),
]


@pytest.mark.parametrize(("end", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_one_message_for_each_case_f14(end: str, words: tuple[str, ...]) -> None:
    message = refusal(f"{LOGIN}{end}")
    for word in words:
        assert word in message
    if "ALTER ROLE" not in words:
        assert "ALTER ROLE" not in message


STARTS = [
    ("postgresql+psycopg://u:pw@h/db", "begin it with postgresql://"),
    ("postgresql+asyncpg://u:pw@h/db", "begin it with postgresql://"),
    ("jdbc:postgresql://h/db?user=u&password=pw", "before the host"),
    ("r2dbc:postgresql://u:pw@h/db", "for Java"),
    ("prisma://accelerate.prisma-data.net/?api_key=pw", "PostgreSQL server"),
    ("prisma+postgres://accelerate.prisma-data.net/?api_key=pw", "PostgreSQL server"),
    ("host=h user=u password=pw dbname=db", "list of settings"),
    ("psql 'postgres://u:pw@h/db'", "what stands before that"),
    ("DATABASE_URL=postgres://u:pw@h/db", "what stands before that"),
    ("URL=postgres://u:pw@h/db", "what stands before that"),
    (" postgres://u:pw@h/db", "what stands before that"),
    ("\ufeffpostgres://u:pw@h/db", "what stands before that"),
    ("mysql://u:pw@h/db", "begin it with postgres://"),
    ("postgres:///db?host=h&user=u&password=p@x", "host is not supported; write it in the URL before"),
    ("postgres://h/db?user=u@server&password=pw", "user is not supported; write it in the URL before"),
    ("postgres://u:p?w=x@h/db", "%3F"),
]


@pytest.mark.parametrize(("url", "words"), STARTS, ids=[row[0] for row in STARTS])
def test_what_is_no_url_for_libpq_is_told_apart(url: str, words: str) -> None:
    assert words in refusal(url)


def test_a_ca_that_would_have_no_effect_is_refused_f5() -> None:
    message = refusal(f"{LOGIN}?sslmode=disable", CA)
    assert "sslmode=disable" in message
    assert "spec.upstream.tls.mode to verify-full" in message
    assert target(f"{LOGIN}?sslmode=disable", Tls("verify-full", CA.ca)).sslmode == "verify-full"


def test_public_authorities_go_with_the_check_of_the_name_only() -> None:
    assert "sslmode=verify-full only" in refusal(f"{LOGIN}?sslmode=require&sslrootcert=system", CA)


CERTIFICATES = [
    (b"\x30\x82\x01\x0a\x02\x82\xff", "openssl x509 -inform der"),
    (b"\xfe\xed\xfe\xed\x00\x00\x00\x02", "as PEM"),
    (b"\x1f\x8b\x08", "as PEM"),
    ("-----BEGIN CERTIFICATE-----".encode("utf-16"), "as PEM"),
    (b"-----BEGIN TRUSTED CERTIFICATE-----\nMIIB\n", "openssl x509 -in"),
    (b"-----BEGIN PRIVATE KEY-----\nMIIB\n", "PEM of another kind"),
    (b"# K\xf6ln\n" + PEM, "write it as UTF-8"),
    (b"MIIB", "as PEM"),
    (b"", "as PEM"),
]


@pytest.mark.parametrize(("content", "words"), CERTIFICATES)
def test_what_is_no_certificate_gets_the_remedy_of_its_form_f14(content: bytes, words: str) -> None:
    message = refusal(LOGIN, CA, content)
    assert words in message
    assert ("UTF-8" in message) == ("UTF-8" in words)


CLIENTS = [
    "application_name=x",
    "ApplicationName=x",
    "connect_timeout=5",
    "connection_limit=5",
    "keepalives=1",
    "keepalives_idle=30",
    "pgbouncer=true",
    "pool=5",
    "pool_max_conns=5",
    "pool_size=5",
    "pool_timeout=0",
    "statement_cache_size=0",
    "tcp_user_timeout=1000",
    "uselibpqcompat=true",
]


@pytest.mark.parametrize("parameter", CLIENTS)
def test_what_only_tunes_a_client_is_named(parameter: str) -> None:
    upstream = Upstream(None, 5432, None, None, SecretKeyRef("url", "uri"), NO_CA)
    secrets = {"url": {"uri": f"{LOGIN}?{parameter}&{parameter}".encode()}}
    assert resolve(upstream, secrets) == target(LOGIN)
    assert unused_parameters(upstream, secrets) == (parameter.partition("=")[0],)


@pytest.mark.parametrize(
    "parameter",
    [
        "target_session_attrs=any",
        "gssencmode=prefer",
        "sslnegotiation=postgres",
        "load_balance_hosts=disable",
        "schema=public",
        "options=",
    ],
)
def test_what_a_pooler_does_anyway_is_no_remark_worth(parameter: str) -> None:
    upstream = Upstream(None, 5432, None, None, SecretKeyRef("url", "uri"), NO_CA)
    secrets = {"url": {"uri": f"{LOGIN}?{parameter}".encode()}}
    assert resolve(upstream, secrets) == target(LOGIN)
    assert unused_parameters(upstream, secrets) == ()


def test_a_part_of_a_password_is_not_taken_for_the_name_of_a_parameter() -> None:
    assert "hunter" not in refusal("postgres://u:p@ss?hunter=2@h/db")
