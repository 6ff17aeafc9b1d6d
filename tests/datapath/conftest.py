"""One server, one pooler and one keeper for the whole suite; and the record of what each test came to."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from e2e.images.catalog import SANITIZED
from poolkeeper.upstream.target import Target
from tests.datapath import stack
from tests.datapath.schema import prepare
from tests.datapath.stack import Route, Tier
from tests.pgbouncer import debian, processes, rootfs
from tests.pgbouncer.processes import Postgres, postgres
from tests.pgbouncer.shop import Shop

STRICT = {"server_reset_query_always": "1"}
"""Every server connection is reset between two transactions."""


def pytest_configure(config: pytest.Config) -> None:
    if program := config.getoption("--pooler"):
        suite = program.removeprefix("debian:")
        foreign = debian.pgbouncer(suite) if suite != program else rootfs.unpacked(Path(program).resolve())
        rootfs.substitute("pgbouncer", foreign)
    if config.getoption("--sanitize"):
        rootfs.substitute("pgbouncer", rootfs.rootfs(SANITIZED))
    if version := config.getoption("--server-version"):
        processes.use_postgresql(version)


class Results:
    """Outcomes by area (the module) and test, as the controller of a parallel run gets them."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.outcomes: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        module, _, name = report.nodeid.partition("::")
        area = Path(module).stem.removeprefix("test_")
        if report.when == "call" or report.outcome == "failed":
            self.outcomes.setdefault(area, {})[name] = report.outcome

    def pytest_sessionfinish(self) -> None:
        written: dict[str, Any] = {
            "engine": stack.engine(),
            "server": stack.server_version(),
            "secrets": self.config.getoption("--server-secrets"),
            "areas": self.outcomes,
        }
        Path(self.config.getoption("--results")).write_text(json.dumps(written, indent=1, sort_keys=True))


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("--results") and not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(Results(session.config))


_FAILED = pytest.StashKey[bool]()
_tiers: list[Tier] = []
"""The tiers that run: a keeper after the pooler behind it."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def recovery(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that finds a fault leaves no stuck connection to the next, which would fail of it."""
    yield
    if request.node.stash.get(_FAILED, False):
        for tier in reversed(_tiers):
            with suppress(psycopg.Error):
                stack.renew(tier)


@pytest.fixture(autouse=True)
def unharmed() -> Iterator[None]:
    """The test that has a sanitizer find something fails of it."""
    before = {tier.name: processes.sanitizer_reports(tier.process.log()) for tier in _tiers}
    yield
    for tier in _tiers:
        new = processes.sanitizer_reports(tier.process.log())[len(before.get(tier.name, [])) :]
        assert not new, f"{tier.name}: " + "\n".join(new)


@contextmanager
def _registered(tier: Tier) -> Iterator[Tier]:
    _tiers.append(tier)
    yield tier
    _tiers.remove(tier)


@pytest.fixture(scope="session")
def settings(pytestconfig: pytest.Config) -> dict[str, str]:
    """Of the command line: other values for PgBouncer."""
    return dict(item.split("=", 1) for item in pytestconfig.getoption("--setting"))


@pytest.fixture(scope="session")
def secrets(pytestconfig: pytest.Config) -> str:
    return str(pytestconfig.getoption("--server-secrets"))


@pytest.fixture(scope="session")
def server(secrets: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with postgres(tmp_path_factory.mktemp("postgres"), secrets=secrets) as made:
        yield made


@pytest.fixture(scope="session")
def shop(server: Postgres) -> Shop:
    password = "a pass'word\\ of: @all/?#% kinds"
    server.create_role("shop_owner", password)
    server.create_database("shop")
    prepare(server)
    return Shop(Target(server.host, server.port, "shop", "shop_owner", password, "require", None))


@pytest.fixture(scope="session")
def direct(server: Postgres, shop: Shop) -> Route:
    return stack.direct_route(server, shop)


@pytest.fixture(scope="session")
def pooler(shop: Shop, settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tier]:
    with (
        stack.pooler_tier(tmp_path_factory.mktemp("tier") / "pooler", shop, settings) as made,
        _registered(made),
    ):
        stack.check_logins(made.transaction)
        yield made


@pytest.fixture(scope="session")
def keeper(
    shop: Shop, pooler: Tier, settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tier]:
    with (
        stack.keeper_tier(tmp_path_factory.mktemp("tier") / "keeper", shop, pooler, settings) as made,
        _registered(made),
    ):
        yield made


@pytest.fixture(scope="session")
def strict_pooler(
    shop: Shop, settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tier]:
    directory = tmp_path_factory.mktemp("tier") / "pooler"
    with stack.pooler_tier(directory, shop, settings, "strict pooler", STRICT) as made, _registered(made):
        stack.check_logins(made.transaction)
        yield made


@pytest.fixture(scope="session")
def strict_keeper(
    shop: Shop, strict_pooler: Tier, settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tier]:
    directory = tmp_path_factory.mktemp("tier") / "keeper"
    with stack.keeper_tier(directory, shop, strict_pooler, settings, STRICT) as made, _registered(made):
        yield made


TIERS = ("pooler", "keeper")


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> Tier:
    made: Tier = request.getfixturevalue(request.param)
    return made


@pytest.fixture(params=("strict_pooler", "strict_keeper"))
def strict_tier(request: pytest.FixtureRequest) -> Tier:
    made: Tier = request.getfixturevalue(request.param)
    return made


@pytest.fixture(params=[f"{tier}-{entry}" for tier in TIERS for entry in ("transaction", "session")])
def route(request: pytest.FixtureRequest) -> Route:
    """Every way through the product to the database."""
    tier, entry = request.param.split("-")
    made: Route = getattr(request.getfixturevalue(tier), entry)
    return made
