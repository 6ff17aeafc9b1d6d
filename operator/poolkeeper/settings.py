"""The operator's own settings, read once from its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from poolkeeper import dns
from poolkeeper.dns import Dns


class SettingsError(Exception):
    """An environment variable is missing or invalid; the text names it and the remedy."""


@dataclass(frozen=True)
class Webhook:
    """The admission webhook for app pods. `name` is the name of the Service in the operator's namespace,
    through which the API server calls, and of the MutatingWebhookConfiguration. `certificate_directory` holds
    tls.crt and tls.key if they are provided from outside; without it the operator makes its own certificate."""

    name: str
    port: int = 9443
    certificate_directory: str = ""


@dataclass(frozen=True)
class Settings:
    """What the chart configures.

    An empty `watch_namespaces` means all. `reads_namespaces` says whether the operator may read Namespaces: if
    it may not, namespace selectors and consent across namespaces can't be decided and are refused. Without
    `webhook` no pod gets a keeper.
    """

    namespace: str
    identity: str
    lease: str = "poolkeeper"
    watch_namespaces: tuple[str, ...] = ()
    reads_namespaces: bool = True
    pooler_image: str = "poolkeeper/pgbouncer:1.24.1-poolkeeper.3"
    pooler_image_pull_policy: str = "IfNotPresent"
    keeper_image: str = "poolkeeper/pgbouncer:1.24.1-poolkeeper.3"
    keeper_image_pull_policy: str = "IfNotPresent"
    log_level: str = "INFO"
    health_port: int = 8080
    webhook: Webhook | None = None
    dns: Dns = field(default_factory=Dns)

    def watches(self, namespace: str) -> bool:
        """Whether objects of this namespace are in the operator's scope."""
        return not self.watch_namespaces or namespace in self.watch_namespaces


def from_environment(environment: Mapping[str, str], resolv_conf: str = "") -> Settings:
    """Read POOLKEEPER_* variables, and the cluster's domain from the pod's own resolv.conf. Raises
    SettingsError."""

    def text(name: str, default: str | None = None) -> str:
        value = environment.get(f"POOLKEEPER_{name}", "").strip() or default
        if value is None:
            raise SettingsError(f"POOLKEEPER_{name} is not set; the Helm chart sets it from the downward API")
        return value

    def boolean(name: str, default: str) -> bool:
        value = text(name, default).lower()
        if value not in ("true", "false"):
            raise SettingsError(f"POOLKEEPER_{name} is {value!r}; set it to true or false")
        return value == "true"

    def port(name: str, default: str) -> int:
        value = text(name, default)
        if not value.isdecimal() or not 1 <= int(value) <= 65535:
            raise SettingsError(f"POOLKEEPER_{name} is {value!r}; set it to a port number from 1 to 65535")
        return int(value)

    domain = environment.get("POOLKEEPER_CLUSTER_DOMAIN", "").strip()
    if domain and not dns.is_domain(domain):
        raise SettingsError(
            f"POOLKEEPER_CLUSTER_DOMAIN is {domain!r}; set it to the kubelets' clusterDomain, such "
            f"as {dns.DOMAIN}: at most {dns.LONGEST_DOMAIN} lower-case letters, digits, '-' and '.', without a "
            "final dot"
        )
    webhook = environment.get("POOLKEEPER_WEBHOOK", "").strip()
    certificates = environment.get("POOLKEEPER_WEBHOOK_CERTIFICATES", "").strip()
    webhook_port = port("WEBHOOK_PORT", "9443")
    watched = environment.get("POOLKEEPER_WATCH_NAMESPACES", "")
    return Settings(
        namespace=text("NAMESPACE"),
        identity=text("POD"),
        lease=text("LEASE", "poolkeeper"),
        watch_namespaces=tuple(sorted({item.strip() for item in watched.split(",") if item.strip()})),
        reads_namespaces=boolean("NAMESPACE_SELECTORS", "true"),
        pooler_image=text("POOLER_IMAGE", Settings.pooler_image),
        pooler_image_pull_policy=text("POOLER_IMAGE_PULL_POLICY", "IfNotPresent"),
        keeper_image=text("KEEPER_IMAGE", text("POOLER_IMAGE", Settings.keeper_image)),
        keeper_image_pull_policy=text(
            "KEEPER_IMAGE_PULL_POLICY", text("POOLER_IMAGE_PULL_POLICY", "IfNotPresent")
        ),
        log_level=text("LOG_LEVEL", "INFO").upper(),
        health_port=port("HEALTH_PORT", "8080"),
        webhook=Webhook(webhook, webhook_port, certificates) if webhook else None,
        dns=dns.read(resolv_conf, text("NAMESPACE"), domain),
    )
