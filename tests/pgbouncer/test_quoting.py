"""Whatever characters a name, password or setting holds: every writer's text against the parser that reads it.

Property tests, in batches: one PgBouncer process reads many generated values in one RELOAD.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from poolkeeper.consumers.consent import Consumer
from poolkeeper.consumers.database_url import jdbc_url, pgpass_line, r2dbc_url, url
from poolkeeper.consumers.entries import entries, entry_name, login_name
from poolkeeper.credentials.logins import Login
from poolkeeper.credentials.mint import mint
from poolkeeper.pgbouncer import console, userlist
from poolkeeper.pgbouncer.configuration import Configuration, configuration
from poolkeeper.spec.values import forbidden_character
from poolkeeper.upstream.target import Target
from poolkeeper.workers.upstream import probe, trial_login
from tests.pgbouncer.node_parser import NodeParser, node_parser
from tests.pgbouncer.processes import DIRECTORY, Pooler, Postgres, pooler
from tests.pgbouncer.shop import WEB, Shop

AWKWARD = "'\"\\ @:/?#%&=+,;[](){}<>|*$!~`^_-.éßŁ漢字\u00a0🐘"
"""Every character that some format here gives a meaning, and some of two, three and four bytes."""


def text(min_bytes: int, max_bytes: int) -> st.SearchStrategy[str]:
    """Any text that may be configured, awkward ones first; sizes in bytes of UTF-8."""
    character = st.one_of(st.sampled_from(AWKWARD + "ab0"), st.characters(exclude_categories=("Cs", "Cc")))
    return st.text(character, min_size=1 if min_bytes else 0, max_size=max_bytes).filter(
        lambda value: min_bytes <= len(value.encode()) <= max_bytes and not forbidden_character(value)
    )


NAMESPACE = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
SECRET_NAME = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,80}[a-z0-9])?", fullmatch=True)
CONSUMER = st.builds(Consumer, NAMESPACE, SECRET_NAME)


def examples(count: int) -> settings:
    """So many examples, the same ones in every run; no shrinking, since processes answer."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def running(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooler]:
    with pooler(tmp_path_factory.mktemp("quoting"), shop.configuration()) as made:
        yield made


@pytest.fixture(scope="module")
def node() -> Iterator[NodeParser]:
    with node_parser() as parser:
        yield parser


def merged(configurations: list[Configuration]) -> Configuration:
    """The entries of all configurations in the files of the last one."""
    last = configurations[-1]
    databases = {name: row for each in configurations for name, row in each.databases.items()}
    lines = {name: line for each in configurations for name, line in each.lines.items()}
    return replace(last, databases=databases, lines=lines)


upstreams = st.lists(
    st.tuples(text(1, 40), text(1, 120), text(1, 30)),
    min_size=8,
    max_size=8,
    unique_by=(lambda item: item[0], lambda item: item[2]),
)


@given(batch=upstreams)
@examples(6)
def test_any_upstream_user_password_and_database_log_in_through_the_pooler(
    batch: list[tuple[str, str]], running: Pooler, shop: Shop, server: Postgres
) -> None:
    consumers = [Consumer(f"n{index}", "database") for index in range(len(batch))]
    logins = replace(shop.logins, consumers={login_name(one): mint(login_name(one)) for one in consumers})
    targets = []
    for user, password, database in batch:
        user, database = f"u{user}", f"d{database}"  # pg_ and template0 are the server's own
        server.create_role(user, password)
        server.create_database(database)
        targets.append(Target(server.host, server.port, database, user, password, "require", None))
    everybody = entries(shop.target, consumers, "transaction")
    configurations = []
    for target, consumer in zip(targets, consumers, strict=True):
        rows = entries(target, [consumer], "transaction")
        configurations.append(configuration(target, rows, logins, shop.certificate, {}, DIRECTORY))
    last = merged(configurations)
    # The login files must know all of them, not only the last one's consumer.
    names = [name for name in last.files if name.startswith(("userlist", "hba"))]
    assert logins.console is not None
    by_kind = {
        "userlist": userlist.render([logins.console, *logins.consumers.values()], last.generation),
        "hba": "".join(
            text for each in configurations for name, text in each.files.items() if name.startswith("hba")
        ),
    }
    last = replace(last, files={**last.files, **{name: by_kind[name.split("-")[0]] for name in names}})
    assert len(everybody) == 2 * len(batch)
    changed = running.write(last)

    async def check() -> None:
        assert await running.apply(changed, shop.console(running)) is None
        for target, consumer in zip(targets, consumers, strict=True):
            assert (await probe(target, 5)).reachable
            login, entry = logins.consumers[login_name(consumer)], entry_name(target.database, consumer)
            assert (await trial_login(shop.console(running), login, entry, 5)).reachable
            reached = await psycopg.AsyncConnection.connect(
                url(running.host, running.port, login.name, login.password, entry, sslmode="disable")
            )
            async with reached:
                row = await (await reached.execute("SELECT current_user, current_database()")).fetchone()
            assert row == (target.user, target.database)

    try:
        asyncio.run(check())
    finally:
        for target in targets:
            server.execute(_drop("DATABASE {} WITH (FORCE)", target.database))
            server.execute(_drop("ROLE {}", target.user))


def _drop(what: str, name: str) -> psycopg.sql.Composed:
    return psycopg.sql.SQL("DROP " + what).format(psycopg.sql.Identifier(name))


@pytest.mark.parametrize("length", [1, 127, 1000, 2047])
async def test_long_passwords_log_in_up_to_the_limit(
    length: int, running: Pooler, shop: Shop, server: Postgres
) -> None:
    """PostgreSQL's SCRAM takes 1023 bytes; more is for servers that ask for the password itself."""
    password = ("ab'\\" * 512)[:length]
    user = f"lengthy_{length}"
    server.create_role(user, password[:1000])
    target = replace(shop.target, user=user, password=password)
    changed = running.write(shop.configuration(target=target))
    assert await running.apply(changed, shop.console(running)) is None
    outcome = await trial_login(shop.console(running), shop.login(WEB), shop.entry(WEB), 5)
    assert outcome.reachable == (length <= 1000), outcome


@given(batch=st.lists(st.tuples(text(0, 200), text(0, 200)), min_size=1, max_size=1))
@examples(60)
def test_any_text_setting_is_shown_as_it_was_written(
    batch: list[tuple[str, str]], running: Pooler, shop: Shop
) -> None:
    [(query, reset)] = batch
    parameters = {"server_check_query": query.strip(" "), "server_reset_query": reset.strip(" ")}
    changed = running.write(shop.configuration(parameters=parameters))
    assert asyncio.run(running.apply(changed, shop.console(running), 0.3)) is None


@given(names=st.lists(text(1, 127), min_size=30, max_size=30, unique=True))
@examples(10)
def test_any_name_in_the_userlist_is_read_whole(names: list[str], running: Pooler, shop: Shop) -> None:
    base = shop.configuration()
    assert shop.logins.console is not None
    users = [shop.logins.console, *(Login(name, "", mint("x").verifier) for name in names)]
    [path] = [name for name in base.files if name.startswith("userlist")]
    changed = replace(
        base,
        files={**base.files, path: userlist.render(users, base.generation)},
        users=frozenset({user.name for user in users} | {userlist.marker(base.generation)}),
    )
    assert asyncio.run(running.apply(running.write(changed), shop.console(running))) is None


@given(consumers=st.lists(CONSUMER, min_size=6, max_size=6, unique=True), database=text(1, 63))
@examples(10)
def test_any_consumer_gets_into_its_own_entries_and_no_other(
    consumers: list[Consumer], database: str, running: Pooler, shop: Shop
) -> None:
    target = replace(shop.target, database=database)
    logins = replace(shop.logins, consumers={login_name(one): mint(login_name(one)) for one in consumers})
    rows = entries(target, consumers, "transaction")
    # The names come from the generated database name; what is behind them is one that exists.
    existing = tuple(replace(row, database="shop") for row in rows)
    changed = running.write(configuration(shop.target, existing, logins, shop.certificate, {}, DIRECTORY))

    async def check() -> None:
        assert await running.apply(changed, shop.console(running)) is None
        for consumer, stranger in zip(consumers, consumers[1:] + consumers[:1], strict=True):
            login = logins.consumers[login_name(consumer)]
            own, foreign = entry_name(database, consumer), entry_name(database, stranger)
            assert (await trial_login(shop.console(running), login, own, 5)).reachable
            outcome = await trial_login(shop.console(running), login, foreign, 5)
            assert outcome.reason == "PoolerRefused"

    asyncio.run(check())


HOSTS = st.sampled_from(["shop-pooler.data.svc.cluster.local", "10.0.0.1", "::1", "2001:db8::a"])


@given(host=HOSTS, port=st.integers(1, 65535), user=text(1, 63), password=text(0, 200), database=text(1, 63))
@examples(500)
def test_libpq_reads_back_what_a_url_was_made_of(
    host: str, port: int, user: str, password: str, database: str
) -> None:
    made = url(host, port, user, password, database, sslmode="require", application_name=user)
    expected = {"host": host, "port": str(port), "user": user, "dbname": database}
    expected |= {"sslmode": "require", "application_name": user} | ({"password": password} if password else {})
    assert conninfo_to_dict(made) == expected


ENTRY_NAME = st.builds(entry_name, text(1, 63), CONSUMER)


@given(host=HOSTS, port=st.integers(1, 65535), user=text(1, 63), password=text(1, 200), database=ENTRY_NAME)
@examples(300)
def test_node_postgres_reads_back_what_a_url_was_made_of(
    host: str, port: int, user: str, password: str, database: str, node: NodeParser
) -> None:
    answer = node.parse(url(host, port, user, password, database))
    assert str(answer.get("host")).strip("[]") == host
    expected = {"port": str(port), "user": user, "password": password, "database": database}
    assert {name: answer.get(name) for name in expected} == expected


@given(host=HOSTS, user=text(1, 63), password=text(1, 200), database=text(1, 63))
@examples(200)
def test_jdbc_and_r2dbc_urls_hold_the_same_parts(host: str, user: str, password: str, database: str) -> None:
    address, _, query = jdbc_url(host, 6432, user, password, database).partition("?")
    assert address.startswith("jdbc:postgresql://")
    assert unquote(address.rpartition("/")[2]) == database
    pairs = dict(pair.split("=") for pair in query.split("&"))
    assert {name: unquote(value) for name, value in pairs.items()} == {"user": user, "password": password}
    made = r2dbc_url(host, 6432, user, password, database)
    assert conninfo_to_dict(made.removeprefix("r2dbc:"))["password"] == password


@given(password=text(1, 200))
@examples(25)
def test_libpq_finds_the_password_in_a_pgpass_line(password: str, shop: Shop, tmp_path_factory: object) -> None:
    assert isinstance(tmp_path_factory, pytest.TempPathFactory)
    path = tmp_path_factory.mktemp("pgpass") / "pgpass"
    line = pgpass_line("h:o", 6432, "u\\ser", password, "d:b")
    path.write_text(line + "\n")
    path.chmod(0o600)
    assert _password_that_libpq_would_send(path) == password


def _password_that_libpq_would_send(passfile: Path) -> str:
    from psycopg import pq

    info = f"host='h:o' hostaddr=127.0.0.1 port=6432 user='u\\\\ser' dbname='d:b' passfile='{passfile}'"
    connection = pq.PGconn.connect_start(info.encode())
    try:
        return connection.password.decode()
    finally:
        connection.finish()


async def test_the_console_reads_utf8(running: Pooler, shop: Shop) -> None:
    changed = running.write(shop.configuration(parameters={"server_reset_query": "größer 🐘"}))
    assert await running.apply(changed, shop.console(running)) is None
    async with console.connect(shop.console(running), 3) as opened:
        shown = await opened.settings()
    assert shown["server_reset_query"] == "größer 🐘"
