"""What may happen to a pooled database while apps use it: the planned events, each a function of a place.

Each returns once the event is over: the old pods are gone, the new ones serve, the change is in force.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from e2e import install, kube
from e2e.install import NAMESPACE, RELEASE
from e2e.kube import kubectl
from tests.e2e import postgres
from tests.e2e.kit import Place, setting, wait_until

SETTLES_SECONDS = 180.0
HOT_PARAMETERS: dict[str, int | str] = {
    "max_client_conn": 2000,
    "max_user_client_connections": 1600,
    "max_prepared_statements": 150,
    "query_wait_timeout": 60,
    "query_timeout": 600,
    "idle_transaction_timeout": 600,
    "client_idle_timeout": 86400,
    "client_login_timeout": 30,
    "cancel_wait_timeout": 20,
    "server_lifetime": 1800,
    "server_idle_timeout": 300,
    "server_connect_timeout": 3,
    "server_login_retry": 2,
    "server_check_delay": 20,
    "server_check_query": "SELECT 1",
    "server_reset_query": "DISCARD ALL",
    "server_reset_query_always": 0,
    "server_round_robin": 1,
    "server_fast_close": 1,
    "application_name_add_host": 1,
    "dns_max_ttl": 20,
    "dns_nxdomain_ttl": 10,
    "dns_zone_check_period": 5,
    "server_tls_protocols": "tlsv1.3",
    "server_tls_ciphers": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "tcp_keepalive": 1,
    "tcp_keepidle": 60,
    "tcp_keepintvl": 10,
    "tcp_keepcnt": 3,
    "tcp_user_timeout": 30000,
    "tcp_socket_buffer": 65536,
    "tcp_defer_accept": 0,
    "sbuf_loopcnt": 10,
    "max_packet_size": 16777216,
    "log_connections": 1,
    "log_disconnections": 1,
    "log_pooler_errors": 0,
    "log_stats": 0,
    "stats_period": 30,
}
"""A value for every parameter of the operator's own image that needs no restart. None of them may end what a
well-behaved app does."""
PAUSE_SECONDS = 5.0
_AT_ONCE = 10
_RETIREMENT_SECONDS = 1.0
_LOGIN_RETRY_SECONDS = 1.0


def roll_poolers(place: Place) -> None:
    """Every pooler pod is replaced, as with a new image."""
    before = place.identities()
    place.patch({"pooler": {"podAnnotations": {"example.com/rolled": secrets.token_hex(4)}}})
    wait_until(lambda: not before.keys() & place.identities().keys(), SETTLES_SECONDS, "the old pods to go")
    place.wait_settled(SETTLES_SECONDS)


def scale_up_and_down(place: Place) -> None:
    """2 poolers, 5, 1, and 2 again."""
    for replicas in (5, 1, 2):
        kubectl("-n", place.data, "scale", "pooldb/shop", f"--replicas={replicas}")
        place.wait_settled(SETTLES_SECONDS)


def change_hot_parameters(place: Place) -> None:
    """All of them, several with each change, and back to the defaults at once."""
    before = place.identities()
    names = list(HOT_PARAMETERS)
    for first in range(0, len(names), _AT_ONCE):
        change = {name: HOT_PARAMETERS[name] for name in names[first : first + _AT_ONCE]}
        place.patch({"pooler": {"parameters": change}})
        place.wait_settled(SETTLES_SECONDS)
    place.patch({"pooler": {"parameters": dict.fromkeys(names)}})
    place.wait_settled(SETTLES_SECONDS)
    assert place.identities() == before, "a parameter that needs no restart has replaced pods"


def delete_single_poolers(place: Place) -> None:
    """One after the other, each when there are as many as before."""
    for victim in place.identities():
        kubectl("-n", place.data, "delete", "pod", victim, "--wait=false")
        wait_until(partial(_gone, place, victim), SETTLES_SECONDS, "the pod to go")
        place.wait_settled(SETTLES_SECONDS)


def kill_operator_in_mid_rollout(place: Place) -> None:
    """Every operator pod is killed while the first pooler pod is ending; their successors do the rest."""
    before = place.identities()
    place.patch({"pooler": {"podAnnotations": {"example.com/rolled": secrets.token_hex(4)}}})
    wait_until(lambda: _ending(place), SETTLES_SECONDS, "a pooler pod to be ending")
    kill_operator()
    wait_until(lambda: not before.keys() & place.identities().keys(), SETTLES_SECONDS, "the old pods to go")
    install.wait_for_rollout()
    place.wait_settled(SETTLES_SECONDS)


def kill_operator() -> None:
    """Every pod of it, at once."""
    kubectl("-n", NAMESPACE, "delete", "pod", *operator_pods(), "--force", "--grace-period=0")


def upgrade_operator(place: Place) -> None:
    """The operator's pods are replaced, as with a new chart; the poolers stay."""
    before, operators = place.identities(), operator_pods()
    kubectl("-n", NAMESPACE, "rollout", "restart", f"deployment/{RELEASE}")
    install.wait_for_rollout()
    wait_until(lambda: not set(operators) & set(operator_pods()), 60, "the old operator pods to go")
    place.wait_settled(SETTLES_SECONDS)
    assert place.identities() == before, "an upgrade of the operator has replaced poolers"


def rotate_upstream_password(place: Place) -> None:
    """A new password of the same upstream user, in the database first; then every pooler logs in with it."""
    password = secrets.token_urlsafe(16)
    place.server.set_password(place.role, password)
    place.write_owner(password)
    given = partial(logs_in_with, place, password)
    wait_until(given, SETTLES_SECONDS, "every pooler to have the new password")
    retire_upstream_connections(place)


def pause_and_resume(place: Place) -> None:
    """Transactions wait for 5 s."""
    with _paused(place):
        time.sleep(PAUSE_SECONDS)


def restart_database(place: Place) -> None:
    """PostgreSQL is stopped and started again while transactions wait."""
    with _paused(place):
        postgres.restart(place.server.host.split(".")[1])


@contextmanager
def _paused(place: Place) -> Iterator[None]:
    """A planned pause, seen to be in force; afterwards nothing is left of it."""
    place.patch({"paused": True})
    try:
        place.wait_condition("Paused", "True", "Paused", within=SETTLES_SECONDS)
        with place.consoles() as consoles:
            for console in consoles:
                rows = console.execute("SHOW DATABASES")
                held = [row for row in rows if row["pool_mode"] == "transaction" and row["name"] != "pgbouncer"]
                assert held, f"{console.name} has no transaction entry"
                assert {(row["paused"], row["current_connections"]) for row in held} == {("1", "0")}
        yield
    finally:
        place.patch({"paused": False})
    place.wait_settled(SETTLES_SECONDS)


def retire_upstream_connections(place: Place) -> None:
    """Have every pooler log in anew, connection by connection. RECONNECT would break off logins that go on.

    A login that went wrong before, between two halves of a change, is tried anew after server_login_retry, 1 s.
    Until then a pool without any connection turns clients away, and this leaves it without: so it waits first.
    """
    time.sleep(2 * _LOGIN_RETRY_SECONDS)
    with place.consoles() as consoles:
        before = {console.name: setting(console, "server_lifetime") for console in consoles}
        for console in consoles:
            console.execute("SET server_lifetime = 0")
        time.sleep(_RETIREMENT_SECONDS)
        for console in consoles:
            console.execute(f"SET server_lifetime = '{before[console.name]}'")


EVENTS: dict[str, Callable[[Place], None]] = {
    "rollout": roll_poolers,
    "scale 2-5-1-2": scale_up_and_down,
    "hot parameters": change_hot_parameters,
    "pod deletion": delete_single_poolers,
    "operator killed in a rollout": kill_operator_in_mid_rollout,
    "operator upgrade": upgrade_operator,
    "upstream password": rotate_upstream_password,
    "pause of 5 s": pause_and_resume,
    "database restart in a pause": restart_database,
}


def operator_pods() -> list[str]:
    selector = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=operator"
    pods = kube.items("pods", NAMESPACE, selector)
    return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def _ending(place: Place) -> bool:
    return any("deletionTimestamp" in pod["metadata"] for pod in place.pods())


def logs_in_with(place: Place, password: str) -> bool:
    """Whether every console shows the files of a configuration with this password, which the server took."""
    config = place.secret("shop-pooler-config", place.data)
    logins = place.secret("shop-pooler-logins", place.data)
    tables = [text for name, text in config.items() if name.startswith("caps-")]
    written = bool(tables) and all(password in text for text in tables)
    if json.loads(logins["upstream"])["password"] != password or not written:
        return False
    with place.consoles() as consoles:
        shown = [f"auth_file = {setting(console, 'auth_file')}\n" for console in consoles]
    return all(line in config["pgbouncer.ini"] for line in shown)


def _gone(place: Place, pod: str) -> bool:
    return pod not in place.identities()
