"""What a client leaves behind: nothing of it reaches another client, but for the documented leaks of Fast."""

from __future__ import annotations

from contextlib import ExitStack, closing

import pytest

from tests.datapath import wire
from tests.datapath.stack import POOL, Route, Tier, renew
from tests.datapath.state_table import STATES, SessionState
from tests.datapath.wire import Connection, rows


def everywhere(clients: list[Connection], statements: tuple[str, ...]) -> None:
    """Run them on every server connection of the pool: each client holds one while the statements run."""
    for statement in statements:
        if statement.startswith("BEGIN"):
            for client in clients:
                rows(client.run(statement))
            continue
        # Two messages in one go keep the connection from one client to the next no longer than needed.
        for client in clients:
            client.send(wire.query(statement), wire.query("SELECT pg_sleep(0.02)"))
        for client in clients:
            rows(client.until_ready(2))


def on_every_connection(route: Route, probe: str) -> set[str | None]:
    """The probe's values on all server connections of the pool, which a client each holds in a transaction."""
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(route.connect())) for _ in range(POOL)]
        for client in clients:
            rows(client.run("BEGIN"))
        found = {row[0] for client in clients for row in rows(client.run(probe))}
        for client in clients:
            rows(client.run("ROLLBACK"))
        return found


def met(route: Route, state: SessionState, staying: bool) -> bool:
    """Whether other clients find what some clients left; `staying` is whether those are still connected."""
    fresh = on_every_connection(route, state.probe)
    assert len(fresh) == 1, f"before {state.name}: {fresh}"
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(route.connect())) for _ in range(POOL)]
        everywhere(clients, state.leave)
        if not staying:
            for client in clients:
                client.close()
        return on_every_connection(route, state.probe) != fresh


def test_the_table_tells_its_states_apart(direct: Route) -> None:
    """A probe that shows no difference on one connection would prove nothing."""
    passing = {
        "SET clause of a function",
        "SET that is rolled back",
        "SET LOCAL",
        "set_config, local",
        "advisory lock of a transaction",
    }
    for state in STATES:
        with closing(direct.connect()) as client:
            before = rows(client.run(state.probe))
            for statement in state.leave:
                rows(client.run(statement))
            assert (rows(client.run(state.probe)) == before) == (state.name in passing), state.name


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
@pytest.mark.parametrize("staying", [True, False], ids=["client stays", "client left"])
def test_fast_leaks_exactly_what_is_documented(
    state: SessionState, staying: bool, tier: Tier, pooler: Tier
) -> None:
    renew(tier, pooler)
    assert met(tier.transaction, state, staying) == state.leaks
    renew(tier, pooler)


@pytest.mark.parametrize("arguments", [b"'search_path', 't1', false", b"$1, 't1', false"])
def test_a_prepared_set_config_leaks_no_search_path(arguments: bytes, tier: Tier, pooler: Tier) -> None:
    """It is prepared once, and runs on whatever server connection there is."""
    renew(tier, pooler)
    given = [b"search_path"] if b"$1" in arguments else []
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(tier.transaction.connect())) for _ in range(POOL)]
        for client in clients:
            client.send(wire.parse("setter", f"SELECT set_config({arguments.decode()})"), wire.SYNC)
            client.until_ready()
        for _ in range(3):
            for client in clients:
                client.send(wire.bind("", "setter", given), wire.execute(), wire.SYNC, wire.query("SELECT 1"))
            assert [rows(client.until_ready(2)) for client in clients] == [[("t1",), ("1",)]] * POOL
            assert on_every_connection(tier.transaction, "SHOW search_path") == {'"$user", public'}


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_a_session_leaves_nothing_to_the_next(state: SessionState, tier: Tier) -> None:
    assert not met(tier.session, state, staying=False)


@pytest.mark.parametrize(
    "state",
    [pytest.param(one, id=one.name, marks=[pytest.mark.smoke] if one.leaks else []) for one in STATES],
)
@pytest.mark.parametrize("staying", [True, False], ids=["client stays", "client left"])
def test_strict_leaks_nothing(state: SessionState, staying: bool, strict_tier: Tier) -> None:
    assert not met(strict_tier.transaction, state, staying)


def test_strict_keeps_prepared_statements_and_reported_parameters_of_each_client(strict_tier: Tier) -> None:
    """What the product gives a client across transactions survives the reset between them."""
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(strict_tier.transaction.connect())) for _ in range(3 * POOL)]
        for number, client in enumerate(clients):
            client.send(wire.parse("mine", f"SELECT '{number}'"), wire.SYNC)
            client.until_ready()
            client.run(f"SET application_name = 'client {number}'")
        for _ in range(5):
            for client in clients:
                client.send(
                    wire.bind("", "mine"), wire.execute(), wire.SYNC, wire.query("SHOW application_name")
                )
            for number, client in enumerate(clients):
                assert rows(client.until_ready(2)) == [(str(number),), (f"client {number}",)]
