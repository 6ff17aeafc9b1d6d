"""Events: one line of bounded text, and a bounded number of them for each namespace."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.kube import events
from poolkeeper.kube.events import Allowance, Event

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@given(message=st.text(), kind=st.text(), name=st.text())
def test_an_event_is_one_line_of_bounded_text(message: str, kind: str, name: str) -> None:
    about = {"apiVersion": "v1", "kind": kind, "namespace": "shop", "name": name, "uid": "1"}
    body = events.body(Event("x", "Warning", "Reason", message * 50), about, NOW)
    assert len(body["message"]) <= events.MESSAGE_LIMIT
    for text in (body["message"], *body["involvedObject"].values()):
        assert text.isprintable()
        text.encode()


def test_ordinary_text_stays_as_it_is() -> None:
    about = {"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web-1", "uid": "1"}
    body = events.body(Event("x", "Normal", "Reason", "Größe: 5 → 6"), about, NOW)
    assert (body["message"], body["involvedObject"]) == ("Größe: 5 → 6", about)


def event(namespace: str, name: str) -> dict[str, dict[str, str]]:
    return {"metadata": {"namespace": namespace, "name": name}}


def test_a_namespace_gets_so_many_events_in_a_period_and_takes_none_of_another_one() -> None:
    allowance = Allowance(3, 60)
    assert [allowance.admits(event("a", str(number)), number) for number in range(5)] == [True] * 3 + [
        False
    ] * 2
    assert allowance.admits(event("b", "0"), 5)
    assert allowance.admits(event("a", "5"), 60)
    assert not allowance.admits(event("a", "6"), 60.5)
    assert allowance.admits(event("a", "7"), 61)


def test_the_same_event_is_posted_once_in_a_period() -> None:
    allowance = Allowance(3, 60)
    assert [allowance.admits(event("a", "x"), time) for time in (0, 1, 59, 60)] == [True, False, False, True]
    assert allowance.admits(event("a", "y"), 61)


def test_what_is_over_is_forgotten() -> None:
    allowance = Allowance(3, 60)
    for number in range(1000):
        allowance.admits(event(f"n{number}", "x"), 0)
    allowance.admits(event("last", "x"), 60)
    assert len(allowance._admitted) == len(allowance._counts) == 1
