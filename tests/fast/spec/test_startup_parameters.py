"""Session parameters at connect, and what stays between two clients: what the settings become."""

from __future__ import annotations

import pytest

from poolkeeper.spec import startup_parameters
from poolkeeper.spec.parse import SpecError, parse
from poolkeeper.spec.types import Pooler
from tests.specs import BY_HOST, body, changed


def pooler(**fields: object) -> Pooler:
    return parse(body(changed("pooler", {"mode": "transaction", **fields}, BY_HOST))).pooler


def test_by_default_drivers_search_path_and_timeouts_are_applied_and_nothing_but_digits_is_ignored() -> None:
    assert startup_parameters.pooler_settings(pooler()) == {
        "track_extra_parameters": (
            "IntervalStyle,idle_in_transaction_session_timeout,lock_timeout,search_path,statement_timeout"
        ),
        "ignore_startup_parameters": "extra_float_digits",
    }


@pytest.mark.parametrize(
    ("written", "applied", "ignored"),
    [
        ({"jit": "Apply"}, {"jit", "search_path"}, {"extra_float_digits"}),
        ({"jit": "Ignore"}, {"search_path"}, {"extra_float_digits", "jit"}),
        ({"search_path": "Refuse"}, {"statement_timeout"}, {"extra_float_digits"}),
        ({"Search_Path": "Ignore"}, {"statement_timeout"}, {"Search_Path", "extra_float_digits"}),
        ({"extra_float_digits": "Refuse"}, {"search_path"}, set()),
        ({"app.tenant": "Apply"}, {"app.tenant"}, {"extra_float_digits"}),
    ],
)
def test_what_is_written_goes_before_the_default(
    written: dict[str, str], applied: set[str], ignored: set[str]
) -> None:
    made = startup_parameters.settings(written)
    tracked = set(made["track_extra_parameters"].split(","))
    assert applied <= tracked
    assert not {name.lower() for name in tracked} & {
        name.lower() for name, treatment in written.items() if treatment != "Apply"
    }
    assert set(made["ignore_startup_parameters"].split(",")) - {""} == ignored


def test_strict_resets_every_server_connection_after_each_transaction() -> None:
    made = startup_parameters.pooler_settings(pooler(isolation="Strict"))
    assert (made["server_reset_query"], made["server_reset_query_always"]) == ("DISCARD ALL", "1")
    assert "server_reset_query" not in startup_parameters.pooler_settings(pooler(isolation="Fast"))


@pytest.mark.parametrize(("name", "value"), [("server_reset_query", ""), ("server_reset_query_always", 0)])
def test_strict_leaves_no_say_to_the_parameters_that_it_decides(name: str, value: object) -> None:
    with pytest.raises(SpecError) as refusal:
        pooler(isolation="Strict", parameters={name: value})
    assert refusal.value.field == f"spec.pooler.parameters.{name}"
    assert pooler(isolation="Fast", parameters={name: value}).parameters[name] == str(value)
