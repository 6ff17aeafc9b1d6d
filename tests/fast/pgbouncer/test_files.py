"""The files and URLs that PgBouncer and the apps read: their exact contents, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.consumers import entries
from poolkeeper.consumers.consent import Consumer
from poolkeeper.consumers.database_url import jdbc_url, pgpass_line, r2dbc_url, url
from poolkeeper.consumers.entries import Entry
from poolkeeper.credentials import certificates, mint
from poolkeeper.credentials.logins import Login, Logins
from poolkeeper.pgbouncer import console, hba, userlist
from poolkeeper.pgbouncer import ini as pgbouncer_ini
from poolkeeper.pgbouncer.configuration import INI, Configuration, configuration, kept_files
from poolkeeper.pgbouncer.ini import Paths
from poolkeeper.upstream.target import Target

TARGET = Target("pg.data.svc", 5432, "shop", "shop_owner", "it's", "require", None)
PATHS = Paths("/c/userlist", "/c/hba", "/c/ca", "/c/tls-ca", "/c/tls.crt", "/c/tls.key", "/c/pod.ini")
AUTHORITIES = mint.authorities()
NOW = datetime(2026, 1, 2, tzinfo=UTC)
CERTIFICATE = certificates.issue(AUTHORITIES.poolers, "shop-pooler.data.svc", NOW)
WEB, API = Consumer("web", "database"), Consumer("api", "database")
VERIFIER = f"SCRAM-SHA-256$4096:{'A' * 22}==${'B' * 43}=:{'C' * 43}="
ENTRY = Entry("shop--web-x", "shop", "web-x", "transaction", "web/database")
CONTROL = ["\n", "\r", "\x00", "\t", "\x7f", "\x85", "\u2028", "\u2029"]


def stored(*consumers: Consumer) -> Logins:
    named = {name: Login(name, f"pw-{name}", VERIFIER) for name in map(entries.login_name, consumers)}
    return Logins(Login("poolkeeper", "console-password", VERIFIER), named, authorities=AUTHORITIES)


def made(target: Target = TARGET, parameters: dict[str, str] | None = None, *who: Consumer) -> Configuration:
    consumers = who or (WEB, API)
    rows = entries.entries(target, consumers, "transaction")
    return configuration(target, rows, stored(*consumers), CERTIFICATE, parameters or {}, "/etc/poolkeeper")


# pgbouncer.ini


def ini(target: Target, parameters: dict[str, str], peers: dict[int, str]) -> str:
    settings = pgbouncer_ini.settings(target, parameters, PATHS)
    return pgbouncer_ini.render(settings, PATHS.pod, peers, {"web-x": 470, "api-x": 94})


def files(target: Target, entry: Entry, parameters: dict[str, str]) -> tuple[str, str]:
    return ini(target, parameters, {}), pgbouncer_ini.line(target, entry)


def test_the_line_of_an_entry() -> None:
    session = replace(ENTRY, name="shop--web-x.session", pool_mode="session", max_clients=9)
    assert pgbouncer_ini.line(TARGET, ENTRY) == (
        "shop--web-x = host='pg.data.svc' port='5432' dbname='shop' user='shop_owner' password='it''s'"
        " pool_mode='transaction' application_name='web/database'"
    )
    assert pgbouncer_ini.line(TARGET, session) == (
        "shop--web-x.session = host='pg.data.svc' port='5432' dbname='shop' user='shop_owner' password='it''s'"
        " pool_mode='session' application_name='web/database' max_db_client_connections='9'"
    )


def test_the_ini_file() -> None:
    parameters = {"query_timeout": "7", "server_check_query": ""}
    assert ini(TARGET, parameters, {7: "10.0.0.7"}) == (
        "[pgbouncer]\n"
        "admin_users = poolkeeper\n"
        "auth_file = /c/userlist\n"
        "auth_hba_file = /c/hba\n"
        "auth_type = hba\n"
        "client_tls_ca_file = /c/tls-ca\n"
        "client_tls_cert_file = /c/tls.crt\n"
        "client_tls_key_file = /c/tls.key\n"
        "client_tls_sslmode = allow\n"
        "dns_max_ttl = 2\n"
        "dns_nxdomain_ttl = 2\n"
        "ignore_startup_parameters = extra_float_digits\n"
        "listen_addr = *\n"
        "listen_port = 6432\n"
        "log_connections = 0\n"
        "log_disconnections = 0\n"
        "max_client_conn = 1000\n"
        "max_prepared_statements = 200\n"
        "query_timeout = 7\n"
        "server_check_query =\n"
        "server_connect_timeout = 2\n"
        "server_lifetime = 3600\n"
        "server_login_retry = 1\n"
        "server_tls_ca_file = /c/ca\n"
        "server_tls_sslmode = require\n"
        "tcp_keepcnt = 3\n"
        "tcp_keepidle = 30\n"
        "tcp_keepintvl = 10\n"
        "tcp_user_timeout = 10000\n"
        "track_extra_parameters = IntervalStyle,idle_in_transaction_session_timeout,lock_timeout,search_path,"
        "statement_timeout\n"
        "unix_socket_dir =\n"
        "verbose = 0\n"
        "%include /c/pod.ini\n"
        "\n"
        "[users]\n"
        "api-x = max_user_client_connections=94\n"
        "web-x = max_user_client_connections=470\n"
        "\n"
        "[peers]\n"
        "7 = host=10.0.0.7 port=6432\n"
    )


@pytest.mark.parametrize("character", CONTROL, ids=ascii)
@pytest.mark.parametrize("place", ["user", "password", "database", "application_name", "parameter"])
def test_the_ini_file_takes_no_control_character_anywhere(place: str, character: str) -> None:
    poison = f"a{character}admin_users = a"
    target = {"user": replace(TARGET, user=poison), "password": replace(TARGET, password=poison)}.get(
        place, TARGET
    )
    entry = {
        "database": replace(ENTRY, database=poison),
        "application_name": replace(ENTRY, application_name=poison),
    }.get(place, ENTRY)
    parameters = {"server_check_query": poison} if place == "parameter" else {}
    with pytest.raises(ValueError, match=r"control character U\+") as caught:
        files(target, entry, parameters)
    assert poison not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"host": "a,b"},
        {"host": "/var/run"},
        {"host": ""},
        {"host": "a b"},
        {"user": ""},
        {"user": "u" * 128},
        {"password": ""},
        {"password": "p" * 2048},
        {"password": "md5" + "0123456789abcdef" * 2},
        {"password": VERIFIER},
        {"sslmode": "prefer"},
    ],
    ids=lambda change: next(iter(change)) + "=" + next(iter(change.values()))[:12],
)
def test_the_ini_file_refuses_an_upstream_that_pgbouncer_would_read_otherwise(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="upstream") as caught:
        files(replace(TARGET, **change), ENTRY, {})
    assert not change.get("password") or change["password"] not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "pgbouncer", "*", "a b", "A", "a=b", "[x]", ";a", "#a", "%include", "x" * 64]
)
def test_the_ini_file_refuses_an_entry_of_another_alphabet(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a database entry"):
        pgbouncer_ini.line(TARGET, replace(ENTRY, name=name))


@pytest.mark.parametrize(
    "parameters",
    [
        {"admin_users": "eve"},
        {"auth_file": "/etc/passwd"},
        {"listen_addr": "127.0.0.1"},
        {"%include": "/etc/passwd"},
        {"[peers]": "1"},
        {"stats_period": " 1"},
    ],
    ids=lambda parameters: next(iter(parameters)),
)
def test_the_ini_file_refuses_settings_that_are_not_the_users(parameters: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"operator sets|cannot name a setting|begins or ends with a space"):
        ini(TARGET, parameters, {})


# userlist.txt and the hba file


def test_the_userlist_is_sorted_quoted_and_ends_with_the_marker() -> None:
    users = [Login("web", "never written", VERIFIER), Login('a"b', "never written", VERIFIER)]
    assert userlist.render(users, "0123456789ab").rstrip("\n") == (
        f'"a""b" "{VERIFIER}"\n"web" "{VERIFIER}"\n"pk.0123456789ab" ""'
    )


@pytest.mark.parametrize(
    "login", [Login("a\nb", "", VERIFIER), Login("a", "", f"x\n{VERIFIER}"), Login("a", "p", "")]
)
def test_the_userlist_refuses_line_ends_and_logins_without_a_verifier(login: Login) -> None:
    with pytest.raises(ValueError, match=r"control character|no SCRAM verifier"):
        userlist.render([login], "0123456789ab")


def test_the_hba_file_ties_each_login_to_its_entries() -> None:
    session = replace(ENTRY, name="shop--web-x.session", pool_mode="session")
    other = Entry("shop--api-y", "shop", "api-y", "session", "api/database")
    assert hba.render([session, ENTRY, other], "poolkeeper") == (
        'host "pgbouncer" "poolkeeper" all scram-sha-256\n'
        'host "shop--api-y" "api-y" all scram-sha-256\n'
        'host "shop--web-x","shop--web-x.session" "web-x" all scram-sha-256\n'
    )


@pytest.mark.parametrize("name", ["", "a b", 'a"', "@file", "+group", "a,b", "Web", "a\n"])
def test_the_hba_file_refuses_names_with_a_meaning(name: str) -> None:
    for entry in (replace(ENTRY, name=name), replace(ENTRY, login=name)):
        with pytest.raises(ValueError, match="hba file"):
            hba.render([entry], "poolkeeper")


# Names


NAMESPACE = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
SECRET = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?", fullmatch=True)
CONSUMER = st.builds(Consumer, NAMESPACE, SECRET)
DATABASE = st.text(min_size=1, max_size=63)


def test_names_can_be_recognised() -> None:
    assert re.fullmatch(r"web-database-[a-z2-7]{10}", entries.login_name(WEB))
    assert re.fullmatch(r"shop--web-[a-z2-7]{10}", entries.entry_name("shop", WEB))
    assert entries.session_entry_name("shop", WEB) == entries.entry_name("shop", WEB) + ".session"
    assert entries.application_name(WEB) == "web/database"


@given(consumer=CONSUMER, database=DATABASE)
def test_names_fit_postgresql_and_mean_nothing_special(consumer: Consumer, database: str) -> None:
    login = entries.login_name(consumer)
    main, session = entries.entry_name(database, consumer), entries.session_entry_name(database, consumer)
    for name in (login, main, session):
        assert re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,62}", name)
        assert name not in ("pgbouncer", "poolkeeper", "postgres", "all", "replication")
        assert not re.fullmatch(r"pk\.[0-9a-f]{12}", name)
    shown = entries.application_name(consumer)
    assert len(shown) <= 63
    assert shown.isascii()


@given(consumers=st.sets(CONSUMER, min_size=2, max_size=5), databases=st.sets(DATABASE, min_size=2, max_size=4))
def test_different_consumers_and_databases_have_different_names(
    consumers: set[Consumer], databases: set[str]
) -> None:
    assert len({entries.login_name(one) for one in consumers}) == len(consumers)
    assert len({entries.application_name(one) for one in consumers}) == len(consumers)
    pairs = [(database, one) for database in databases for one in consumers]
    names = {entries.entry_name(*pair) for pair in pairs} | {
        entries.session_entry_name(*pair) for pair in pairs
    }
    assert len(names) == 2 * len(pairs)


def test_long_names_that_differ_at_the_end_only_stay_apart() -> None:
    one, other = (Consumer("n" * 62 + end, "s" * 252 + end) for end in "ab")
    for name in (entries.login_name, entries.application_name):
        assert name(one) != name(other)
    assert entries.entry_name("d" * 63, one) != entries.entry_name("d" * 63, other)


def test_every_consumer_has_an_entry_in_the_pools_mode_and_one_in_session_mode() -> None:
    rows = entries.entries(TARGET, [WEB, API, WEB], "statement")
    assert [(row.login, row.pool_mode, row.database) for row in rows] == [
        (entries.login_name(API), "statement", "shop"),
        (entries.login_name(API), "session", "shop"),
        (entries.login_name(WEB), "statement", "shop"),
        (entries.login_name(WEB), "session", "shop"),
    ]


def test_a_login_named_like_the_upstreams_user_is_refused() -> None:
    with pytest.raises(ValueError, match="use another user"):
        entries.entries(replace(TARGET, user=entries.login_name(WEB)), [WEB], "transaction")


# Configurations


def test_a_configuration_says_what_the_console_must_show() -> None:
    whole = made(TARGET, {"stats_period": "7"}, WEB)
    generation = whole.generation
    assert re.fullmatch(r"[0-9a-f]{12}", generation)
    [ca] = [name for name in whole.files if name.startswith("ca-")]
    tls = [name for name in whole.files if name.startswith("tls-")]
    assert len(tls) == 3
    assert set(whole.files) == {INI, f"userlist-{generation}.txt", f"hba-{generation}.conf", ca, *tls}
    assert whole.settings["auth_file"] == f"/etc/poolkeeper/userlist-{generation}.txt"
    assert whole.settings["auth_hba_file"] == f"/etc/poolkeeper/hba-{generation}.conf"
    assert whole.settings["server_tls_ca_file"] == f"/etc/poolkeeper/{ca}"
    assert whole.settings["stats_period"] == "7"
    assert whole.users == {"poolkeeper", entries.login_name(WEB), f"pk.{generation}"}
    row = {"host": "pg.data.svc", "port": "5432", "database": "shop", "force_user": "shop_owner"}
    assert whole.databases == {
        entries.entry_name("shop", WEB): row | {"pool_mode": "transaction"},
        entries.session_entry_name("shop", WEB): row | {"pool_mode": "session"},
    }


CHANGES: dict[str, Callable[[], Configuration]] = {
    "password": lambda: made(replace(TARGET, password="another")),
    "ca": lambda: made(replace(TARGET, ca="-----BEGIN CERTIFICATE-----")),
    "parameter": lambda: made(TARGET, {"stats_period": "8"}),
    "consumers": lambda: made(TARGET, {}, WEB),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_generation_follows_every_change_and_nothing_else(change: Callable[[], Configuration]) -> None:
    assert made() == made()
    assert change().generation != made().generation


def test_the_path_of_the_ca_follows_the_ca_alone() -> None:
    """PgBouncer closes all server connections when it changes."""
    before = made().settings["server_tls_ca_file"]
    assert CHANGES["parameter"]().settings["server_tls_ca_file"] == before
    assert CHANGES["password"]().settings["server_tls_ca_file"] == before
    assert CHANGES["ca"]().settings["server_tls_ca_file"] != before


def test_the_generation_cannot_be_computed_without_the_consoles_password() -> None:
    rows = entries.entries(TARGET, [WEB], "transaction")
    logins = stored(WEB)
    assert logins.console is not None
    other = replace(logins, console=replace(logins.console, password="another"))
    first, second = (configuration(TARGET, rows, each, CERTIFICATE, {}, "/c") for each in (logins, other))
    assert first.generation != second.generation


def test_a_configuration_shows_no_secret_when_it_is_printed() -> None:
    target = replace(TARGET, password="upstream-password")
    shown = repr(made(target))
    assert "upstream-password" not in shown
    assert VERIFIER not in shown
    assert "pw-" not in repr(stored(WEB))


def test_a_configuration_needs_its_logins_and_for_verification_a_ca() -> None:
    rows = entries.entries(TARGET, [WEB], "transaction")
    with pytest.raises(ValueError, match="console"):
        configuration(TARGET, rows, replace(stored(WEB), console=None), CERTIFICATE, {}, "/c")
    with pytest.raises(ValueError, match=entries.login_name(WEB)):
        configuration(TARGET, rows, stored(API), CERTIFICATE, {}, "/c")
    with pytest.raises(ValueError, match="certificate authority"):
        configuration(replace(TARGET, sslmode="verify-full"), rows, stored(WEB), CERTIFICATE, {}, "/c")


def test_the_files_of_one_generation_before_are_kept_and_no_more() -> None:
    first, second, third = made(), CHANGES["ca"](), CHANGES["parameter"]()
    old = {name for name in first.files if name != INI}
    assert kept_files({}, first.generation) == {}
    kept = kept_files(first.files, second.generation)
    assert kept == {name: first.files[name] for name in old}
    both = {**kept, **second.files, "somebody-elses.txt": ""}
    assert old <= set(kept_files(both, second.generation)) <= set(both) - {INI, "somebody-elses.txt"}
    assert set(kept_files(both, third.generation)) == set(second.files) - {INI}


# URLs


def test_urls() -> None:
    parts = ("db.svc", 6432, "u@x", "p:/?#%é", "shop--web-x")
    assert url(*parts) == "postgresql://u%40x:p%3A%2F%3F%23%25%C3%A9@db.svc:6432/shop--web-x"
    assert url(*parts, sslmode="verify-full", application_name="a b").endswith(
        "/shop--web-x?sslmode=verify-full&application_name=a%20b"
    )
    assert url("2001:db8::1", 5432, "u", "", "d") == "postgresql://u@[2001:db8::1]:5432/d"
    assert jdbc_url(*parts) == (
        "jdbc:postgresql://db.svc:6432/shop--web-x?user=u%40x&password=p%3A%2F%3F%23%25%C3%A9"
    )
    assert r2dbc_url(*parts) == f"r2dbc:{url(*parts)}"
    assert pgpass_line("db.svc", 6432, "u:x", "p\\w", "d") == "db.svc:6432:d:u\\:x:p\\\\w"


@pytest.mark.parametrize("writer", [url, jdbc_url, r2dbc_url, pgpass_line])
@pytest.mark.parametrize("empty", ["host", "user", "database"])
def test_urls_leave_nothing_to_a_clients_own_defaults(writer: Callable[..., str], empty: str) -> None:
    parts: dict[str, object] = {
        "host": "h",
        "port": 1,
        "user": "u",
        "password": "p",
        "database": "d",
        empty: "",
    }
    with pytest.raises(ValueError, match=f"the {empty} of a connection URL is empty"):
        writer(**parts)


@pytest.mark.parametrize("writer", [url, jdbc_url, r2dbc_url, pgpass_line])
@pytest.mark.parametrize("character", CONTROL, ids=ascii)
def test_urls_hold_no_control_characters(writer: Callable[..., str], character: str) -> None:
    for place in ("host", "user", "password", "database"):
        parts = {"host": "h", "port": 1, "user": "u", "password": "p", "database": "d", place: f"a{character}b"}
        with pytest.raises(ValueError, match="control character"):
            writer(**parts)


# What the console shows


def tables(of: Configuration) -> tuple[list[dict[str, str]], ...]:
    """The tables of a console that shows everything of a configuration, and things of its own."""
    fixed = {"listen_addr", "listen_port", "unix_socket_dir"}
    config = [
        {"key": name, "value": value, "changeable": "no" if name in fixed else "yes"}
        for name, value in {**of.settings, "peer_id": "0"}.items()
    ]
    databases = [{"name": name, **row, "paused": "0"} for name, row in of.databases.items()]
    databases.append({"name": "pgbouncer", "host": "", "port": "6432"})
    users = [
        {"name": name, "max_user_client_connections": str(of.slots.get(name, 0))}
        for name in {*of.users, "shop_owner", "pk.000000000000", "pgbouncer"}
    ]
    peers = [{"peer_id": peer, **row, "pool_size": "1"} for peer, row in of.peers.items()]
    return config, databases, users, peers


def test_nothing_is_missing_from_a_console_that_shows_everything() -> None:
    assert console.unapplied(made(), *tables(made())) is None


def test_what_a_console_does_not_show_is_said_in_words() -> None:
    whole = made(replace(TARGET, password="upstream-password"), {"stats_period": "7"}, WEB)
    name, session = entries.entry_name("shop", WEB), entries.session_entry_name("shop", WEB)

    def problem(table: int, change: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> str | None:
        shown = list(tables(whole))
        shown[table] = change(shown[table])
        return console.unapplied(whole, *shown)

    def with_value(key: str, value: str) -> Callable[[list[dict[str, str]]], list[dict[str, str]]]:
        return lambda rows: [row | {"value": value} if row["key"] == key else row for row in rows]

    assert problem(0, with_value("stats_period", "20")) == "stats_period is '20' instead of '7'"
    assert problem(0, with_value("listen_port", "1")) == (
        "listen_port is '1' instead of '6432', which takes a restart"
    )
    assert problem(0, lambda rows: [row for row in rows if row["key"] != "tcp_keepcnt"]) == (
        "tcp_keepcnt is unknown to this version of PgBouncer"
    )
    assert problem(1, lambda rows: [row for row in rows if row["name"] != name]) == f"entry {name} is not shown"
    assert problem(
        1, lambda rows: [row | {"host": "x"} if row["name"] == session else row for row in rows]
    ) == (f"entry {session} has host 'x' instead of 'pg.data.svc'")
    assert problem(1, lambda rows: [*rows, {"name": "old"}]) is None, "it goes when nobody logs in to it"
    login = entries.login_name(WEB)
    assert problem(2, lambda rows: [row | {"max_user_client_connections": "0"} for row in rows]) == (
        f"login {login} has max_user_client_connections '0' instead of '940'"
    )
    assert problem(2, lambda rows: [{"name": row["name"]} for row in rows]) == (
        f"login {login} has max_user_client_connections None instead of '940'"
    )
    marker = f"pk.{whole.generation}"
    assert (
        problem(2, lambda rows: [row for row in rows if row["name"] != marker])
        == f"login {marker} is not shown"
    )
    everything = console.unapplied(whole, [], [], [], [])
    assert everything is not None
    assert everything.endswith("more")
    assert "upstream-password" not in everything
