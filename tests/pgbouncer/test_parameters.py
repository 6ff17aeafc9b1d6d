"""The allow-list of parameters against the real program: names, ranges, spelling, and what takes a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from poolkeeper.engine import pgbouncer_version
from poolkeeper.engine.parameter_table import OLDEST
from poolkeeper.pgbouncer import console, ini
from poolkeeper.spec.parameters import OPERATOR_OWNED, PARAMETERS, Parameter, validate
from tests.pgbouncer.processes import Pooler, pooler
from tests.pgbouncer.shop import Shop


@pytest.fixture(scope="module")
def plain(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooler]:
    with pooler(tmp_path_factory.mktemp("plain"), shop.configuration()) as made:
        yield made


@pytest.fixture(scope="module")
def known(plain: Pooler, shop: Shop) -> dict[str, Parameter]:
    """The parameters that the image's PgBouncer has, going by its version."""

    async def ask() -> str:
        async with console.connect(shop.console(plain), 3) as opened:
            return await opened.version()

    version = pgbouncer_version.parse(asyncio.run(ask()))
    assert version is not None
    return {name: one for name, one in PARAMETERS.items() if one.since <= version.release[:2]}


def later_defaults(known: Mapping[str, Parameter]) -> dict[str, str]:
    return {name: value for name, value in ini.LATER_DEFAULTS.items() if name in known}


def values(parameter: Parameter) -> list[object]:
    """The extremes of a parameter, and every choice and spelling that it knows."""
    if parameter.kind == "switch":
        return [0, 1]
    if parameter.kind == "integer":
        return [parameter.minimum, parameter.maximum]
    if parameter.kind == "seconds":
        # A fraction as SHOW CONFIG has to print it, where the range allows for one.
        return [parameter.minimum, parameter.maximum, f"{max(parameter.minimum, 1)}.125"]
    if parameter.kind == "text":
        return ["", "x" * parameter.maximum, 'SELECT 1 -- it\'s "fine"; #not [a] section = %include']
    items = parameter.choices or ("IntervalStyle", "search_path")
    return [*parameter.keywords, items[0], items[-1], parameter.separator.join(items)]


def vectors() -> list[dict[str, str]]:
    """Sets of parameters in which each value of each parameter occurs at least once."""
    longest = max(len(values(parameter)) for parameter in PARAMETERS.values())
    return [
        {
            name: validate(name, values(parameter)[min(index, len(values(parameter)) - 1)])
            for name, parameter in PARAMETERS.items()
        }
        for index in range(longest)
    ]


async def show_config(pooler: Pooler, shop: Shop) -> dict[str, dict[str, str]]:
    async with console.connect(shop.console(pooler), 3) as opened:
        return {row["key"]: row for row in await opened.show("CONFIG")}


@pytest.mark.parametrize("index", range(len(vectors())))
async def test_every_value_is_accepted_at_the_start_and_shown_as_it_was_written(
    index: int, known: dict[str, Parameter], shop: Shop, tmp_path: Path
) -> None:
    parameters = {name: value for name, value in vectors()[index].items() if name in known}
    with pooler(tmp_path, shop.configuration(parameters=parameters)) as running:
        shown = await show_config(running, shop)
        assert {name: shown[name]["value"] for name in parameters} == parameters
        assert running.complaints() == []


@pytest.mark.parametrize("index", range(len(vectors())))
async def test_every_value_that_needs_no_restart_arrives_by_reload(
    index: int, known: dict[str, Parameter], plain: Pooler, shop: Shop
) -> None:
    hot = {name for name, one in known.items() if not one.restart}
    parameters = {name: value for name, value in vectors()[index].items() if name in hot}
    changed = plain.write(shop.configuration(parameters=parameters))
    assert await plain.apply(changed, shop.console(plain)) is None
    back = plain.write(shop.configuration(parameters=later_defaults(known)))
    assert await plain.apply(back, shop.console(plain)) is None
    shown = await show_config(plain, shop)
    own = {**ini.DEFAULTS, **later_defaults(known)}
    defaults = {name: shown[name]["default"] for name in parameters} | own
    assert {name: shown[name]["value"] for name in parameters} == {name: defaults[name] for name in parameters}


async def test_what_takes_a_restart_is_what_the_console_calls_not_changeable(
    known: dict[str, Parameter], plain: Pooler, shop: Shop
) -> None:
    shown = await show_config(plain, shop)
    assert {name: parameter.restart for name, parameter in known.items()} == {
        name: shown[name]["changeable"] == "no" for name in known
    }


CHANGED_LATER = {"server_check_query": "<empty>", "track_extra_parameters": ""}
"""Defaults of 1.26 that are others than in the oldest version, whose defaults the table has."""


async def test_the_defaults_in_the_table_are_the_programs_own(
    known: dict[str, Parameter], plain: Pooler, shop: Shop
) -> None:
    shown = await show_config(plain, shop)
    changed = CHANGED_LATER if "pool_idle_timeout" in known else {}
    assert {name: parameter.default for name, parameter in known.items()} | changed == {
        name: shown[name]["default"] for name in known
    }


async def test_a_parameter_is_known_from_the_version_on_that_the_table_names(
    known: dict[str, Parameter], plain: Pooler, shop: Shop
) -> None:
    assert known.keys() == PARAMETERS.keys() & (await show_config(plain, shop)).keys()


async def test_what_the_operator_writes_unasked_is_known_to_the_oldest_version(shop: Shop) -> None:
    """Forced settings were there long before: every version shows them."""
    newer = {name for name, one in PARAMETERS.items() if one.since > OLDEST}
    assert not newer & shop.configuration().settings.keys()


async def test_every_setting_of_this_version_is_either_offered_or_the_operators_own(
    plain: Pooler, shop: Shop
) -> None:
    shown = await show_config(plain, shop)
    assert set(PARAMETERS) | OPERATOR_OWNED >= set(shown)
    assert not set(PARAMETERS) & OPERATOR_OWNED


async def test_defaults_of_the_operator_pass_its_own_allow_list_and_forced_settings_are_its_own(
    shop: Shop,
) -> None:
    for name, value in {**ini.DEFAULTS, **ini.LATER_DEFAULTS}.items():
        assert name in PARAMETERS
        assert value == "" or validate(name, int(value)) == value
    written = shop.configuration().settings.keys()
    assert written - ini.DEFAULTS.keys() <= OPERATOR_OWNED
