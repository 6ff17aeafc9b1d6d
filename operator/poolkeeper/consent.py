"""Whether a PooledDatabase may write into a namespace: the one place that decides.

Two sides must agree. The PooledDatabase names or selects the namespace; the namespace accepts with the
annotation `poolkeeper.io/accept-from`, which the tenants of a namespace can't usually set. Within one
namespace no consent is needed. Kubernetes' own namespaces are always refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from poolkeeper.api import ConsumerRule, PooledDatabase
from poolkeeper.names import ACCEPT_FROM_ANNOTATION
from poolkeeper.world import Namespace

REFUSED_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease"})


@dataclass(frozen=True, order=True)
class Consumer:
    """One consumer that both sides agreed on: its Secret's namespace and name."""

    namespace: str
    secret_name: str


@dataclass(frozen=True)
class Refusal:
    """A named consumer that gets nothing for now, with the reason for the status."""

    namespace: str
    secret_name: str
    reason: str
    message: str


@dataclass(frozen=True)
class Consumers:
    """The outcome for every rule of spec.consumers, sorted and without duplicates."""

    granted: tuple[Consumer, ...]
    refused: tuple[Refusal, ...]


def decide(owner: str, namespace: Namespace | None, name: str) -> tuple[str, str] | None:
    """None if a PooledDatabase in namespace `owner` may write into namespace `name`, else (reason, message).

    `namespace` is what is known of the target; None if it does not exist.
    """
    if name in REFUSED_NAMESPACES:
        return "NotAllowed", f"namespace {name} belongs to Kubernetes itself and never gets Secrets"
    if namespace is None:
        return "NamespaceMissing", f"namespace {name} does not exist; create it, the Secrets follow"
    if namespace.terminating:
        return "NamespaceTerminating", f"namespace {name} is being deleted"
    accepted = {item.strip() for item in namespace.accept_from.split(",")}
    if name == owner or "*" in accepted or owner in accepted:
        return None
    return "NoConsent", (
        f"namespace {name} does not accept from {owner}; "
        f"annotate it: kubectl annotate namespace {name} {ACCEPT_FROM_ANNOTATION}={owner}"
    )


def consumers(
    database: PooledDatabase, namespaces: Mapping[str, Namespace], in_scope: Iterable[str] | None = None
) -> Consumers:
    """Resolve spec.consumers against the namespaces that exist.

    `in_scope` are the namespaces that the operator watches, None for all. A *named* namespace without
    consent is a refusal to report; a *selected* one is just no consumer.
    """
    scope = None if in_scope is None else frozenset(in_scope)
    granted: set[Consumer] = set()
    refused: dict[Consumer, Refusal] = {}
    for rule in database.consumers:
        for name in _candidates(rule, namespaces):
            consumer = Consumer(name, rule.secret_name)
            if scope is not None and name not in scope:
                verdict: tuple[str, str] | None = (
                    "NotWatched",
                    f"namespace {name} is not watched by this operator; add it to the chart's watchNamespaces",
                )
            else:
                verdict = decide(database.namespace, namespaces.get(name), name)
            if verdict is None:
                granted.add(consumer)
            elif rule.namespace is not None:
                refused[consumer] = Refusal(name, rule.secret_name, *verdict)
    return Consumers(
        granted=tuple(sorted(granted)),
        refused=tuple(refused[consumer] for consumer in sorted(refused)),
    )


def _candidates(rule: ConsumerRule, namespaces: Mapping[str, Namespace]) -> list[str]:
    if rule.namespace is not None:
        return [rule.namespace]
    selector = rule.selector
    return [
        name for name, known in namespaces.items() if selector is not None and selector.matches(known.labels)
    ]
