"""For all tests: how long an example of a property takes says something of the machine, not of the code.

And the options of the conformance suite (tests/datapath), which have to be known before its folder is read.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from e2e import stages

settings.register_profile("poolkeeper", deadline=None)
settings.load_profile("poolkeeper")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption(
        "--pooler",
        metavar="PATH",
        help="run this PgBouncer instead of the shipped image: an archive of `docker save`, an unpacked file"
        " system, a pgbouncer program of this machine, or debian:SUITE for the suite's own package",
    )
    group.addoption(
        "--sanitize",
        action="store_true",
        help="run the shipped image's PgBouncer in a build with address and undefined sanitizers",
    )
    group.addoption(
        "--server-version",
        metavar="N",
        help="run PostgreSQL N instead of the image's: this machine's (/usr/lib/postgresql/N), else Debian's",
    )
    group.addoption(
        "--server-secrets",
        choices=("scram-sha-256", "md5"),
        default="scram-sha-256",
        help="how PostgreSQL keeps the passwords of its roles, and so how poolers log in to it",
    )
    group.addoption(
        "--setting",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another value of a PgBouncer setting, for poolers and keepers",
    )
    group.addoption("--results", metavar="FILE", help="write what each test came to into this file, as JSON")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the stages of `make test` before this one took."""
    if stages.NAME in os.environ:
        terminalreporter.write_line(f"stages before this one: {stages.summary()}")
