"""docs/budget.md: its figures are what the arithmetic comes to, and it knows every reason and setting."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from poolkeeper.budget import problems
from poolkeeper.budget.division import Consumer, Server, divide
from poolkeeper.consumers.entries import Entry
from poolkeeper.pgbouncer.configuration import divided_slots, with_slots
from poolkeeper.plan.status import budget, client_slots
from poolkeeper.spec.parameters import OWNED_REMEDIES

PAGE = (Path(__file__).parents[3] / "docs" / "budget.md").read_text()
USABLE = Server(max_connections=100, superuser_reserved=3, reserved=0, others=1).usable(5)
"""The operator's own connection is one of others."""


def fits(consumers: int, sessions: int, pods: int) -> bool:
    """Whether so many consumers have all of their entries on so many pods."""
    wanted = [Consumer(f"c{number}", f"c{number}.session", sessions=sessions) for number in range(consumers)]
    divided = divide(USABLE, [f"pod-{number}" for number in range(pods)], [], wanted)
    return divided.pods >= pods and not divided.left_out


@pytest.mark.parametrize(
    "row", re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE), ids=lambda row: row[0]
)
def test_so_many_consumers_fit_and_not_one_more(row: tuple[str, ...]) -> None:
    sessions, *figures = map(int, row)
    for pods, consumers in zip((2, 3, 3), figures, strict=True):
        assert fits(consumers, sessions, pods)
        assert not fits(consumers + 1, sessions, pods)


def test_the_page_says_how_many_connections_are_usable() -> None:
    assert f"{USABLE} connections are usable" in " ".join(PAGE.split())
    assert len(re.findall(r"^\| \d+ \| \d+ \| \d+ ", PAGE, re.MULTILINE)) == 3


@pytest.mark.parametrize(
    ("modules", "heading"), [((budget, problems), "WithinBudget"), ((client_slots,), "Client slots")]
)
def test_every_reason_has_its_row(modules: tuple[ModuleType, ...], heading: str) -> None:
    source = "".join(Path(str(module.__file__)).read_text() for module in modules)
    reasons = set(re.findall(r'"([A-Z][A-Za-z]+[a-z])"', source)) - {"NoConnectionLeft", "ClientSlots"}
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = set(re.findall(r"^\| `(?:True|False|Unknown)` `(\w+)` \|", section, re.MULTILINE))
    assert reasons == rows
    assert "NoConnectionLeft" in PAGE


def test_c6_the_page_says_how_many_clients_each_consumer_may_have() -> None:
    rows = re.findall(r"^\| (\d+)(?: and more)? \| (\d+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 4
    for consumers, clients in rows:
        entries = [Entry(f"e{n}", "shop", f"l{n}", "transaction", "") for n in range(int(consumers))]
        bounds = divided_slots(with_slots({}, entries), entries)
        assert set(bounds.values()) == {int(clients)}


def test_every_setting_that_the_budget_replaces_is_named() -> None:
    ours = {name for name, remedy in OWNED_REMEDIES.items() if "spec.budget" in remedy or "limits" in remedy}
    page = PAGE.partition("## Instead of sizes of pools")[2]
    assert ours == set(re.findall(r"`((?:default|max|min|reserve)_\w+)`", page))
