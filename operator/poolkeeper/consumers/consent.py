"""Decides whether a PooledDatabase may write into a namespace; no other module does.

Both sides must agree. The PooledDatabase names or selects the namespace; the namespace accepts with the
annotation `poolkeeper.io/accept-from`, which the tenants of a namespace can't usually set. Within one
namespace no consent is needed. Kubernetes' own namespaces are always refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from poolkeeper.consumers import claims
from poolkeeper.names import ACCEPT_FROM_ANNOTATION
from poolkeeper.observed.namespaces import Namespace
from poolkeeper.settings import Settings
from poolkeeper.spec.parse import SYSTEM_NAMESPACES, ConsumerRule, PooledDatabase
from poolkeeper.spec.types import Terms


@dataclass(frozen=True, order=True)
class Consumer:
    """One consumer that both sides agreed on: its Secret's namespace and name."""

    namespace: str
    secret_name: str


@dataclass(frozen=True)
class Refusal:
    """A rule of spec.consumers that yields nothing for now, with the reason for the status."""

    namespace: str
    secret_name: str
    reason: str
    message: str


@dataclass(frozen=True)
class Consumers:
    """The outcome for every rule of spec.consumers, sorted and without duplicates."""

    granted: tuple[Consumer, ...]
    refused: tuple[Refusal, ...]
    terms: Mapping[Consumer, Terms] = field(default_factory=dict)
    """Of the granted consumers. If several rules grant one consumer, the first that names it counts, or else
    the first that selects it."""

    def has_sessions(self, consumer: Consumer) -> bool:
        """Whether the consumer has a session endpoint."""
        return self.terms.get(consumer, Terms()).session_connections > 0


def decide(owner: str, namespace: Namespace | None, name: str) -> tuple[str, str] | None:
    """None if a PooledDatabase in namespace `owner` may write into namespace `name`, else (reason, message).

    `namespace` is the target as observed; None if it does not exist.
    """
    if name in SYSTEM_NAMESPACES:
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


def consumers(database: PooledDatabase, namespaces: Mapping[str, Namespace], settings: Settings) -> Consumers:
    """Resolve spec.consumers against the namespaces that exist.

    A *named* namespace without consent is reported as a refusal; a *selected* one is just no
    consumer. A selector is refused where the operator may not read Namespaces, and a consumer whose Secrets
    would have names that are taken.
    """
    granted: dict[Consumer, Terms] = {}
    refused: dict[Consumer, Refusal] = {}
    for rule in sorted(database.consumers, key=lambda rule: rule.namespace is None):
        if rule.namespace is None and not settings.reads_namespaces:
            refused[Consumer("", rule.secret_name)] = Refusal("", rule.secret_name, *_UNREADABLE)
            continue
        for name in _candidates(rule, namespaces):
            consumer = Consumer(name, rule.secret_name)
            verdict = _out_of_scope(database, name, settings) or decide(
                database.namespace, namespaces.get(name), name
            )
            if verdict is None:
                granted.setdefault(consumer, rule.terms)
            elif rule.namespace is not None:
                refused[consumer] = Refusal(name, rule.secret_name, *verdict)
    by_name = ((item.namespace, item.secret_name) for item in granted)
    for place, message in claims.conflicts(database, by_name, settings).items():
        consumer = Consumer(*place)
        del granted[consumer]
        refused[consumer] = Refusal(*place, "Conflict", message)
    return Consumers(
        granted=tuple(sorted(granted)),
        refused=tuple(refused[consumer] for consumer in sorted(refused)),
        terms=granted,
    )


_UNREADABLE = (
    "NamespacesUnreadable",
    "this operator may not read Namespaces, so it knows neither their labels nor their consent; "
    "install the chart with namespaceSelectors=true",
)


def _out_of_scope(database: PooledDatabase, name: str, settings: Settings) -> tuple[str, str] | None:
    if not settings.watches(name):
        return (
            "NotWatched",
            f"namespace {name} is not watched by this operator; add it to the chart's watchNamespaces",
        )
    return None if settings.reads_namespaces or name == database.namespace else _UNREADABLE


def names_or_selects(database: PooledDatabase, name: str, seen: Iterable[Mapping[str, Namespace]]) -> bool:
    """Whether a rule of spec.consumers names a namespace, or selects it in one of the states seen."""
    return any(name in _candidates(rule, namespaces) for rule in database.consumers for namespaces in seen)


def _candidates(rule: ConsumerRule, namespaces: Mapping[str, Namespace]) -> list[str]:
    if rule.namespace is not None:
        return [rule.namespace]
    selector = rule.selector
    return [
        name for name, known in namespaces.items() if selector is not None and selector.matches(known.labels)
    ]
