"""Whether a keeper can resolve the poolers' name, as far as its pod says so. Pure.

https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/#pod-s-dns-policy
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from typing import Any

from poolkeeper.names import DATABASE_LABEL


def obstacle(spec: Mapping[str, Any], nameservers: Collection[str]) -> str | None:
    """Why a pod with this spec does not ask the cluster's DNS, and the remedy; None if it does.

    `nameservers` are those of the cluster, none if they are unknown. A link-local address is a cache on the
    node (NodeLocal DNSCache). A pod asks its other nameservers only if the first gives no answer.
    """
    policy = spec.get("dnsPolicy") or "ClusterFirst"
    if policy == "Default":
        return (
            "has dnsPolicy Default, so its keeper would ask the node's DNS, which does not know the poolers; "
            f"set dnsPolicy to ClusterFirst, or take the label {DATABASE_LABEL} off"
        )
    first = next(iter((spec.get("dnsConfig") or {}).get("nameservers") or ()), None)
    if policy == "None" and first not in nameservers and not _link_local(first):
        known = f", such as {next(iter(nameservers))}" if nameservers else ""
        return (
            "has dnsPolicy None, and its first nameserver is not the cluster's, so its keeper would not find "
            f"the poolers; put the cluster's DNS first in dnsConfig.nameservers{known}, or set dnsPolicy to "
            f"ClusterFirst, or take the label {DATABASE_LABEL} off"
        )
    return None


def _link_local(address: object) -> bool:
    try:
        return ipaddress.ip_address(str(address)).is_link_local
    except ValueError:
        return False
