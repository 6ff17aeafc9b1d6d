"""How the pods of a cluster resolve names: the cluster's domain, and the names that a host stands for. Pure.

https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

DOMAIN = "cluster.local"
"""The domain of a cluster whose kubelets are given no other one."""
LONGEST_DOMAIN = 132
"""Characters that a host name of 253 leaves for it: a pooler's name has 52, a namespace's 63 (names.py)."""
_NDOTS = 5
"""From so many dots on, a pod tries a name as it is written before it appends the search domains."""
_LONGEST_NAME = 253
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def is_domain(text: str) -> bool:
    """Whether a cluster can have this domain: lower-case labels, without a final dot."""
    return len(text) <= LONGEST_DOMAIN and all(map(_LABEL.fullmatch, text.split(".")))


def is_address(host: str) -> bool:
    """Whether a host is an IP address, which needs no resolver."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Names:
    """The names that a host stands for, in the order in which they are `tried` until one exists.

    Each is complete (with a final dot), so that the resolver of every pod finds the same. An address has none;
    `localhost` is each pod's own. `namespace` is that of the pods.
    """

    tried: tuple[str, ...]
    domain: str = DOMAIN
    namespace: str = ""

    @classmethod
    def of(cls, host: str, namespace: str = "") -> Names:
        """The names of a host that is an address, or complete."""
        if is_address(host):
            return cls((), namespace=namespace)
        name = host if host.lower() == "localhost" else f"{host.rstrip('.')}."
        return cls((name,), namespace=namespace)

    def is_of_cluster(self, name: str) -> bool:
        """Whether the cluster's own DNS answers for one of the names."""
        return name.lower().endswith(f".{self.domain}.")


@dataclass(frozen=True)
class Dns:
    """The resolver of a pod with dnsPolicy ClusterFirst. `search` are the domains that nodes add to the
    cluster's own; `nameservers` are the addresses of the cluster's DNS, none if they are unknown."""

    domain: str = DOMAIN
    search: tuple[str, ...] = ()
    nameservers: tuple[str, ...] = ()

    def names(self, host: str, namespace: str) -> Names:
        """The names that a pod of `namespace` tries for `host`."""
        if is_address(host) or host.lower() == "localhost" or host.endswith("."):
            return Names.of(host, namespace)
        domains = (f"{namespace}.svc.{self.domain}", f"svc.{self.domain}", self.domain, *self.search)
        completed = [f"{host}.{domain}." for domain in domains]
        tried = [f"{host}.", *completed] if host.count(".") >= _NDOTS else [*completed, f"{host}."]
        fitting = tuple(name for name in tried if len(name) <= _LONGEST_NAME + 1)
        return Names(fitting, self.domain, namespace)

    def service(self, host: str, namespace: str) -> tuple[str, str] | None:
        """(namespace, name) of the Service that a host names to pods of `namespace`, if it may name one.

        Of two labels, the second is a namespace or a domain; if there is such a Service, it comes first at the
        poolers as well. A name below a Service (`pg-0.pg.data.svc`) is a pod's, which has its own address.
        """
        whole, short = host.lower(), ""
        for ending in (f".svc.{self.domain}.", f".svc.{self.domain}", ".svc"):
            if whole.endswith(ending):
                short = whole.removesuffix(ending)
                break
        labels = short.split(".")
        if len(labels) != 2:
            labels = whole.split(".")
            labels += [namespace] if len(labels) == 1 else []
        sound = len(labels) == 2 and all(map(_LABEL.fullmatch, labels))
        return (labels[1], labels[0]) if sound else None


def read(resolv_conf: str, namespace: str, domain: str = "") -> Dns:
    """The cluster's resolver, from the resolv.conf of a pod in `namespace`; `domain`, if given, is set by hand.

    Outside of a cluster the file says nothing about one. https://man7.org/linux/man-pages/man5/resolv.conf.5.html
    """
    search: tuple[str, ...] = ()
    servers: list[str] = []
    for keyword, *values in filter(None, map(str.split, resolv_conf.splitlines())):
        if keyword in ("search", "domain"):
            search = tuple(value.lower().rstrip(".") for value in values)
        elif keyword == "nameserver" and values:
            servers.append(values[0])
    own = f"{namespace}.svc."
    learnt = next((item.removeprefix(own) for item in search if item.startswith(own)), "")
    if not is_domain(learnt):
        return Dns(domain or DOMAIN)
    clusters = {f"{own}{learnt}", f"svc.{learnt}", learnt}
    nodes = tuple(item for item in search if item and item not in clusters)
    return Dns(domain or learnt, nodes, tuple(servers))
