"""Keepers that demand a password of the app beside keepers that don't, on the same files, as real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.configuration import INI, POD_FILE, SCRAM_INI, Configuration, kept_files
from poolkeeper.pgbouncer.keeper_configuration import shown_by
from poolkeeper.spec.types import SCRAM, TRUST
from tests.pgbouncer.keeper_process import Keeper, app_login, keeper, keeper_files, resource
from tests.pgbouncer.processes import Pooler, pooler
from tests.pgbouncer.shop import WEB, Shop


@pytest.fixture
def behind(shop: Shop, tmp_path: Path) -> Iterator[Pooler]:
    (mounted := tmp_path / "pooler").mkdir()
    with pooler(mounted, shop.configuration()) as made:
        yield made


@pytest.fixture
def demanding(shop: Shop, behind: Pooler, tmp_path: Path) -> Iterator[Keeper]:
    with keeper(tmp_path / "scram", shop, behind.port, files(shop), SCRAM) as made:
        yield made


@pytest.fixture
def trusting(shop: Shop, behind: Pooler, tmp_path: Path) -> Iterator[Keeper]:
    """From before spec.keeper.auth became Scram."""
    with keeper(tmp_path / "trust", shop, behind.port, keeper_files(shop), TRUST) as made:
        yield made


def files(shop: Shop, **spec: Any) -> Configuration:
    return keeper_files(shop, resource(**spec), app=app_login(shop))


def stored(own: Keeper) -> dict[str, str]:
    return {path.name: path.read_text() for path in own.directory.iterdir() if path.suffix != ".log"}


def refusal(own: Keeper, **parameters: Any) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(
            host="127.0.0.1",
            port=own.port,
            **{"user": "app", "dbname": "shop", "sslmode": "disable", "connect_timeout": 5, **parameters},
        )
    return str(caught.value)


def test_the_app_logs_in_with_the_password_from_its_environment(demanding: Keeper) -> None:
    with demanding.connect() as app:
        assert app.execute("SELECT current_user, current_database()").fetchone() == ("shop_owner", "shop")
        assert app.pgconn.used_password
    environment = demanding.environment()
    for host in ("127.0.0.1", "[::1]"):
        url = environment["DATABASE_SESSION_URL"].replace("127.0.0.1", host)
        with psycopg.connect(url) as app:
            assert app.execute("SELECT 1").fetchone() == (1,)
    with psycopg.connect(
        host=environment["PGHOST"],
        port=environment["PGPORT"],
        user=environment["PGUSER"],
        password=environment["PGPASSWORD"],
        dbname=environment["PGDATABASE"],
        sslmode=environment["PGSSLMODE"],
    ) as app:
        assert app.execute("SELECT 1").fetchone() == (1,)


def test_without_the_password_or_with_another_nobody_gets_in(demanding: Keeper, shop: Shop) -> None:
    assert "no password supplied" in refusal(demanding)
    right = app_login(shop).password
    for wrong in ("wrong", f"{right}x", right[:-1], shop.login(WEB).password, demanding.access.password):
        assert "SASL authentication failed" in refusal(demanding, password=wrong)
    assert "no authentication method" in refusal(demanding, password=right, dbname=shop.entry(WEB))
    assert "FATAL" in refusal(demanding, password=right, dbname="pgbouncer")


async def test_the_console_is_as_ever_and_shows_the_whole_configuration(demanding: Keeper, shop: Shop) -> None:
    here = demanding.write(files(shop))
    assert (await console.apply(demanding.access, shown_by(here, SCRAM), 3)).problem is None
    problem = (await console.apply(demanding.access, here, 0.5)).problem
    assert problem is not None
    assert "auth_hba_file" in problem, "which rules are in force is seen from outside"
    words = (" WARNING ", " ERROR ", " FATAL ")
    assert [line for line in demanding.log().splitlines() if any(word in line for word in words)] == []


async def test_a_change_reaches_a_demanding_keeper_by_reload(demanding: Keeper, shop: Shop) -> None:
    with demanding.connect() as client:
        backend = client.execute("SELECT pg_backend_pid()").fetchone()
        changed = files(shop, keeper={"poolSize": 3})
        here = demanding.write(changed, kept_files(stored(demanding), changed.generation))
        assert (await console.apply(demanding.access, shown_by(here, SCRAM), 3)).problem is None
        assert client.execute("SELECT pg_backend_pid()").fetchone() == backend
    with demanding.connect() as client:
        assert client.execute("SELECT 1").fetchone() == (1,)
    assert "no password supplied" in refusal(demanding)


async def test_a_pod_that_was_made_before_goes_on_without_a_password(trusting: Keeper, shop: Shop) -> None:
    """Trust becomes Scram, and Trust again, under clients that run."""
    with trusting.connect() as client:
        backend = client.execute("SELECT pg_backend_pid()").fetchone()
        for whole in (files(shop), keeper_files(shop)):
            here = trusting.write(whole, kept_files(stored(trusting), whole.generation))
            assert (await console.apply(trusting.access, shown_by(here, TRUST), 3)).problem is None
            assert client.execute("SELECT pg_backend_pid()").fetchone() == backend
            with trusting.connect() as later:
                assert later.execute("SELECT 1").fetchone() == (1,)


async def test_the_pods_own_file_cannot_take_the_password_back(demanding: Keeper, shop: Shop) -> None:
    """It is made of an annotation, which more people may write than pods."""
    generation = files(shop).generation
    for line in (
        "auth_type = any",
        "auth_type = trust",
        f"auth_hba_file = /etc/poolkeeper/hba-{generation}.conf",
    ):
        (demanding.directory / POD_FILE).write_text(f"listen_port = {demanding.port}\n{line}\n")
        async with console.connect(demanding.access, 3) as opened:
            await opened.reload()
        assert "no password supplied" in refusal(demanding), line


def test_the_password_is_in_no_file_of_the_keepers_own(shop: Shop) -> None:
    whole = files(shop)
    assert set(whole.files) >= {INI, SCRAM_INI}
    assert [name for name, text in whole.files.items() if app_login(shop).password in text] == []
