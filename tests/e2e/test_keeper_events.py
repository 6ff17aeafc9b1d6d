"""Apps with keepers, real libraries all of them, lose nothing by whatever is planned for their poolers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.keeper_events import EVENTS
from tests.e2e.keeper_kit import Fleet, make_table
from tests.e2e.kit import Place

RATE = 30
DRAIN_SECONDS = 10


@pytest.fixture(scope="module")
def shop(module_place: Place) -> Place:
    """Two poolers that end with some patience."""
    module_place.serve(module_place.spec(replicas=2, drainSeconds=DRAIN_SECONDS))
    make_table(module_place)
    return module_place


@pytest.fixture(scope="module")
def fleet(shop: Place) -> Iterator[Fleet]:
    """Every load program, each beside a keeper of its own."""
    deployed = Fleet(shop.web, "keeper", RATE)
    deployed.deploy()
    yield deployed
    deployed.remove()


@pytest.mark.parametrize("event", EVENTS)
def test_no_transaction_fails_through_keepers(event: str, shop: Place, fleet: Fleet) -> None:
    with fleet.during(event) as outcome:
        EVENTS[event](shop)
    fleet.check_lossless(outcome)
