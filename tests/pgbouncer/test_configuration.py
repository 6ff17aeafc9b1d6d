"""Configurations on a real PgBouncer: what its console shows of them, who gets in, and how changes arrive."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from poolkeeper.engine import pgbouncer_version
from poolkeeper.engine.parameter_table import OLDEST
from poolkeeper.pgbouncer import console
from poolkeeper.pgbouncer.configuration import INI, kept_files
from poolkeeper.workers.upstream import trial_login
from tests.pgbouncer import processes
from tests.pgbouncer.processes import Pooler, Postgres, pooler
from tests.pgbouncer.shop import API, WEB, Shop


async def rows(pooler: Pooler, shop: Shop, table: str) -> list[dict[str, str]]:
    async with console.connect(shop.console(pooler), 3) as opened:
        return await opened.show(table)


async def test_a_started_pooler_shows_its_whole_configuration_without_a_complaint_or_a_reload(
    running_pooler: Pooler, shop: Shop
) -> None:
    configuration = running_pooler.localised(shop.configuration())
    assert await running_pooler.apply(configuration, shop.console(running_pooler)) is None
    assert running_pooler.complaints() == []
    assert "RELOAD command issued" not in running_pooler.log()


async def test_a_pooler_runs_as_whatever_user_the_cluster_assigns(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "USER", 1_000_730_000)
    with (
        pooler(tmp_path, shop.configuration()) as made,
        psycopg.connect(**shop.connection(made, WEB)) as client,
    ):
        assert client.execute("SELECT 1").fetchone() == (1,)
        assert made.process is not None
        assert os.stat(f"/proc/{made.process.pid}").st_uid == processes.USER


async def test_no_password_or_verifier_gets_into_the_log(running_pooler: Pooler, shop: Shop) -> None:
    changed = running_pooler.write(
        shop.configuration(parameters={"log_connections": "1", "log_disconnections": "1"})
    )
    assert await running_pooler.apply(changed, shop.console(running_pooler)) is None
    access, login = shop.console(running_pooler), shop.login(WEB)
    assert (await trial_login(access, login, shop.entry(WEB), 5)).reachable
    wrong = replace(login, password="not-the-password")
    assert not (await trial_login(access, wrong, shop.entry(WEB), 5)).reachable
    logged = running_pooler.log()
    assert f"user={login.name}" in logged
    console_password = shop.console(running_pooler).password
    secrets = [shop.target.password, console_password, login.password, login.verifier, wrong.password]
    assert [secret for secret in secrets if secret in logged or secret.replace("'", "''") in logged] == []


async def test_the_image_is_of_a_version_that_the_operator_understands(
    running_pooler: Pooler, shop: Shop
) -> None:
    wanted = running_pooler.localised(shop.configuration())
    answer = await console.apply(shop.console(running_pooler), wanted, 3)
    version = pgbouncer_version.parse(answer.version)
    assert version is not None, answer
    assert version.release[:2] >= OLDEST


async def test_a_changed_parameter_and_a_new_consumer_arrive_by_reload_in_the_same_process(
    shop: Shop, tmp_path: Path
) -> None:
    with pooler(tmp_path, shop.configuration(consumers=[WEB])) as running:
        changed = running.write(shop.configuration(parameters={"stats_period": "7"}))
        assert "instead of" in str(await _unapplied(running, shop, changed))
        assert await running.apply(changed, shop.console(running)) is None
        assert running.process is not None
        assert running.process.poll() is None
        assert running.log().count("process up") == 1
        login = shop.login(API)
        assert (await trial_login(shop.console(running), login, shop.entry(API), 5)).reachable


async def test_a_userlist_with_the_inode_and_the_time_of_the_one_before_is_read_all_the_same(
    shop: Shop, tmp_path: Path
) -> None:
    with pooler(tmp_path, shop.configuration()) as running:
        first = running.write(shop.configuration(parameters={"stats_period": "6"}))
        assert await running.apply(first, shop.console(running)) is None
        old = tmp_path / "old"
        os.link(running.directory / f"userlist-{first.generation}.txt", old)
        read = old.stat()
        changed = running.write(shop.configuration(parameters={"stats_period": "7"}))
        new = running.directory / f"userlist-{changed.generation}.txt"
        old.write_text(new.read_text())
        old.rename(new)
        os.utime(new, (read.st_atime, read.st_mtime))
        assert (new.stat().st_ino, new.stat().st_mtime) == (read.st_ino, read.st_mtime)
        assert await running.apply(changed, shop.console(running)) is None


async def _unapplied(running: Pooler, shop: Shop, configuration: object) -> str | None:
    tables = [await rows(running, shop, table) for table in ("CONFIG", "DATABASES", "USERS", "PEERS")]
    return console.unapplied(configuration, *tables)  # type: ignore[arg-type]


async def test_unapplied_agrees_with_apply(running_pooler: Pooler, shop: Shop) -> None:
    configuration = running_pooler.localised(shop.configuration())
    assert await _unapplied(running_pooler, shop, configuration) is None


async def test_each_login_uses_its_own_entries_only(running_pooler: Pooler, shop: Shop) -> None:
    own = {WEB: {shop.entry(WEB), shop.session_entry(WEB)}, API: {shop.entry(API), shop.session_entry(API)}}
    for consumer in own:
        for entry in [entry for entries in own.values() for entry in entries] + ["pgbouncer", "shop"]:
            outcome = await trial_login(shop.console(running_pooler), shop.login(consumer), entry, 5)
            assert outcome.reachable == (entry in own[consumer]), outcome
            assert outcome.reason == ("Reachable" if entry in own[consumer] else "PoolerRefused"), outcome


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_clients_come_by_ipv4_and_ipv6(host: str, running_pooler: Pooler, shop: Shop) -> None:
    access = replace(shop.console(running_pooler), ip=host)
    assert (await trial_login(access, shop.login(WEB), shop.entry(WEB), 5)).reachable


async def test_the_console_login_uses_no_consumers_entry(running_pooler: Pooler, shop: Shop) -> None:
    assert shop.logins.console is not None
    outcome = await trial_login(shop.console(running_pooler), shop.logins.console, shop.entry(WEB), 5)
    assert outcome.reason == "PoolerRefused"


def test_pg_stat_activity_names_the_consumer_unless_the_client_names_itself(
    running_pooler: Pooler, shop: Shop
) -> None:
    query = "SELECT current_user, current_database(), current_setting('application_name')"
    with psycopg.connect(**shop.connection(running_pooler, WEB)) as unnamed:
        assert unnamed.execute(query).fetchone() == ("shop_owner", "shop", "web/database")
    named = shop.connection(running_pooler, API) | {"application_name": "report"}
    with psycopg.connect(**named) as connection:
        assert connection.execute(query).fetchone() == ("shop_owner", "shop", "report")


def test_the_session_entry_keeps_a_session_and_the_transaction_entry_shares_servers(
    running_pooler: Pooler, shop: Shop
) -> None:
    def backends(entry: str) -> tuple[int, int]:
        parameters = shop.connection(running_pooler, WEB, entry)
        with psycopg.connect(**parameters) as first, psycopg.connect(**parameters) as second:
            pids = [connection.execute("SELECT pg_backend_pid()").fetchone() for connection in (first, second)]
        return pids[0][0], pids[1][0]  # type: ignore[index]

    first, second = backends(shop.entry(WEB))
    assert first == second
    first, second = backends(shop.session_entry(WEB))
    assert first != second


def test_what_drivers_send_at_connect_is_accepted(running_pooler: Pooler, shop: Shop) -> None:
    parameters = shop.connection(running_pooler, WEB)
    options = "-c statement_timeout=1000 -c lock_timeout=1000 -c extra_float_digits=2"
    with psycopg.connect(**parameters, options=options) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


async def test_a_removed_consumer_is_cut_off_and_may_not_come_back(running_pooler: Pooler, shop: Shop) -> None:
    web = await psycopg.AsyncConnection.connect(**shop.connection(running_pooler, WEB))
    api = await psycopg.AsyncConnection.connect(**shop.connection(running_pooler, API))
    await web.execute("SELECT 1")
    await api.execute("SELECT 1")
    without = running_pooler.write(shop.configuration(consumers=[WEB]))
    assert await running_pooler.apply(without, shop.console(running_pooler)) is None
    with pytest.raises(psycopg.OperationalError, match="database removed"):
        await api.execute("SELECT 1")
    await web.execute("SELECT 1")
    outcome = await trial_login(shop.console(running_pooler), shop.login(API), shop.entry(API), 5)
    assert outcome.reason == "PoolerRefused"
    await web.close()
    await api.close()


async def test_a_running_query_outlives_a_reload_on_its_backend(running_pooler: Pooler, shop: Shop) -> None:
    async with await psycopg.AsyncConnection.connect(**shop.connection(running_pooler, WEB)) as client:
        query = asyncio.ensure_future(client.execute("SELECT pg_sleep(1), pg_backend_pid()"))
        await asyncio.sleep(0.3)
        changed = running_pooler.write(
            shop.configuration(consumers=[WEB], parameters={"stats_period": "9", "server_lifetime": "99"})
        )
        assert await running_pooler.apply(changed, shop.console(running_pooler)) is None
        assert not query.done()
        row = await (await query).fetchone()
        again = await (await client.execute("SELECT pg_backend_pid()")).fetchone()
        assert row is not None
        assert again == row[1:]


async def test_apply_waits_for_files_that_arrive_late(running_pooler: Pooler, shop: Shop) -> None:
    changed = shop.configuration(parameters={"stats_period": "11"})
    waiting = asyncio.ensure_future(
        running_pooler.apply(running_pooler.localised(changed), shop.console(running_pooler), timeout=10)
    )
    await asyncio.sleep(0.5)
    assert not waiting.done()
    running_pooler.write(changed)
    began = time.monotonic()
    assert await waiting is None
    assert time.monotonic() - began < 1


async def test_apply_says_what_differs_once_its_time_is_up(running_pooler: Pooler, shop: Shop) -> None:
    changed = running_pooler.localised(shop.configuration(parameters={"stats_period": "12"}))
    problem = await running_pooler.apply(changed, shop.console(running_pooler), timeout=0.5)
    assert problem is not None
    assert "auth_file" in problem
    assert shop.target.password not in problem


async def test_a_setting_that_takes_a_restart_is_not_waited_for(running_pooler: Pooler, shop: Shop) -> None:
    changed = running_pooler.write(shop.configuration(parameters={"listen_backlog": "77"}))
    began = time.monotonic()
    problem = await running_pooler.apply(changed, shop.console(running_pooler), timeout=20)
    assert time.monotonic() - began < 5
    assert problem == "listen_backlog is '128' instead of '77', which takes a restart"


async def test_a_setting_changed_by_hand_on_the_console_is_set_back(running_pooler: Pooler, shop: Shop) -> None:
    configuration = running_pooler.localised(shop.configuration())
    async with console.connect(shop.console(running_pooler), 3) as opened:
        await opened.execute("SET max_client_conn = 300")
    assert await _unapplied(running_pooler, shop, configuration) is not None
    assert await running_pooler.apply(configuration, shop.console(running_pooler)) is None


async def test_a_rejected_file_is_reported_and_repaired(running_pooler: Pooler, shop: Shop) -> None:
    wanted = running_pooler.localised(shop.configuration(parameters={"stats_period": "13"}))
    ini = running_pooler.directory / INI
    ini.write_text(wanted.files[INI].replace("[pgbouncer]", "broken = host\n[pgbouncer]"))
    problem = await running_pooler.apply(wanted, shop.console(running_pooler), timeout=0.5)
    assert problem is not None
    assert "RELOAD" in problem
    running_pooler.write(wanted_again := shop.configuration(parameters={"stats_period": "13"}))
    again = running_pooler.localised(wanted_again)
    assert await running_pooler.apply(again, shop.console(running_pooler)) is None


async def test_the_files_of_the_generation_before_stay_so_that_a_reload_meanwhile_locks_nobody_out(
    running_pooler: Pooler, shop: Shop
) -> None:
    """kubelet may swap the files between the moments at which PgBouncer reads the ini and the hba file."""
    before = running_pooler.stored()
    after = shop.configuration(parameters={"stats_period": "14"})
    running_pooler.write(after, keep=kept_files(before, after.generation))
    (running_pooler.directory / INI).write_text(before[INI])
    async with console.connect(shop.console(running_pooler), 3) as opened:
        await opened.reload()
    outcome = await trial_login(shop.console(running_pooler), shop.login(WEB), shop.entry(WEB), 5)
    assert outcome.reachable


async def test_a_reload_that_misses_the_rules_keeps_those_in_force_and_says_so(
    running_pooler: Pooler, shop: Shop
) -> None:
    """As when kubelet brings two generations at once between these moments: the rules of the ini are gone."""
    before = running_pooler.stored()
    after = running_pooler.write(shop.configuration(parameters={"stats_period": "14"}))
    (running_pooler.directory / INI).write_text(before[INI])
    async with console.connect(shop.console(running_pooler), 3) as opened:
        rules = (await opened.settings())["auth_hba_file"]
        with pytest.raises(console.ConsoleError, match="RELOAD failed"):
            await opened.reload()
        assert (await opened.settings())["auth_hba_file"] == rules
    outcome = await trial_login(shop.console(running_pooler), shop.login(WEB), shop.entry(WEB), 5)
    assert outcome.reachable
    (running_pooler.directory / INI).write_text(after.files[INI])
    assert await running_pooler.apply(after, shop.console(running_pooler)) is None


async def test_a_frozen_pooler_costs_no_more_than_the_time_limit(running_pooler: Pooler, shop: Shop) -> None:
    assert running_pooler.process is not None
    configuration = running_pooler.localised(shop.configuration())
    async with console.connect(shop.console(running_pooler), 1) as opened:
        os.kill(running_pooler.process.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(console.ConsoleError) as caught:
            await opened.show("CONFIG")
    assert time.monotonic() - began < 2
    assert caught.value.reason == "Timeout"
    began = time.monotonic()
    assert await running_pooler.apply(configuration, shop.console(running_pooler), timeout=1) is not None
    login, entry = shop.login(WEB), shop.entry(WEB)
    assert (await trial_login(shop.console(running_pooler), login, entry, 1)).reason == "Timeout"
    assert time.monotonic() - began < 3
    os.kill(running_pooler.process.pid, signal.SIGCONT)
    assert await running_pooler.apply(configuration, shop.console(running_pooler)) is None


async def test_a_wrong_console_password_is_told_apart_and_not_repeated(
    running_pooler: Pooler, shop: Shop
) -> None:
    with pytest.raises(console.ConsoleError) as caught:
        async with console.connect(replace(shop.console(running_pooler), password="wrong-password"), 2):
            pass
    assert caught.value.reason == "AuthenticationFailed"
    assert "wrong-password" not in str(caught.value)


async def test_a_changed_upstream_password_is_used_by_the_next_server_connection(
    server: Postgres, shop: Shop, tmp_path: Path
) -> None:
    server.create_role("rotating", "first")
    target = replace(shop.target, user="rotating", password="first")
    with pooler(tmp_path, shop.configuration(target=target)) as running:
        login, entry = shop.login(WEB), shop.entry(WEB)
        assert (await trial_login(shop.console(running), login, entry, 5)).reachable
        server.create_role("rotating", "second")
        changed = running.write(shop.configuration(target=replace(target, password="second")))
        assert await running.apply(changed, shop.console(running)) is None
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotating'")
        assert (await trial_login(shop.console(running), login, entry, 5)).reachable
