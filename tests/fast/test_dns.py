"""What a host means: the same to the operator as to the pods of the PooledDatabase's namespace."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper import dns, names
from poolkeeper.dns import Dns, Names
from poolkeeper.spec.fields import HOST
from poolkeeper.spec.parse import SpecError
from poolkeeper.upstream import resolver

OWN = "poolkeeper"
"""The operator's namespace."""
CLUSTER = (
    f"search {OWN}.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
)
PLAIN, CORPORATE = Dns(), Dns("k8s.example.com", ("corp.example.com",))

LABELS = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
HOSTS = st.lists(LABELS, min_size=1, max_size=8).map(".".join)


@pytest.mark.parametrize(
    ("host", "tried"),
    [
        ("pg", "pg.data.svc.cluster.local. pg.svc.cluster.local. pg.cluster.local. pg."),
        (
            "pg.other",
            "pg.other.data.svc.cluster.local. pg.other.svc.cluster.local. pg.other.cluster.local. pg.other.",
        ),
        (
            "pg.other.svc",
            "pg.other.svc.data.svc.cluster.local. pg.other.svc.svc.cluster.local. pg.other.svc.cluster.local. "
            "pg.other.svc.",
        ),
        ("pg.other.svc.cluster.local.", "pg.other.svc.cluster.local."),
        ("pg.", "pg."),
        (
            "a.b.c.d.e.f",
            "a.b.c.d.e.f. a.b.c.d.e.f.data.svc.cluster.local. a.b.c.d.e.f.svc.cluster.local. "
            "a.b.c.d.e.f.cluster.local.",
        ),
        ("PG", "PG.data.svc.cluster.local. PG.svc.cluster.local. PG.cluster.local. PG."),
        ("localhost", "localhost"),
        ("10.1.2.3", ""),
        ("::1", ""),
        ("::ffff:10.1.2.3", ""),
    ],
)
def test_a_host_stands_for_what_a_pod_of_its_namespace_tries_f1(host: str, tried: str) -> None:
    assert PLAIN.names(host, "data").tried == tuple(tried.split())


def test_nodes_domains_come_after_the_clusters() -> None:
    assert CORPORATE.names("pg", "data").tried == (
        "pg.data.svc.k8s.example.com.",
        "pg.svc.k8s.example.com.",
        "pg.k8s.example.com.",
        "pg.corp.example.com.",
        "pg.",
    )


@given(host=HOSTS, namespace=LABELS)
def test_every_name_is_complete_and_none_is_of_the_operators_namespace(host: str, namespace: str) -> None:
    """So no search list, of whichever pod, changes what it means."""
    for own in (PLAIN, CORPORATE, dns.read(CLUSTER, OWN)):
        tried = own.names(host, namespace).tried
        assert all(name.endswith(".") and len(name) <= 254 for name in tried)
        if namespace != OWN:
            assert not any(name == f"{host}.{OWN}.svc.{own.domain}." for name in tried)


@pytest.mark.parametrize(
    ("host", "service"),
    [
        ("pg", ("data", "pg")),
        ("PG", ("data", "pg")),
        ("pg.other", ("other", "pg")),
        ("pg.other.svc", ("other", "pg")),
        ("pg.other.svc.k8s.example.com", ("other", "pg")),
        ("PG.other.svc.k8s.example.com.", ("other", "pg")),
        ("pg.svc", ("svc", "pg")),
        ("pg.other.svc.cluster.local", None),
        ("pg.other.svc.example.com", None),
        ("pg.", None),
        ("pg.other.", None),
        ("pg.other.svc.", None),
        ("pg-0.pg.other.svc", None),
        ("pg-0.pg.other.svc.k8s.example.com", None),
        ("db.abc.eu-central-1.rds.amazonaws.com", None),
        ("../secrets", None),
        ("_pg.data", None),
    ],
)
def test_the_service_that_a_host_names(host: str, service: tuple[str, str] | None) -> None:
    assert CORPORATE.service(host, "data") == service


@pytest.mark.parametrize(
    ("file", "by_hand", "expected"),
    [
        (CLUSTER, "", Dns("cluster.local", (), ("10.96.0.10",))),
        (
            "# written by kubelet\nnameserver 169.254.20.10\nnameserver fd00::a\n"
            f"search {OWN}.svc.k8s.Example.com. svc.k8s.example.com k8s.example.com corp.example.com\n",
            "",
            Dns("k8s.example.com", ("corp.example.com",), ("169.254.20.10", "fd00::a")),
        ),
        (CLUSTER, "k8s.example.com", Dns("k8s.example.com", (), ("10.96.0.10",))),
        ("nameserver 192.0.2.1\nsearch corp.example.com\n", "", Dns()),
        ("nameserver 192.0.2.1\nsearch corp.example.com\n", "k8s.example.com", Dns("k8s.example.com")),
        ("search data.svc.cluster.local\n", "", Dns()),
        (f"search {OWN}.svc.\nnameserver\n", "", Dns()),
        ("", "", Dns()),
    ],
    ids=[
        "kubelet's",
        "custom",
        "set by hand",
        "a node's",
        "a node's and set by hand",
        "another's",
        "odd",
        "none",
    ],
)
def test_the_clusters_domain_is_learnt_from_the_pods_own_file(file: str, by_hand: str, expected: Dns) -> None:
    assert dns.read(file, OWN, by_hand) == expected


@given(st.text("searchdomain.svc \n\tpoolkeeper#;:1", max_size=200))
def test_no_file_is_a_fault(file: str) -> None:
    assert dns.is_domain(dns.read(file, OWN).domain)


def test_the_longest_host_of_poolers_is_a_name() -> None:
    domain = ".".join(("d" * 44, "d" * 43, "d" * 43))
    assert dns.is_domain(domain)
    assert not dns.is_domain(f"{domain}d")
    assert len(names.pooler_host("n" * 63, "o" * 253, domain)) == 253


def musl(name: str, ndots: int, search: tuple[str, ...]) -> list[str]:
    """https://git.musl-libc.org/cgit/musl/tree/src/network/lookup_name.c, name_from_dns_search()"""
    return [name] if name.count(".") >= ndots else [*(f"{name}.{domain}" for domain in search), name]


def glibc(name: str, ndots: int, search: tuple[str, ...]) -> list[str]:
    """https://sourceware.org/git/?p=glibc.git;a=blob;f=resolv/res_query.c, __res_context_search()"""
    searched = [f"{name}.{domain}" for domain in search]
    return [name, *searched] if name.count(".") >= ndots else [*searched, name]


@pytest.mark.parametrize("libc", [musl, glibc])
@pytest.mark.parametrize("ndots", range(16))
@pytest.mark.parametrize(
    "search", [(), ("web.svc.cluster.local", "svc.cluster.local", "cluster.local"), ("corp",)]
)
def test_the_host_in_urls_resolves_with_any_resolver_and_any_ndots_f6(
    libc: Any, ndots: int, search: tuple[str, ...]
) -> None:
    exists = "shop-pooler.data.svc.cluster.local"
    assert exists in libc(names.pooler_host("data", "shop", "cluster.local"), ndots, search)


@pytest.mark.parametrize(
    "host",
    ["127.1", "127", "2130706433", "0x7f000001", "0177.0.0.1", "1.2.3", "1.2.3.4.", "256.0.0.1", "1.2.3.4.5",
     "1:2:3", "::1::", "1:2:3:4:5:6:7:8:9", "::ffff:300.1.1.1", "a..b", "a" * 64, f"pg.{'n' * 64}.svc", "[::1]",
     "[10.0.0.1]", "a,b", "a b", "pg:5432", "pg/shop", "fe80::1%eth0", ".pg", "-pg", "", "/run", "@pg", "*"],
)  # fmt: skip
def test_a_host_that_resolvers_read_differently_or_not_at_all_is_refused(host: str) -> None:
    with pytest.raises(SpecError) as refusal:
        HOST.check(host, "spec.upstream.host")
    assert refusal.value.field == "spec.upstream.host"
    assert refusal.value.remedy


@pytest.mark.parametrize(
    "host",
    ["pg", "pg.2024", "0pg", "pg.data.svc", "pg.data.svc.cluster.local.", "10.0.0.1", "::1", "2001:db8::a",
     "db_1.internal.", "::ffff:10.0.0.1", "a" * 63],
)  # fmt: skip
def test_a_host_of_every_kind_is_taken(host: str) -> None:
    assert HOST.check(host, "spec.upstream.host") == host


@given(st.text("0123456789abcdefx.:-_", min_size=1, max_size=24))
def test_a_host_that_is_taken_is_an_address_or_no_resolver_takes_it_for_one(host: str) -> None:
    try:
        HOST.check(host, "")
    except SpecError:
        return
    try:
        ipaddress.ip_address(host)
    except ValueError:
        with pytest.raises(OSError, match=r".*"):
            socket.inet_aton(host)


# Resolving


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | int]:
    """What the resolver answers, by name: addresses, or the number of an error. It knows no other name."""
    answers: dict[str, str | int] = {}

    def getaddrinfo(name: str, _: None, **__: object) -> list[Any]:
        found = answers.get(name, socket.EAI_NONAME)
        if isinstance(found, int):
            raise socket.gaierror(found, "no")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in found.split()]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return answers


HERE, THERE, THEIRS, PUBLIC = "10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.1"
ZONE = {
    "pg.data.svc.cluster.local.": HERE,
    "pg.poolkeeper.svc.cluster.local.": THERE,
    "pg.other.svc.cluster.local.": THEIRS,
    "db.example.com.": PUBLIC,
}


@pytest.mark.parametrize(
    ("host", "namespace", "address"),
    [
        ("pg", "data", HERE),
        ("pg", "other", THEIRS),
        ("pg", "poolkeeper", THERE),
        ("pg", "empty", None),
        ("pg.other", "data", THEIRS),
        ("pg.data", "other", HERE),
        ("pg.data.svc", "other", HERE),
        ("pg.data.svc.cluster.local", "other", HERE),
        ("pg.data.svc.cluster.local.", "other", HERE),
        ("pg.", "data", None),
        ("db.example.com", "data", PUBLIC),
        ("db.example.com.", "data", PUBLIC),
    ],
)
async def test_a_name_in_several_namespaces_is_that_of_the_pooleddatabases_own_f1(
    zone: dict[str, str | int], host: str, namespace: str, address: str | None
) -> None:
    zone |= ZONE
    found = PLAIN.names(host, namespace)
    if address is None:
        with pytest.raises(OSError, match="failed to resolve host"):
            await resolver.parameters(host, found, 2)
    else:
        assert await resolver.parameters(host, found, 2) == {"host": host, "hostaddr": address}


@pytest.mark.parametrize("error", [socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_SYSTEM, socket.EAI_MEMORY])
def test_a_silent_cluster_dns_does_not_lead_a_name_out_of_the_cluster(
    zone: dict[str, str | int], error: int
) -> None:
    zone |= {"pg.dev.svc.cluster.local.": error, "pg.dev.": PUBLIC}
    assert resolver.resolve(PLAIN.names("pg.dev", "data")) == ()
    zone["pg.dev.svc.cluster.local."] = socket.EAI_NONAME
    assert resolver.resolve(PLAIN.names("pg.dev", "data")) == (PUBLIC,)


def test_a_broken_domain_of_the_nodes_hides_no_name(zone: dict[str, str | int]) -> None:
    zone |= {"db.example.com.corp.example.com.": socket.EAI_AGAIN, "db.example.com.": PUBLIC}
    assert resolver.resolve(CORPORATE.names("db.example.com", "data")) == (PUBLIC,)


async def test_every_address_of_a_name_is_tried_and_the_name_as_written_is_verified(
    zone: dict[str, str | int],
) -> None:
    zone["pg.data.svc.cluster.local."] = f"{HERE} {THERE} {HERE}"
    found: Mapping[str, str] = await resolver.parameters("pg", PLAIN.names("pg", "data"), 2)
    assert found == {"host": "pg,pg", "hostaddr": f"{HERE},{THERE}"}


async def test_a_host_with_a_slow_dns_occupies_one_thread_and_delays_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, answered = [], threading.Event()

    def slow(names: Names) -> tuple[str, ...]:
        if names == Names.of("slow.example.com"):
            began.append(names)
            answered.wait(10)
        return (PUBLIC,)

    monkeypatch.setattr(resolver, "resolve", slow)
    try:
        for _ in range(2 * resolver.LOOKUPS):
            with pytest.raises(OSError, match=r"failed to resolve host 'slow.example.com': no answer within"):
                await resolver.parameters("slow.example.com", None, 0.001)
        assert len(began) == 1
        assert (await resolver.parameters("db.example.com", None, 2))["hostaddr"] == PUBLIC
    finally:
        answered.set()
    assert (await resolver.parameters("slow.example.com", None, 2))["hostaddr"] == PUBLIC


async def test_a_namespace_whose_names_are_slow_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack 11: eight hosts whose DNS takes 20 s."""
    answered = threading.Event()

    def slow(names: Names) -> tuple[str, ...]:
        if names.namespace == "evil":
            answered.wait(10)
        return (PUBLIC,)

    monkeypatch.setattr(resolver, "resolve", slow)
    before = threading.active_count()
    try:
        for number in range(50):
            host = f"x{number}.example.com"
            with pytest.raises(OSError, match="no answer within"):
                await resolver.parameters(host, PLAIN.names(host, "evil"), 0.001)
        assert threading.active_count() <= before + resolver.LOOKUPS
        for host in ("db.example.com", "x1.example.com", "db.example.com."):
            assert (await resolver.parameters(host, PLAIN.names(host, "good"), 2))["hostaddr"] == PUBLIC
    finally:
        answered.set()
    assert (await resolver.parameters("y.example.com", PLAIN.names("y.example.com", "evil"), 2))["hostaddr"]
    deadline = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < deadline, "threads without work stay"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("host", ["10.1.2.3", "::1"])
async def test_an_address_is_not_looked_up(zone: dict[str, str | int], host: str) -> None:
    assert await resolver.parameters(host, PLAIN.names(host, "data"), 2) == {"host": host}
    assert await resolver.parameters(host, None, 2) == {"host": host}


async def test_without_a_namespace_a_host_is_complete(zone: dict[str, str | int]) -> None:
    """A caller that forgets the namespace reaches no Service of the operator's."""
    zone |= {**ZONE, "pg": THERE}
    with pytest.raises(OSError, match=re.escape("failed to resolve host 'pg': tried pg")):
        await resolver.parameters("pg", None, 2)


def test_a_name_that_makes_no_sense_to_the_resolver_is_unknown() -> None:
    assert resolver.resolve(Names(("a..b",))) == ()
    assert resolver.resolve(Names(("x" * 64 + ".",))) == ()
