"""Client libraries of other languages through a pooler, and through a keeper: each scenario ends as it does
when the same program is connected to PostgreSQL itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from poolkeeper.upstream.target import Target
from tests.datapath import stack
from tests.datapath.clients.programs import PROGRAMS, Address, Program, Report
from tests.pgbouncer.keeper_process import keeper, keeper_files, resource
from tests.pgbouncer.processes import Postgres, pooler, postgres
from tests.pgbouncer.shop import WEB, Shop

pytestmark = pytest.mark.smoke

BACKENDS = 4
"""Fewer than any scenario has clients, so that these share."""
SCHEMAS = ("t1", "t2", "t3", "public")
CLIENTS = 12
SECONDS = 60.0
"""More than any scenario takes; past it a program's connections are stuck."""
CANCELED = "57014"
OWNER = "shop_owner"
_tables = (f"work{number}" for number in itertools.count())


@dataclass(frozen=True)
class Site:
    """PostgreSQL, and the ways to it by name."""

    server: Postgres
    addresses: dict[str, Address]
    expected: dict[tuple[str, str], Report] = field(default_factory=dict)
    """What programs report that are connected to PostgreSQL itself, by program and scenario."""

    def execute(self, statement: str) -> None:
        self.server.execute(statement, "shop")

    def report(self, program: Program, scenario: str, path: str) -> Report:
        return program.run(
            {"scenario": scenario, **JOBS[scenario](self, program, self.addresses[path])}, SECONDS
        )

    def expectation(self, program: Program, scenario: str) -> Report:
        key = (program.name, scenario)
        if key not in self.expected:
            self.expected[key] = self.report(program, scenario, "direct")
        return self.expected[key]

    def table(self, columns: str) -> str:
        """Make a table that no other run has."""
        name = next(_tables)
        self.execute(f"CREATE TABLE {name} ({columns}); ALTER TABLE {name} OWNER TO {OWNER}")
        return name


@pytest.fixture(scope="module")
def site(secrets: str, settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("clients")
    for name in ("postgres", "pooler"):
        (directory / name).mkdir()
    with postgres(directory / "postgres", secrets=secrets) as server:
        password = "a pass'word\\ of: @all/?#% kïnds"
        server.create_role(OWNER, password)
        server.create_database("shop")
        _make_schemas(server)
        shop = Shop(Target(server.host, server.port, "shop", OWNER, password, "require", None))
        with pooler(directory / "pooler", stack.adapted(shop.configuration(), settings), BACKENDS) as made:
            login = shop.login(WEB)
            addresses = {
                "direct": Address(server.host, server.port, OWNER, password, "shop"),
                "pooler": Address(made.host, made.port, login.name, login.password, shop.entry(WEB)),
            }
            found = addresses["pooler"]
            stack.check_logins(
                stack.Route("pooler", found.host, found.port, found.user, found.password, found.database, True)
            )
            with _keeper(directory, shop, made.port, settings) as behind:
                yield Site(server, {**addresses, "keeper": behind})


def _make_schemas(server: Postgres) -> None:
    for schema in SCHEMAS:
        server.execute(
            f"CREATE SCHEMA IF NOT EXISTS {schema};"
            f" GRANT USAGE ON SCHEMA {schema} TO {OWNER};"
            f" CREATE TABLE {schema}.who AS SELECT '{schema}' AS name;"
            f" GRANT SELECT ON {schema}.who TO {OWNER}",
            "shop",
        )


@contextmanager
def _keeper(directory: Path, shop: Shop, behind: int, settings: dict[str, str]) -> Iterator[Address]:
    files = stack.adapted(keeper_files(shop, resource(keeper={"poolSize": BACKENDS})), settings)
    with keeper(directory / "keeper", shop, behind, files) as made:
        parts = conninfo_to_dict(made.environment()["DATABASE_URL"])
        found = {name: str(value) for name, value in parts.items()}
        yield Address(
            found["host"], int(found["port"]), found["user"], found.get("password") or "", found["dbname"]
        )


def isolation(site: Site, program: Program, address: Address) -> dict[str, Any]:
    """Every fourth client asks for nothing and gets the role's own search path."""
    schemas = [SCHEMAS[index % len(SCHEMAS)] for index in range(CLIENTS)]
    urls = [program.url(address, {} if name == "public" else program.schema(name)) for name in schemas]
    return {"urls": urls, "expect": schemas, "rounds": 60}


def copy(site: Site, program: Program, address: Address) -> dict[str, Any]:
    table = site.table("client int, n int CHECK (n >= 0), body text")
    return {"urls": [program.url(address, {})] * 10, "table": table, "rounds": 100}


def mixed(site: Site, program: Program, address: Address) -> dict[str, Any]:
    """`rounds` distinct statements exceed what the pooler prepares on one server connection (200)."""
    table = site.table("client int, n int, body text, PRIMARY KEY (client, n)")
    owner = program.url(site.addresses["direct"], {})
    return {"urls": [program.url(address, {})] * 8, "table": table, "rounds": 260, "owner": owner}


def timeouts(site: Site, program: Program, address: Address) -> dict[str, Any]:
    limited = program.url(address, {"options": "-c statement_timeout=500"})
    return {"urls": [limited] * 3, "plain": [program.url(address, {})] * 3, "seconds": 1}


def ddl(site: Site, program: Program, address: Address) -> dict[str, Any]:
    table = site.table("id int PRIMARY KEY, name text DEFAULT 'one'")
    site.execute(f"INSERT INTO {table} (id) VALUES (1)")  # noqa: S608 - a name of ours
    owner = program.url(site.addresses["direct"], {})
    return {"urls": [program.url(address, {})] * 8, "table": table, "rounds": 50, "owner": owner}


JOBS = {job.__name__: job for job in (isolation, copy, mixed, timeouts, ddl)}


@pytest.fixture(
    params=[
        pytest.param(program, id=name, marks=pytest.mark.conformance if program.slow else ())
        for name, program in PROGRAMS.items()
    ]
)
def program(request: pytest.FixtureRequest) -> Program:
    made: Program = request.param
    return made


@pytest.fixture(params=["pooler", pytest.param("keeper", marks=pytest.mark.conformance)])
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_clients_with_search_paths_of_their_own_get_their_own_answers(
    site: Site, program: Program, path: str
) -> None:
    assert site.expectation(program, "isolation").detail == [0] * CLIENTS
    found = site.report(program, "isolation", path)
    assert differences(found, site.expectation(program, "isolation")) == []


def differences(found: Report, expected: Report) -> list[str]:
    """What differs from a run straight to PostgreSQL: failures, wrong answers, each connection's first one."""
    different = [f"{count} x {text}" for text, count in found.errors.items()]
    if found.wrong != expected.wrong:
        different.append(f"{found.wrong} wrong answers of {found.statements}")
    pairs = itertools.zip_longest(found.detail, expected.detail)
    for connection, (seen, wanted) in enumerate(pairs):
        if isinstance(seen, list) and isinstance(wanted, list):
            rows = itertools.zip_longest(seen, wanted)
            first = next((step for step, (one, other) in enumerate(rows) if one != other), None)
            if first is not None:
                there = [steps[first] if first < len(steps) else None for steps in (seen, wanted)]
                different.append(f"connection {connection}, step {first}: {there[0]!r}, not {there[1]!r}")
        elif seen != wanted and not found.errors:
            different.append(f"connection {connection}: {seen!r}, not {wanted!r}")
    return different


@pytest.mark.parametrize("scenario", ["copy", "mixed"])
def test_answers_are_those_of_postgresql(site: Site, program: Program, path: str, scenario: str) -> None:
    expected = site.expectation(program, scenario)
    assert (expected.errors, expected.wrong) == ({}, 0)
    assert differences(site.report(program, scenario, path), expected) == []


def test_a_statement_timeout_of_the_client_is_in_force_for_that_client_alone(
    site: Site, program: Program, path: str
) -> None:
    expected = site.expectation(program, "timeouts")
    assert {CANCELED, "finished"} == set(expected.detail)
    assert differences(site.report(program, "timeouts", path), expected) == []


def test_a_changed_table_costs_each_connection_one_error_at_most(
    site: Site, program: Program, path: str
) -> None:
    expected = site.expectation(program, "ddl")
    found = site.report(program, "ddl", path)
    for report in (expected, found):
        assert (report.errors, report.wrong) == ({}, 0)
    # node-postgres and sqlx never prepare a statement anew: they fail for ever with PostgreSQL itself, too.
    assert max(found.detail) <= max(1, *expected.detail), f"stale plans by connection: {found.detail}"
