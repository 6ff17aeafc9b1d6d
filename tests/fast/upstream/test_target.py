"""Where the upstream is: out of separate keys or a URL, in the shapes that providers hand out."""

from urllib.parse import quote

import psycopg.conninfo
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.spec.parse import CredentialsRef, SecretKeyRef, Tls, Upstream
from poolkeeper.spec.values import forbidden_character
from poolkeeper.upstream.target import Target, TargetError, resolve

PEM = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
NO_TLS_WISH = Tls(None, None)
WITH_CA = Tls(None, SecretKeyRef("ca", "ca.crt"))

# Everything that a file, a connection string or a URL could trip over.
AWKWARD = [
    "p'w",
    "p w",
    "p\\w",
    "p@w",
    "p:w",
    "p/w",
    "p?w",
    "p#w",
    "p%w",
    "p%41w",
    'p"w',
    "pä€🐘",
    " p ",
    "=;&+,[]",
]

printable = st.text(min_size=1, max_size=60).filter(
    lambda text: forbidden_character(text) is None and not any("\ud800" <= c <= "\udfff" for c in text)
)


def by_host(data: dict[str, bytes], tls: Tls = NO_TLS_WISH) -> Target:
    reference = CredentialsRef("owner", "username", "password")
    upstream = Upstream("pg.data.svc", 5432, "shop", reference, None, tls)
    return resolve(upstream, {"owner": data, "ca": {"ca.crt": PEM}})


def by_url(url: str | bytes, tls: Tls = NO_TLS_WISH) -> Target:
    upstream = Upstream(None, 5432, None, None, SecretKeyRef("url", "uri"), tls)
    data = url.encode() if isinstance(url, str) else url
    return resolve(upstream, {"url": {"uri": data}, "ca": {"ca.crt": PEM}})


def refused(url: str | bytes, tls: Tls = NO_TLS_WISH) -> TargetError:
    with pytest.raises(TargetError) as refusal:
        by_url(url, tls)
    return refusal.value


def test_keys_of_a_secret_become_a_login_with_tls() -> None:
    target = by_host({"username": b"shop", "password": b"s3cret"})
    assert target == Target("pg.data.svc", 5432, "shop", "shop", "s3cret", "require", None)


def test_disable_must_be_written() -> None:
    assert by_host({"username": b"u", "password": b"p"}, Tls("disable", None)).sslmode == "disable"


@pytest.mark.parametrize("value", AWKWARD)
def test_quote_space_backslash_and_utf8_in_password_and_user_stay_as_they_are(value: str) -> None:
    target = by_host({"username": value.encode(), "password": value.encode()})
    assert (target.user, target.password) == (value, value)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_trailing_line_feed_in_a_secret_is_stripped_once(end: str) -> None:
    target = by_host({"username": f"shop{end}".encode(), "password": f"pw{end}".encode()})
    assert (target.user, target.password) == ("shop", "pw")


@pytest.mark.parametrize(
    "value", ["a\n\n", "a\nb", "a\r", "a\x00", "\ta", "a\u0085", "a\u2028b", "a\u2029", "\na"]
)
def test_line_feed_cr_nul_and_u2028_in_a_secret_are_refused_without_showing_it(value: str) -> None:
    with pytest.raises(TargetError) as refusal:
        by_host({"username": b"shop", "password": f"hunter2{value}".encode()})
    assert refusal.value.reason == "InvalidValue"
    assert "key password of Secret owner" in refusal.value.message
    assert "remove it" in refusal.value.message
    assert "hunter2" not in refusal.value.message


@pytest.mark.parametrize("data", [{"username": b"u"}, {"username": b"u", "password": b""}, {"password": b"\n"}])
def test_empty_or_missing_password_key_is_named(data: dict[str, bytes]) -> None:
    with pytest.raises(TargetError) as refusal:
        by_host(data)
    assert refusal.value.reason == "SecretKeyMissing"
    assert "of Secret owner" in refusal.value.message


def test_a_password_that_is_only_a_line_feed_is_empty() -> None:
    with pytest.raises(TargetError, match="password of Secret owner is empty"):
        by_host({"username": b"u", "password": b"\n"})


def test_a_missing_secret_is_named() -> None:
    upstream = Upstream("pg", 5432, "shop", CredentialsRef("owner", "username", "password"), None, NO_TLS_WISH)
    with pytest.raises(TargetError, match="Secret owner does not exist") as refusal:
        resolve(upstream, {})
    assert refusal.value.reason == "SecretMissing"


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(TargetError, match="is not UTF-8") as refusal:
        by_host({"username": b"u", "password": b"\xff\xfe"})
    assert refusal.value.reason == "InvalidValue"


@pytest.mark.parametrize(("key", "size"), [("username", 128), ("password", 2048)])
def test_what_pgbouncer_would_cut_off_is_refused(key: str, size: int) -> None:
    with pytest.raises(TargetError, match=f"longer than the {size - 1} bytes"):
        by_host({"username": b"u", "password": b"p", key: b"x" * size})
    by_host({"username": b"u", "password": b"p", key: b"x" * (size - 1)})


def test_the_ca_comes_along_and_must_be_a_certificate() -> None:
    tls = Tls("verify-full", SecretKeyRef("ca", "ca.crt"))
    assert by_host({"username": b"u", "password": b"p"}, tls).ca == PEM.decode()

    upstream = Upstream("pg", 5432, "shop", CredentialsRef("owner", "username", "password"), None, tls)
    secrets = {"owner": {"username": b"u", "password": b"p"}, "ca": {"ca.crt": b"a key, say"}}
    with pytest.raises(TargetError, match="holds no certificate"):
        resolve(upstream, secrets)


def test_the_password_does_not_show_in_the_representation() -> None:
    assert "s3cret" not in repr(by_host({"username": b"shop", "password": b"s3cret"}))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param(
            "postgres://shop:pw@pg.data.svc/shop",
            ("pg.data.svc", 5432, "shop", "shop", "pw", "require"),
            id="plain",
        ),
        pytest.param(
            "postgresql://app:pw@mydb.abc123.eu-west-1.rds.amazonaws.com:5432/app?sslmode=require",
            ("mydb.abc123.eu-west-1.rds.amazonaws.com", 5432, "app", "app", "pw", "require"),
            id="RDS",
        ),
        pytest.param(
            "postgresql://neondb_owner:npg_x@ep-cool-darkness-123456.us-east-2.aws.neon.tech/neondb"
            "?sslmode=require&channel_binding=prefer",
            (
                "ep-cool-darkness-123456.us-east-2.aws.neon.tech",
                5432,
                "neondb",
                "neondb_owner",
                "npg_x",
                "require",
            ),
            id="Neon",
        ),
        pytest.param(
            "postgresql://postgres.abcdefgh:pw@aws-0-eu-central-1.pooler.supabase.com:6543/postgres?pgbouncer=true",
            ("aws-0-eu-central-1.pooler.supabase.com", 6543, "postgres", "postgres.abcdefgh", "pw", "require"),
            id="Supabase",
        ),
        pytest.param(
            "postgres://default:pw@x.supabase.com:6543/db?sslmode=require&supa=base-pooler.x",
            ("x.supabase.com", 6543, "db", "default", "pw", "require"),
            id="Supabase through Vercel",
        ),
        pytest.param(
            "postgresql://postgres:pw@containers-us-west-1.railway.app:6969/railway",
            ("containers-us-west-1.railway.app", 6969, "railway", "postgres", "pw", "require"),
            id="Railway",
        ),
        pytest.param(
            "postgres://u:pw@10.0.0.3:5432/db?sslmode=disable",
            ("10.0.0.3", 5432, "db", "u", "pw", "disable"),
            id="IP",
        ),
        pytest.param(
            "postgres://u:pw@[2001:db8::1]:5433/db",
            ("2001:db8::1", 5433, "db", "u", "pw", "require"),
            id="IPv6",
        ),
        pytest.param(
            "postgres://u:pw@[::1]/db", ("::1", 5432, "db", "u", "pw", "require"), id="IPv6 without port"
        ),
        pytest.param(
            "POSTGRES://u:pw@h:5432/db?ssl=true",
            ("h", 5432, "db", "u", "pw", "require"),
            id="ssl=true as in JDBC",
        ),
        pytest.param(
            "postgres://u:pw@h/db?schema=public&connection_limit=5&pool_timeout=0&sslaccept=accept_invalid_certs",
            ("h", 5432, "db", "u", "pw", "require"),
            id="Prisma",
        ),
        pytest.param(
            "postgres://u:pw@h/db?serverVersion=16&charset=utf8",
            ("h", 5432, "db", "u", "pw", "require"),
            id="Doctrine",
        ),
        pytest.param(
            "postgres://u:pw@h/db?application_name=x&connect_timeout=5&target_session_attrs=any",
            ("h", 5432, "db", "u", "pw", "require"),
            id="libpq",
        ),
        pytest.param(
            "postgres://u:p@w:x@h/db", ("h", 5432, "db", "u", "p@w:x", "require"), id="@ and : unencoded"
        ),
        pytest.param(
            "postgres://u:pw@h/db\n", ("h", 5432, "db", "u", "pw", "require"), id="line feed at the end"
        ),
    ],
)
def test_urls_as_providers_hand_them_out(url: str, expected: tuple[object, ...]) -> None:
    target = by_url(url)
    got = (target.host, target.port, target.database, target.user, target.password, target.sslmode)
    assert got == expected


@pytest.mark.parametrize("value", AWKWARD)
def test_every_special_character_in_a_url_works_percent_encoded(value: str) -> None:
    coded = quote(value, safe="")
    target = by_url(f"postgres://{coded}:{coded}@h/{coded}")
    assert (target.user, target.password, target.database) == (value, value, value)


@given(user=printable, password=printable, database=printable, port=st.integers(1, 65535))
def test_a_url_is_read_as_libpq_reads_it(user: str, password: str, database: str, port: int) -> None:
    if database in ("pgbouncer", "*") or len(database.encode()) > 63 or len(user.encode()) > 127:
        return
    coded = {part: quote(text, safe="") for part, text in zip("upd", (user, password, database), strict=True)}
    url = "postgresql://{u}:{p}@h.example:{port}/{d}".format(port=port, **coded)
    libpq = psycopg.conninfo.conninfo_to_dict(url)
    target = by_url(url)
    assert (target.user, target.password, target.database) == (
        libpq["user"],
        libpq["password"],
        libpq["dbname"],
    )
    assert (target.host, str(target.port)) == (libpq["host"], libpq["port"])


@pytest.mark.parametrize("code", ["%0A", "%0D", "%1B", "%C2%85", "%E2%80%A8"])
@pytest.mark.parametrize("part", ["user", "password", "database", "host"])
def test_an_encoded_line_end_in_any_part_is_refused(code: str, part: str) -> None:
    parts = {"user": "u", "password": "pw", "database": "db", "host": "h"}
    parts[part] += f"{code}x"
    refusal = refused("postgres://{user}:{password}@{host}/{database}".format(**parts))
    assert refusal.reason == "InvalidValue"
    assert f"the URL's {part}" in refusal.message


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://u:pw@h/db", "begin it with postgres://"),
        ("u:pw@h/db", "begin it with postgres://"),
        ("postgres://h/db", "it has no user name"),
        ("postgres://u@h/db", "it has no password"),
        ("postgres://u:@h/db", "it has no password"),
        ("postgres://u:pw@h", "names no database"),
        ("postgres://u:pw@h/", "names no database"),
        ("postgres://u:pw@h/a/b", "%2F"),
        ("postgres://u:pw@/db", "names no host"),
        ("postgres://u:pw@h1,h2/db", "several hosts"),
        ("postgres://u:pw@h1:1,h2:2/db", "several hosts"),
        ("postgres://u:pw@h:0/db", "not a number from 1 to 65535"),
        ("postgres://u:pw@h:65536/db", "not a number from 1 to 65535"),
        ("postgres://u:pw@h:x/db", "not a number from 1 to 65535"),
        ("postgres://u:pw@2001:db8::1/db", "an IPv6 address goes in brackets"),
        ("postgres://u:pw@[::1/db", "IPv6 address is not closed"),
        ("postgres://u:pw@h%20x/db", "write the name or address alone"),
        ("postgres://u:pw@h1%2Ch2/db", "write the name or address alone"),
        ("postgres://u:pw@[::1],[::2]/db", "several hosts"),
        ("postgres://u:pw@[fe80::1%25eth0]/db", "write the name or address alone"),
        ("postgres://u:pw@[1:2:3]/db", "an IPv6 address with two to seven colons"),
        ("postgres://u:pw@127.1/db", "an IPv4 address as four numbers"),
        ("postgres://u:pw@0x7f000001/db", "an IPv4 address as four numbers"),
        ("postgres://u:pw@pg..data/db", "correct the name"),
        ("postgres://u:pw@%2Fvar%2Frun/db", "write the name or address alone"),
        ("postgres://u:p#w@h/db", "write one in a password as %23"),
        ("postgres://u:p/w@h/db", "%2F"),
        ("postgres://u:p?w@h/db", "%3F"),
        ("postgres://u:p%FFw@h/db", "encode its parts as UTF-8"),
        ("postgres://u:100%@h/db", "write a literal one as %25"),
        ("postgres://u:pw%00@h/db", "write a literal one as %25"),
        ("postgres://u:pw@h/pgbouncer", "PgBouncer's console"),
        ("postgres://u:pw@h/*", "its wildcard"),
        ("postgres://u:pw@h/" + "x" * 64, "63 bytes"),
        ("postgres://u:pw@h/db?options=-csearch_path%3Dx", "ALTER ROLE"),
        ("postgres://u:pw@h/db?schema=tenant", "ALTER ROLE"),
        ("postgres://u:pw@h/db?host=/cloudsql/x", "before the question mark"),
        ("postgres://u:pw@h/db?user=root", "before the question mark"),
        ("postgres://u:pw@h/db?target_session_attrs=read-write", "the server that takes writes"),
        ("postgres://u:pw@h/db?sslcert=/x&sslkey=/y", "instead of a client certificate"),
        ("postgres://u:pw@h/db?gssencmode=require", "remove it from the URL"),
        ("postgres://u:pw@h/db?sslnegotiation=direct", "remove it from the URL"),
        ("postgres://u:pw@h/db?service=x", "remove it from the URL"),
        ("postgres://u:pw@h/db?ssl=maybe", "remove it from the URL"),
        ("postgres://u:pw@h/db?sslmode", "write name=value"),
        ("postgres://u:pw@h/db?sslmode=prefer", "use one of them"),
        ("postgres://u:pw@h/db?sslmode=no-verify", "use one of them"),
        ("postgres://u:pw@h/db?sslmode=require&sslrootcert=/x.pem", "spec.upstream.tls.caSecretRef"),
        ("postgres://u:pw@h/db?sslmode=verify-full", "spec.upstream.tls.caSecretRef"),
        ("postgres://u:pw@h/db?sslaccept=strict", "sslmode=verify-full"),
    ],
)
def test_a_url_that_cannot_be_honoured_is_refused_with_a_remedy(url: str, words: str) -> None:
    refusal = refused(url)
    assert refusal.reason == "InvalidUri"
    assert words in refusal.message


@given(st.text(max_size=80), st.text("abc%:@/?#[]&=0123456789", max_size=40))
def test_no_refusal_shows_a_part_of_the_url(secret: str, noise: str) -> None:
    password = "Tr0ub4dor"
    # The parameter at the end is never supported, so that there always is a refusal.
    refusal = refused(f"postgres://u:{password}{noise}@{noise}h/{secret}?x{secret}=".encode(errors="replace"))
    assert password not in refusal.message


def test_a_final_dot_goes_with_every_mode_that_checks_no_name_f1() -> None:
    for mode, tls in (("disable", NO_TLS_WISH), ("require", NO_TLS_WISH), ("verify-ca", WITH_CA)):
        target = by_url(f"postgres://u:pw@pg.data.svc.cluster.local./db?sslmode={mode}", tls)
        assert (target.host, target.sslmode) == ("pg.data.svc.cluster.local.", mode)
    with pytest.raises(TargetError, match="leave the dot out") as refusal:
        by_url("postgres://u:pw@pg.data.svc.cluster.local./db?sslmode=verify-full", WITH_CA)
    assert refusal.value.reason == "InvalidValue"


def test_the_mode_in_the_spec_wins_over_the_url() -> None:
    assert by_url("postgres://u:pw@h/db?sslmode=disable", Tls("require", None)).sslmode == "require"
    assert by_url("postgres://u:pw@h/db?sslmode=prefer", Tls("disable", None)).sslmode == "disable"


def test_a_ca_in_the_spec_replaces_the_file_that_the_url_names() -> None:
    target = by_url("postgres://u:pw@h/db?sslmode=verify-full&sslrootcert=/certs/bundle.pem", WITH_CA)
    assert (target.sslmode, target.ca) == ("verify-full", PEM.decode())


def test_a_url_secret_without_its_key_is_named() -> None:
    upstream = Upstream(None, 5432, None, None, SecretKeyRef("url", "uri"), NO_TLS_WISH)
    with pytest.raises(TargetError, match="key uri of Secret url is missing") as refusal:
        resolve(upstream, {"url": {"URL": b"x"}})
    assert refusal.value.reason == "SecretKeyMissing"


# Host, port and database from the credentials' Secret

WRITTEN = {
    "CloudNativePG": ({"host": "shop-rw", "port": "5432", "dbname": "shop"}, ("host", "port", "dbname")),
    "Crossplane": (
        {"endpoint": "shop.abc.rds.amazonaws.com", "port": "5432", "db": "shop"},
        ("endpoint", "port", "db"),
    ),
    "RDS": (
        {"host": "shop.abc.rds.amazonaws.com", "port": "5433\n", "dbname": "shop\n"},
        ("host", "port", "dbname"),
    ),
}


def by_keys(values: dict[str, str | bytes], keys: tuple[str | None, str | None, str | None]) -> Target:
    login = {"username": b"shop", "password": b"s3cret"}
    data = login | {key: value.encode() if isinstance(value, str) else value for key, value in values.items()}
    host, _, database = keys
    upstream = Upstream(
        host=None if host else "pg.data.svc",
        port=5432,
        database=None if database else "shop",
        credentials=CredentialsRef("owner", "username", "password", *keys),
        uri=None,
        tls=NO_TLS_WISH,
    )
    return resolve(upstream, {"owner": data})


@pytest.mark.parametrize("origin", WRITTEN)
def test_a_secret_that_names_the_server_is_read_by_its_keys(origin: str) -> None:
    values, keys = WRITTEN[origin]
    target = by_keys({**values}, keys)
    host, port, database = (values[key].strip() for key in keys)
    assert (target.host, target.port, target.database) == (host, int(port), database)
    assert (target.user, target.password) == ("shop", "s3cret")


def test_each_key_may_stand_alone() -> None:
    assert by_keys({"host": "pg2"}, ("host", None, None)).host == "pg2"
    assert by_keys({"port": "5433"}, (None, "port", None)).port == 5433
    assert by_keys({"name": "x"}, (None, None, "name")).database == "x"


@pytest.mark.parametrize(
    ("values", "reason", "words"),
    [
        ({}, "SecretKeyMissing", "key host of Secret owner is missing"),
        ({"host": ""}, "SecretKeyMissing", "key host of Secret owner is empty"),
        ({"host": "pg:5432"}, "InvalidValue", "key host of Secret owner is not one DNS name"),
        ({"host": "a,b"}, "InvalidValue", "key host of Secret owner is not one DNS name"),
        ({"host": "pg\nport=1"}, "InvalidValue", "U+000A"),
        ({"host": b"\xff"}, "InvalidValue", "not UTF-8"),
        ({"host": "pg", "port": "0"}, "InvalidValue", "key port of Secret owner is not a port"),
        ({"host": "pg", "port": "65536"}, "InvalidValue", "1 to 65535"),
        ({"host": "pg", "port": "5432;"}, "InvalidValue", "1 to 65535"),
        ({"host": "pg", "port": "\u0665"}, "InvalidValue", "1 to 65535"),
        ({"host": "pg", "port": "5432", "db": "pgbouncer"}, "InvalidValue", "key db of Secret owner"),
        ({"host": "pg", "port": "5432", "db": "x" * 64}, "InvalidValue", "key db of Secret owner"),
    ],
)
def test_a_value_that_names_no_server_is_refused_by_its_key(
    values: dict[str, str | bytes], reason: str, words: str
) -> None:
    with pytest.raises(TargetError) as refusal:
        by_keys(values, ("host", "port", "db"))
    assert refusal.value.reason == reason
    assert words in refusal.value.message
    assert "s3cret" not in refusal.value.message
