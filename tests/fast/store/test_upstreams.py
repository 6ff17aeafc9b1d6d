"""What is remembered of upstreams: when the next login is due, what outlasts a failure, and what is news."""

from dataclasses import replace

from poolkeeper.observed.refs import Key
from poolkeeper.observed.upstream import Probe, Whereabouts
from poolkeeper.store import upstreams
from poolkeeper.store.upstreams import Upstreams
from poolkeeper.upstream.target import Target

KEY = Key("data", "shop")
TARGET = Target("pg", 5432, "shop", "o", "p", "require", None)
REACHED = Probe(TARGET, True, "Reachable", "", 170002)
LOST = Probe(TARGET, False, "Timeout", "no answer")


def probed(memory: Upstreams, probe: Probe) -> Probe:
    memory.probed(KEY, probe)
    found = memory.probe(KEY)
    assert found is not None
    return found


def seconds(memory: Upstreams) -> int:
    left = memory.seconds_to_probe(KEY)
    assert left is not None
    return round(left)


def test_a_failing_upstream_is_asked_soon_and_then_ever_later() -> None:
    memory, delays = Upstreams(()), []
    assert memory.seconds_to_probe(KEY) is None
    for _ in range(8):
        memory.probed(KEY, LOST)
        delays.append(seconds(memory))
    assert delays == [2, 4, 8, 16, 30, 30, 30, 30]
    memory.probed(KEY, REACHED)
    memory.probed(KEY, LOST)
    assert seconds(memory) == 2


def test_with_many_pooled_databases_each_upstream_is_asked_less_often() -> None:
    memory = Upstreams(range(6000))
    memory.probed(KEY, REACHED)
    assert seconds(memory) == 6000 / upstreams.PROBES_PER_SECOND


def test_a_server_that_is_out_of_reach_keeps_the_version_that_it_showed() -> None:
    memory = Upstreams(())
    memory.probed(KEY, REACHED)
    for _ in range(2):
        assert probed(memory, LOST) == replace(LOST, server_version=170002)
    elsewhere = replace(LOST, target=replace(TARGET, host="other"))
    assert probed(memory, elsewhere) == elsewhere


def test_what_has_changed_concerns_the_key_and_goes_with_its_pooled_database() -> None:
    memory, place = Upstreams(()), Whereabouts("pg", frozenset({"10.0.0.1"}))
    memory.probed(KEY, REACHED)
    for _ in range(2):
        assert memory.seconds_since_move(KEY) == 0
        assert memory.locate(KEY, place) == {KEY}
        assert memory.locate(KEY, place) == frozenset()
        assert memory.put_schema(KEY, "a") == {KEY}
        assert memory.put_schema(KEY, "a") == frozenset()
        assert memory.seconds_since_move(KEY) > 0
        assert (memory.whereabouts(KEY), memory.schema(KEY)) == (place, "a")
        memory.drop(KEY)
        assert (memory.probe(KEY), memory.whereabouts(KEY), memory.schema(KEY)) == (None, None, "")
