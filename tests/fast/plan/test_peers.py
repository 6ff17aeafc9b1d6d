"""peer_ids: unique, kept, and given to whoever can be reached."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from poolkeeper.observed.poolers import Pod
from poolkeeper.plan import peers
from tests.fast.worlds import Simulation, ready_pod

POD = st.builds(
    lambda number, ip, peer: Pod(f"pod-{number}", f"uid-{number}", ip, True, False, 0, "", "", peer=peer),
    st.integers(1, 30),
    st.sampled_from(["", "10.0.0.1"]),
    st.none() | st.integers(1, 5),
)


@given(st.lists(POD, unique_by=lambda pod: pod.uid))
def test_every_pod_with_an_address_gets_one_of_its_own_and_keeps_it(pods: list[Pod]) -> None:
    assigned = peers.assign(pods)
    assert set(assigned) == {pod.uid for pod in pods if pod.ip}
    assert len(set(assigned.values())) == len(assigned)
    for peer in {pod.peer for pod in pods if pod.ip and pod.peer}:
        holders = [pod.uid for pod in pods if pod.ip and pod.peer == peer]
        assert sum(assigned[uid] == peer for uid in holders) == 1
    again = [replace(pod, peer=assigned.get(pod.uid, pod.peer)) for pod in pods]
    assert peers.assign(again) == assigned


def test_lines_are_read_back_and_anything_else_is_no_peer_id() -> None:
    for peer in (1, 77, peers.LARGEST):
        assert peers.parse(peers.lines(peer, None)) == (peer, False)
        assert peers.parse(peers.lines(peer, "/etc/poolkeeper/caps-0-1.ini")) == (peer, True)
    for text in (
        "",
        "peer_id = 0",
        "peer_id = 16384",
        "peer_id = 1\nadmin_users = me",
        "peer_id = 1\n%include /a b\n",
        "peer_id = 1\n%include /a\nadmin_users = me",
        "7",
    ):
        assert peers.parse(text) == (None, False)


def test_the_line_of_the_table_is_whole() -> None:
    """PgBouncer goes on in the file that includes it right behind it."""
    assert peers.lines(3, "/t.ini") == "peer_id = 3\n%include /t.ini\n"
    assert peers.lines(3, None) == "peer_id = 3"


def test_pods_are_numbered_before_they_are_asked_to_show_their_number() -> None:
    cluster = Simulation(pods=(ready_pod(1), ready_pod(2)))
    cluster.settle()
    numbered = [index for index, line in enumerate(cluster.log) if line.startswith("lines ")]
    reloaded = [index for index, line in enumerate(cluster.log) if line.startswith("reload ")]
    assert [cluster.log[index] for index in numbered[:2]] == ["lines shop-pooler-1 1", "lines shop-pooler-2 2"]
    assert numbered[1] < min(reloaded)
    ini = cluster.values("data", "shop-pooler-config")["pgbouncer.ini"]
    assert ini.endswith("[peers]\n1 = host=10.0.0.1 port=6432\n2 = host=10.0.0.2 port=6432\n")


def test_a_terminating_pod_stays_a_peer_and_is_numbered_no_more() -> None:
    cluster = Simulation(pods=(ready_pod(1), ready_pod(2)))
    cluster.settle()
    cluster.pods = (replace(cluster.pods[0], terminating=True), cluster.pods[1], ready_pod(3))
    cluster.settle()
    ini = cluster.values("data", "shop-pooler-config")["pgbouncer.ini"]
    assert [line for line in ini.splitlines() if line.startswith(("1 = ", "2 = ", "3 = "))] == [
        f"{number} = host=10.0.0.{number} port=6432" for number in (1, 2, 3)
    ]
