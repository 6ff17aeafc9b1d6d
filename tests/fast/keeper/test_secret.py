"""A consumer's keepers: their files, what their consoles must show of them, the Secret, the template."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper import names
from poolkeeper.consumers import entries
from poolkeeper.consumers.consent import Consumer
from poolkeeper.credentials import certificates, mint
from poolkeeper.credentials.certificates import Certificate
from poolkeeper.credentials.logins import Login, keeper_app, keeper_console
from poolkeeper.keeper import secret as keeper_secret
from poolkeeper.keeper import template as keeper_template
from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.pgbouncer import keeper_configuration
from poolkeeper.pgbouncer.configuration import INI, SCRAM_INI, Configuration, kept_files
from poolkeeper.settings import Settings
from poolkeeper.spec.parse import PooledDatabase, parse
from tests import specs

WEB = Consumer("web", "database")
NOW = datetime(2026, 6, 1, tzinfo=UTC)
VERIFIER = f"SCRAM-SHA-256$4096:{'A' * 22}==${'B' * 43}=:{'C' * 43}="
LOGIN = Login(entries.login_name(WEB), "consumers-password", VERIFIER)
CONSOLE = Login("poolkeeper", "console-password", VERIFIER)
APP = Login("app", "apps-password", VERIFIER)
POOLERS = certificates.authority("poolers", mint.authority_key())
KEEPERS = certificates.authority("keepers", mint.authority_key())
CERTIFICATE = certificates.issue(KEEPERS, "keeper.web", NOW)
SETTINGS = Settings("poolkeeper", "pod")


def shop(**spec: object) -> PooledDatabase:
    return parse(specs.body({**specs.MINIMAL, **spec}))


def made(
    database: PooledDatabase | None = None,
    name: str = "shop",
    console: Login = CONSOLE,
    login: Login = LOGIN,
    certificate: Certificate = CERTIFICATE,
    authority: str = POOLERS.certificate,
    app: Login | None = None,
) -> Configuration:
    whole = database or shop()
    return keeper_configuration.configuration(whole, name, WEB, login, console, certificate, authority, app)


def test_the_ini_file_leads_from_loopback_to_the_pooler_service() -> None:
    main, session = entries.entry_name("shop", WEB), entries.session_entry_name("shop", WEB)
    to = (
        f"host='shop-pooler.data.svc.cluster.local' port='6432' dbname='%s' user='{LOGIN.name}' "
        "password='consumers-password'"
    )
    lines = made().files[INI].splitlines()
    assert lines[:5] == [
        "[databases]",
        f"shop = {to % main} pool_mode='transaction' application_name='web/database'",
        f"shop.session = {to % session} pool_mode='session' application_name='web/database'",
        "",
        "[pgbouncer]",
    ]
    settings = dict(line.split(" =", 1) for line in lines[5:-1])
    settings = {name: value.strip() for name, value in settings.items()}
    assert settings == made().settings
    assert lines[-1] == "%include /etc/poolkeeper/pod.ini"


def test_the_settings_are_those_of_a_keeper() -> None:
    settings = made(shop(keeper={"poolSize": 7}, pooler={"drainSeconds": 30})).settings
    chosen = {
        "listen_addr": "*",
        "default_pool_size": "7",
        "server_lifetime": "20",
        "server_connect_timeout": "2",
        "server_login_retry": "1",
        "server_tls_sslmode": "verify-full",
        "client_tls_sslmode": "allow",
        "max_prepared_statements": "200",
        "verbose": "0",
    }
    assert chosen.items() <= settings.items()
    assert "listen_port" not in settings
    assert settings["server_tls_ca_file"] == settings["client_tls_ca_file"]


@pytest.mark.parametrize(("drain", "lifetime"), [(0, "1"), (1, "1"), (2, "1"), (3, "2"), (300, "200")])
def test_connections_are_retired_before_the_poolers_drain_is_over(drain: int, lifetime: str) -> None:
    assert made(shop(pooler={"drainSeconds": drain})).settings["server_lifetime"] == lifetime


def test_of_the_poolers_parameters_a_keeper_takes_those_that_both_tiers_share() -> None:
    parameters = {
        "max_prepared_statements": 0,
        "server_reset_query": "",
        "max_client_conn": 99,
        "server_lifetime": 99,
        "query_timeout": 5,
    }
    startup = {"jit": "Apply", "lock_timeout": "Ignore"}
    settings = made(shop(pooler={"parameters": parameters, "startupParameters": startup})).settings
    assert settings["max_prepared_statements"] == "0"
    assert "jit" in settings["track_extra_parameters"].split(",")
    assert settings["ignore_startup_parameters"] == "extra_float_digits,lock_timeout"
    assert settings["server_reset_query"] == ""
    assert settings["max_client_conn"] == "1000"
    assert settings["server_lifetime"] == "20"
    assert "query_timeout" not in settings


def test_the_mode_is_the_poolers() -> None:
    databases = made(shop(pooler={"mode": "statement"})).databases
    assert {name: row["pool_mode"] for name, row in databases.items()} == {
        "shop": "statement",
        "shop.session": "session",
    }


def test_the_rules_admit_the_app_from_loopback_and_the_console_over_tls() -> None:
    whole = made()
    assert whole.files[f"hba-{whole.generation}.conf"] == (
        'host "shop","shop.session" "app" 127.0.0.1/32 trust\n'
        'host "shop","shop.session" "app" ::1/128 trust\n'
        'hostssl "pgbouncer" "poolkeeper" all scram-sha-256\n'
    )


def test_the_userlist_has_the_app_without_a_password_and_the_console_as_a_verifier() -> None:
    whole = made()
    assert whole.files[f"userlist-{whole.generation}.txt"].rstrip("\n") == (
        f'"app" ""\n"poolkeeper" "{VERIFIER}"\n"pk.{whole.generation}" ""'
    )
    assert whole.users == {"app", "poolkeeper", f"pk.{whole.generation}"}


def test_beside_the_files_without_a_password_lie_those_that_demand_one() -> None:
    whole, trusting = made(app=APP), made()
    lines = whole.files[SCRAM_INI].splitlines()
    assert lines[:2] == ["[pgbouncer]", "%include /etc/poolkeeper/pgbouncer.ini"]
    settings = dict(line.split(" = ") for line in lines[2:])
    shown = keeper_configuration.shown_by(whole, "Scram").settings
    assert settings == {name: shown[name] for name in ("auth_type", "auth_file", "auth_hba_file")}
    assert keeper_configuration.shown_by(whole, "Trust").settings == whole.settings
    rules = whole.files[settings["auth_hba_file"].removeprefix("/etc/poolkeeper/")]
    assert rules == trusting.files[f"hba-{trusting.generation}.conf"].replace("trust", "scram-sha-256")
    assert whole.files[f"hba-{whole.generation}.conf"] == trusting.files[f"hba-{trusting.generation}.conf"]
    assert whole.files[f"userlist-{whole.generation}.txt"].startswith(f'"app" "{VERIFIER}"\n')
    assert SCRAM_INI not in trusting.files


def test_both_kinds_of_keepers_find_the_files_of_the_generation_before() -> None:
    old, new = made(name="before", app=APP), made(app=APP)
    kept = kept_files(old.files, new.generation)
    for auth in ("Trust", "Scram"):
        settings = keeper_configuration.shown_by(old, auth).settings
        for name in ("auth_file", "auth_hba_file"):
            assert settings[name].removeprefix("/etc/poolkeeper/") in kept
    assert kept_files({**new.files, **kept}, new.generation).keys() >= kept.keys()


def test_the_apps_password_stands_in_urls_and_files_as_it_is() -> None:
    login = keeper_app(KEEPERS, LOGIN.name)
    assert login.name == "app"
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", login.password)
    assert login == keeper_app(KEEPERS, LOGIN.name)
    others = {keeper_app(KEEPERS, "other").password, keeper_app(POOLERS, LOGIN.name).password}
    assert login.password not in others | {keeper_console(KEEPERS, LOGIN.name).password}
    assert login.verifier.startswith("SCRAM-SHA-256$4096:"), "JDBC's driver takes no fewer iterations"


def test_the_apps_password_is_a_key_of_the_secret_where_one_is_needed() -> None:
    database = shop(keeper={"auth": "Scram"})
    template = keeper_secret.template(database, "shop", SETTINGS)
    assert template.auth == "Scram"
    with_app = keeper_secret.render(database, WEB, template, made(app=APP), {}, APP)
    assert base64.b64decode(with_app["data"]["app-password"]).decode() == APP.password
    assert APP.password not in str(with_app["metadata"])
    without = secret()["data"]
    assert isinstance(without, dict)
    assert "app-password" not in without


def test_the_consoles_password_is_in_no_file_and_the_logins_in_the_ini_file_alone() -> None:
    files = made().files
    assert [name for name, text in files.items() if CONSOLE.password in text] == []
    assert [name for name, text in files.items() if LOGIN.password in text] == [INI]
    assert LOGIN.password not in repr(made())


@pytest.mark.parametrize(
    "change",
    [
        {"console": replace(CONSOLE, password="another")},
        {"login": replace(LOGIN, password="another")},
        {"certificate": certificates.issue(KEEPERS, "keeper.other", NOW)},
        {"authority": KEEPERS.certificate},
        {"name": "warehouse"},
        {"app": APP},
        {"database": shop(keeper={"poolSize": 11})},
        {"database": shop(pooler={"drainSeconds": 60})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_generation_follows_every_change_and_nothing_else(change: dict[str, object]) -> None:
    assert made() == made()
    assert re.fullmatch(r"[0-9a-f]{12}", made().generation)
    assert made(**change).generation != made().generation  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["shop", "Shop_2.x-y", "_x", "all", "sameuser", "0", "a" * 55, "x.session"])
def test_a_database_keeps_its_name_where_pgbouncer_can_hold_it(name: str) -> None:
    assert keeper_configuration.database_names(name) == (name, f"{name}.session")


@given(name=st.text(min_size=1, max_size=63))
def test_any_database_has_two_names_that_pgbouncer_can_hold(name: str) -> None:
    main, session = keeper_configuration.database_names(name)
    for each in (main, session):
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}", each)
        assert each != "pgbouncer"
    assert session == f"{main}.session"


@pytest.mark.parametrize("name", ["pgbouncer", "a b", "ä", "-x", ".x", "a" * 56, "a\nb"])
def test_a_name_that_pgbouncer_cannot_hold_is_replaced_by_one_of_its_own(name: str) -> None:
    assert keeper_configuration.database_names(name)[0] != name
    assert keeper_configuration.database_names(name) != keeper_configuration.database_names(f"{name}x")


@pytest.mark.parametrize("password", ["it's", "a\nb", "a b"])
def test_a_login_that_would_need_quoting_is_refused(password: str) -> None:
    with pytest.raises(ValueError, match="password of a keeper's entry") as caught:
        made(login=replace(LOGIN, password=password))
    assert password not in str(caught.value)


# The Secret


def secret(previous: dict[str, str] | None = None) -> dict[str, object]:
    database = shop()
    template = keeper_secret.template(database, "shop", SETTINGS)
    return keeper_secret.render(database, WEB, template, made(database), previous or {})


def test_the_secret_lies_beside_the_consumers_and_says_what_injection_needs() -> None:
    metadata = secret()["metadata"]
    assert isinstance(metadata, dict)
    assert (metadata["namespace"], metadata["name"]) == ("web", "database-keeper")
    assert metadata["labels"][names.ROLE_LABEL] == names.ROLE_KEEPER
    assert metadata["annotations"][names.OWNER_ANNOTATION] == "data/shop"
    template = keeper_template.parse(metadata["annotations"][names.KEEPER_ANNOTATION])
    assert template == KeeperTemplate(
        "poolkeeper/pgbouncer:1.24.1-poolkeeper.4", "IfNotPresent", None, "shop", "shop.session"
    )


def test_the_secret_keeps_the_files_of_the_generation_before() -> None:
    old, new = made(name="before"), made()
    data = secret(kept_files(old.files, new.generation))["data"]
    assert isinstance(data, dict)
    files = {name: base64.b64decode(value).decode() for name, value in data.items()}
    assert {name: text for name, text in files.items() if name in new.files} == new.files
    assert set(old.files) <= set(files)


def test_a_template_of_an_older_version_is_read() -> None:
    text = (
        '{"database":"shop","image":"i","image_pull_policy":"Always","resources":null,"session_database":"s"}'
    )
    assert keeper_template.parse(text) == KeeperTemplate("i", "Always", None, "shop", "s")
    with pytest.raises(ValueError, match="not a keeper's template"):
        keeper_template.parse(text.replace("{", '{"auth":"None",'))
    with pytest.raises(ValueError, match="not a keeper's template"):
        keeper_template.parse(text.replace("{", '{"assigned_user":0,'))


def test_the_template_is_that_of_the_spec() -> None:
    resources = {"limits": {"memory": "64Mi"}}
    secrets = [{"name": "registry"}, {"name": "other"}]
    database = shop(
        keeper={
            "image": "registry.example/keeper:2",
            "resources": resources,
            "auth": "Scram",
            "imagePullSecrets": secrets,
        }
    )
    template = keeper_secret.template(database, "shop", SETTINGS)
    assert (template.image, template.resources) == ("registry.example/keeper:2", resources)
    assert (template.auth, template.image_pull_secrets) == ("Scram", ("registry", "other"))
    assert not template.assigned_user
    assigned = keeper_secret.template(database, "shop", replace(SETTINGS, assigned_users=True))
    assert assigned == replace(template, assigned_user=True)
    for one in (template, assigned):
        assert keeper_template.parse(keeper_template.dump(one)) == one


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"image": 1}'])
def test_an_annotation_that_is_no_template_is_told_apart(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        keeper_template.parse(text)
