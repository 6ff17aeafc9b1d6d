"""The condition PoolerImage, and parameters by version, from the answers of real consoles.

A PgBouncer of another version is the image's own with another text for SHOW VERSION, which is all that the
operator sees of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from poolkeeper import names
from poolkeeper.engine.known_faults import KNOWN, Circumstances, applying
from poolkeeper.engine.parameter_table import OLDEST
from poolkeeper.engine.pgbouncer_version import parse
from poolkeeper.names import CONFIG_DIRECTORY
from poolkeeper.pgbouncer.configuration import INI
from tests.apiserver.operator.operator_process import Operator
from tests.apiserver.operator.pooler_pod import PoolerPod, WaitingPod, written_within
from tests.apiserver.operator.site import Lane, eventually
from tests.pgbouncer.rootfs import rootfs

BINARY = "usr/bin/pgbouncer"
FORGED = "forged"
IMAGE = "registry.example/pgbouncer:1"


def own_version() -> str:
    """What the image's program calls itself."""
    text = (rootfs("pgbouncer") / BINARY).read_bytes()
    start = text.index(b"PgBouncer 1.")
    return text[start : text.index(b"\0", start)].decode()


class Versioned(PoolerPod):
    """A pooler pod whose PgBouncer calls itself `version`; empty: by its own name."""

    version = ""

    def _command(self) -> list[str]:
        *enter, program, file = super()._command()
        if not self.version:
            return [*enter, program, file]
        own, said = own_version().encode(), self.version.encode()
        assert len(said) <= len(own)
        forged = self.place / FORGED
        forged.write_bytes(
            (rootfs("pgbouncer") / BINARY).read_bytes().replace(own, said.ljust(len(own), b"\0"))
        )
        forged.chmod(0o755)
        return [*enter, f"{CONFIG_DIRECTORY}/{FORGED}", file]


class WaitingVersioned(Versioned, WaitingPod):
    """Likewise with a network of its own: its console shows all that the operator wants."""


@contextmanager
def pooler(
    lane: Lane, number: int, directory: Path, version: str = "", kind: type[Versioned] = Versioned
) -> Iterator[Versioned]:
    pod = kind(lane, number, directory / f"pod-{number}")
    pod.version = version
    with pod.pgbouncer():
        yield pod


@pytest.fixture
def settled(lane: Lane, operator: Operator) -> Lane:
    """A PooledDatabase without pods."""
    lane.apply()
    lane.synced(2, seconds=20)
    return lane


def test_it_is_unknown_until_a_console_answers_and_then_says_what_the_console_said(
    settled: Lane, tmp_path: Path
) -> None:
    settled.expect("PoolerImage", "Unknown", "NoConsole")
    version = parse(own_version())
    assert version is not None
    faults = applying(version, Circumstances(170002, "disable", frozenset({"options"})))
    with pooler(settled, 1, tmp_path) as pod:
        if faults:
            message = settled.expect("PoolerImage", "False", "KnownFault", seconds=20)
            assert f"pooler pod {pod.name} runs {own_version()}, which has known faults" in message
        else:
            message = settled.expect("PoolerImage", "True", "NoKnownFault", seconds=20)
            assert own_version() in message
        assert [fault for fault in faults if fault.name not in message] == []
        eventually(lambda: not written_within(settled, 2), 30)
    assert f"process up: {own_version()}," in pod.log()


def test_a_known_fault_is_reported_until_it_is_accepted_by_name(settled: Lane, tmp_path: Path) -> None:
    with pooler(settled, 1, tmp_path, "PgBouncer 1.26.1"):
        message = settled.expect("PoolerImage", "False", "KnownFault", seconds=20)
        version = parse("PgBouncer 1.26.1")
        assert version is not None
        expected = [
            fault.name for fault in applying(version, Circumstances(170002, "disable", frozenset({"options"})))
        ]
        found = [name for name in KNOWN if name in message]
        assert found == expected
        warned = [event for event in settled.events() if event["reason"] == "KnownFault"]
        assert [event["type"] for event in warned] == ["Warning"]
        settled.apply(pooler={"allowKnownFaults": found[:-1]})
        message = settled.expect("PoolerImage", "False", "KnownFault")
        assert "cached-login-error" in message
        assert "search-path-mixed" not in message
        settled.apply(pooler={"allowKnownFaults": found})
        message = settled.expect("PoolerImage", "True", "FaultsAllowed")
        assert message.endswith(", ".join(found))
        eventually(lambda: not written_within(settled, 2), 30)


def test_while_two_versions_run_the_worse_one_is_shown(settled: Lane, tmp_path: Path) -> None:
    with ExitStack() as stack:
        stack.enter_context(pooler(settled, 1, tmp_path, "PgBouncer 1.27.0"))
        assert "newer than 1.26.1" in settled.expect("PoolerImage", "True", "NoKnownFault", seconds=20)
        with pooler(settled, 2, tmp_path, "PgBouncer 1.24.1") as worse:
            message = settled.expect("PoolerImage", "False", "KnownFault", seconds=20)
            assert f"pod {worse.name} runs PgBouncer 1.24.1," in message
            assert "CVE-2026-107350" in message
        settled.remove_pod(worse.name)
        settled.expect("PoolerImage", "True", "NoKnownFault", seconds=20)


@pytest.mark.parametrize("version", ["", "PgBouncer 1.24.1"], ids=["as it is", "an old one"])
def test_a_newer_parameter_gets_to_a_pooler_that_knows_it_and_to_no_other(
    settled: Lane, tmp_path: Path, version: str
) -> None:
    def written() -> bool:
        files = settled.secret(settled.data, names.config_name("shop")) or {}
        return "\ntransaction_timeout = 600\n" in files[INI]

    settled.apply(pooler={"image": IMAGE, "parameters": {"transaction_timeout": 600, "stats_period": 7}})
    eventually(
        lambda: (
            settled.get("Deployment", "shop-pooler")["spec"]["template"]["spec"]["containers"][0]["image"]
            == IMAGE
        ),
        10,
    )
    running = parse(version or own_version())
    assert running is not None
    with pooler(settled, 1, tmp_path, version, WaitingVersioned) as pod:
        if running.release[:2] > OLDEST:
            settled.expect("ConfigApplied", "True", "Applied", seconds=20)
            assert written()
        else:
            message = settled.expect("ConfigApplied", "False", "ParameterWithheld", seconds=20)
            assert (
                f"transaction_timeout needs PgBouncer 1.25, and pod {pod.name} runs PgBouncer 1.24.1" in message
            )
            assert not written()
        eventually(lambda: not written_within(settled, 2), 30)
        assert "unknown" not in pod.log().lower(), pod.log()[-2000:]
        settled.apply(
            pooler={"image": "registry.example/pgbouncer:2", "parameters": {"transaction_timeout": 600}}
        )
        eventually(lambda: not written(), 10)
        settled.expect("ConfigApplied", "False", "ParameterWithheld", seconds=10)
