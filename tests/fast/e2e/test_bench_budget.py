"""The arithmetic of the benchmark of the budget."""

from __future__ import annotations

import pytest

from e2e.bench.budget import OURS, STOCK, Request, recap, throughput, unused
from e2e.bench.by_hand import configuration
from e2e.bench.figures import Figure
from e2e.bench.ratios import transactions_per_second
from e2e.cluster.shell import ClusterError
from tests.e2e.connections import Backend, Limits, Link, Record, Sample, Table, judge

POD = "10.0.0.1"
REPORT = """transaction type: <builtin: select only>
number of failed transactions: 0 (0.000%)
tps = 16233.441903 (without initial connection time)
"""


def values(figures: list[Figure]) -> dict[str, float]:
    return {figure.name: figure.value for figure in figures}


def test_a_scale_request_is_done_when_the_last_console_has_its_last_caps() -> None:
    tables = [Table(at, POD, {}) for at in (100.4, 101.9, 111.0, 122.1, 132.0)]
    requests = [
        Request(10, 100, ready=101.5, until=105),
        Request(9, 110, ready=110.1, until=115),
        Request(10, 120, ready=122.5, until=125),
    ]
    found = values(recap(requests, tables))
    assert found["recap_p50_s"] == pytest.approx(1.9)
    assert found["recap_max_s"] == pytest.approx(2.1)
    assert found["recap_up_p50_s"] == pytest.approx(2.0)
    assert found["recap_down_p50_s"] == 1.0
    assert found["recap_ready_p50_s"] == pytest.approx(1.9)
    assert found["recap_requests"] == 3


def sample(at: float, held: int, busy: int, others: int) -> Sample:
    backends = [Backend(pid, 0, "shop", False, POD, pid, "") for pid in range(1, held + 1)]
    foreign = [Backend(1000 + pid, 0, "somebody", False, "", pid, "") for pid in range(others)]
    links = tuple(Link(pid, pid, "active" if pid <= busy else "idle") for pid in range(1, held + 1))
    return Sample(at, (*backends, *foreign), {POD: links})


def test_unused_is_what_serves_no_client_of_what_others_leave_in_steady_load() -> None:
    samples = (
        sample(11.0, 4, 4, 2),  # the load has only just begun
        sample(13.0, 90, 88, 2),
        sample(14.0, 90, 90, 2),
        sample(15.0, 90, 86, 2),
        sample(18.5, 90, 0, 2),  # it is about to end
        sample(25.0, 90, 0, 2),
    )
    record = Record(((0.0, Limits(100, 3, 0)),), samples, ())
    verdict = judge(record, {"shop"}, reserve=5)
    found = values(unused(verdict, record, (9.5, 20.0)))
    assert found["unused_ratio"] == pytest.approx(1 - 88 / 90)
    assert found["unheld_ratio"] == 0
    assert found["unused_samples"] == 3
    with pytest.raises(ClusterError, match="no sample"):
        unused(verdict, record, (30.0, 40.0))


def test_throughput_is_compared_round_by_round() -> None:
    one = {OURS: [90.0, 99.0], STOCK: [100.0, 100.0]}
    found = values(throughput({OURS: [95.0, 50.0, 110.0], STOCK: [100.0, 40.0, 100.0]}, one))
    assert found["throughput_ratio"] == 1.1
    assert found["throughput_ratio_least"] == 0.95
    assert found["throughput_stock_tps"] == 100
    assert found["throughput_one_ratio"] == pytest.approx(0.945)
    assert found["throughput_one_ratio_least"] == 0.9


def test_a_report_of_pgbench_counts_only_if_nothing_failed() -> None:
    assert transactions_per_second(REPORT) == pytest.approx(16233.441903)
    for said in ("", REPORT.replace("failed transactions: 0", "failed transactions: 3")):
        with pytest.raises(ClusterError, match="pgbench"):
            transactions_per_second(said)


def test_what_is_set_up_by_hand_gets_as_many_connections_as_it_is_told() -> None:
    assert "default_pool_size" not in configuration("shop", "host=pg", "/etc/pgbouncer")
    assert "\ndefault_pool_size = 90\n" in configuration("shop", "host=pg", "/etc/pgbouncer", pool_size=90)
