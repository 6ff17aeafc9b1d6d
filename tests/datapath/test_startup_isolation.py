"""What a client asks for at start-up is in force for it and for no other client, or it is refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing, suppress

import pytest

from tests.datapath import wire
from tests.datapath.schema import TENANTS
from tests.datapath.stack import CLIENTS, POOL, Route, Tier
from tests.datapath.startup_table import FORMS, PARAMETERS, StartupParameter
from tests.datapath.wire import Connection, Refused, rows

ROUNDS = 6


def answers(
    route: Route, wishes: Iterable[Mapping[str, str]], statement: str, rounds: int = ROUNDS
) -> list[set[str | None] | Refused]:
    """What each client gets for the statement, over some rounds in which all of them ask at once.

    Where a client has a server connection for itself, only as many clients as there are come at a time.
    """
    everybody = list(wishes)
    size = len(everybody) if route.shared else POOL
    found: list[set[str | None] | Refused] = []
    for start in range(0, len(everybody), size):
        with ExitStack() as stack:
            clients: list[Connection | Refused] = []
            for wish in everybody[start : start + size]:
                try:
                    clients.append(stack.enter_context(closing(route.connect(wish))))
                except Refused as refused:
                    clients.append(refused)
            got: list[set[str | None]] = [set() for _ in clients]
            for _ in range(rounds):
                open_ = [
                    (client, seen)
                    for client, seen in zip(clients, got, strict=True)
                    if isinstance(client, Connection)
                ]
                for client, _seen in open_:
                    client.send(wire.query(statement))
                for client, seen in open_:
                    seen.update(row[0] for row in rows(client.until_ready()))
            found += [c if isinstance(c, Refused) else seen for c, seen in zip(clients, got, strict=True)]
    return found


def ignored(tier: Tier) -> set[str]:
    """The documented list of parameters that are accepted and have no effect."""
    return set(tier.console.parameter("ignore_startup_parameters").replace(" ", "").split(","))


def wrong(
    parameter: StartupParameter, form: str, route: Route, direct: Route, overlooked: set[str]
) -> list[str]:
    wishes: list[dict[str, str]] = [{}]
    wishes += [FORMS[form](parameter.name, value) for value in parameter.values]
    statement = f"SELECT current_setting('{parameter.name}', true)"
    # Names of the application differ where none is given, and so does what an unknown variable is.
    expected = [
        answer if isinstance(answer, Refused) else answer.pop()
        for answer in answers(direct, wishes, statement, 1)
    ]
    without = answers(route, [{}], statement, 1)[0]
    faults = []
    for number, answer in enumerate(answers(route, wishes * (CLIENTS // len(wishes)), statement)):
        wish, right = wishes[number % len(wishes)], expected[number % len(wishes)]
        if isinstance(answer, Refused):
            # In the form -- a client may write dashes for underscores, and reads in the refusal what it wrote.
            named = parameter.name.lower() in answer.message.lower().replace("-", "_")
            if not wish or not named:
                faults.append(f"client {number} with {wish} was refused: {answer}")
            continue
        own = {right} if wish else without
        silent = bool(overlooked & {parameter.name, *wish}) and answer == without
        same = {value or "" for value in answer} == {value or "" for value in own}  # type: ignore[union-attr]
        if not same and not silent:
            faults.append(f"client {number} with {wish} has {answer}, not {own}")
    return faults


APPLIED = ("search_path", "statement_timeout", "lock_timeout", "DateStyle", "TimeZone")
SMOKE = ("search_path", "statement_timeout", "client_encoding", "role")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "parameter",
    [
        pytest.param(one, id=one.name, marks=[pytest.mark.smoke] if one.name in SMOKE else [])
        for one in PARAMETERS
    ],
)
@pytest.mark.parametrize("entry", ["transaction", "session"])
def test_a_value_is_in_force_for_its_client_alone_or_refused_by_name(
    parameter: StartupParameter, form: str, entry: str, tier: Tier, direct: Route
) -> None:
    route = getattr(tier, entry)
    assert wrong(parameter, form, route, direct, ignored(tier)) == []


@pytest.mark.smoke
@pytest.mark.parametrize("form", FORMS)
def test_a_parameter_that_the_pooler_applies_is_accepted_in_every_form(form: str, route: Route) -> None:
    for parameter in PARAMETERS:
        if parameter.name in APPLIED:
            route.connect(FORMS[form](parameter.name, parameter.values[0])).close()


def c1(route: Route, direct: Route, key: str) -> int:
    """Wrong answers of 12 clients, each with its tenant's search_path or none."""
    wishes = [
        {} if tenant is None else FORMS[key]("search_path", tenant)
        for _ in range(CLIENTS // 4)
        for tenant in (*TENANTS, None)
    ]
    statement = "SELECT name FROM tenant"
    right = answers(direct, wishes, statement, 1)
    got = answers(route, wishes, statement, 25)
    return sum(
        not isinstance(answer, Refused) and answer != expected
        for answer, expected in zip(got, right, strict=True)
    )


@pytest.mark.smoke
@pytest.mark.parametrize("form", ["key", "option -c", "option --"])
def test_c1_no_answer_comes_out_of_another_tenants_schema(form: str, route: Route, direct: Route) -> None:
    assert c1(route, direct, form) == 0


@pytest.mark.parametrize("form", FORMS)
def test_several_parameters_at_once(form: str, tier: Tier, direct: Route) -> None:
    """Some of them reported by the server, some not: one of a kind must not bring the other along."""
    names = ("search_path", "DateStyle", "TimeZone")
    table = {one.name: one for one in PARAMETERS}
    shown = " || ';' || ".join(f"current_setting('{name}')" for name in names)
    wishes: list[dict[str, str]] = [{}]
    for index in range(3):
        single = [FORMS[form](name, table[name].values[index]) for name in names]
        options = " ".join(item["options"] for item in single if "options" in item)
        wishes.append({"options": options} if options else {k: v for item in single for k, v in item.items()})
    got = answers(tier.transaction, wishes * 3, f"SELECT {shown}")
    right = answers(direct, wishes * 3, f"SELECT {shown}", 1)
    overlooked = ignored(tier)
    for answer, expected, wish in zip(got, right, wishes * 3, strict=True):
        if isinstance(answer, Refused):
            assert any(name.lower() in answer.message.lower().replace("-", "_") for name in names)
            continue
        assert not isinstance(expected, Refused)
        assert not isinstance(right[0], Refused)
        [shown_values] = answer
        [(asked), (own)] = [*expected, *right[0]]
        for name, value, asked_value, own_value in zip(
            names, *map(_columns, (shown_values, asked, own)), strict=True
        ):
            allowed = {asked_value, own_value} if overlooked & {*wish, name} else {asked_value}
            assert value in allowed, f"{name} of a client with {wish}"


def _columns(shown: str | None) -> list[str]:
    return (shown or "").split(";")


@pytest.mark.parametrize("name", ["search_path", "statement_timeout", "TimeZone"])
def test_what_a_session_asked_for_and_set_later_goes_with_it(name: str, tier: Tier, direct: Route) -> None:
    values = {one.name: one.values for one in PARAMETERS}[name]
    with closing(direct.connect()) as plain:
        own = rows(plain.run(f"SHOW {name}"))
    with suppress(Refused), closing(tier.session.connect({name: values[0]})) as client:
        rows(client.run(f"SET {name} = '{values[1]}'"))
        assert rows(client.run(f"SHOW {name}")) != own
    for _ in range(2 * POOL):
        with closing(tier.session.connect()) as another:
            assert rows(another.run(f"SHOW {name}")) == own
