"""The operator's own settings, read once from its environment."""

from __future__ import annotations

import re
import ssl
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
    tls.crt and tls.key if they are provided from outside; without it the operator makes its own certificate.
    With `client_authority` (PEM) only a client that shows a certificate of it with the common name
    `client_name` gets an answer: the API server."""

    name: str
    port: int = 9443
    certificate_directory: str = ""
    client_authority: str = ""
    client_name: str = ""


@dataclass(frozen=True)
class Settings:
    """What the chart configures.

    An empty `watch_namespaces` means all. `reads_namespaces` says whether the operator may read Namespaces: if
    it may not, namespace selectors and consent across namespaces can't be decided and are refused. Without
    `webhook` no pod gets a keeper. With `assigned_users` poolers and keepers name no user: the cluster assigns
    one from their namespace's range, as OpenShift's restricted-v2 demands.
    """

    namespace: str
    identity: str
    lease: str = "poolkeeper"
    watch_namespaces: tuple[str, ...] = ()
    reads_namespaces: bool = True
    assigned_users: bool = False
    pooler_image: str = "poolkeeper/pgbouncer:1.24.1-poolkeeper.4"
    pooler_image_pull_policy: str = "IfNotPresent"
    keeper_image: str = "poolkeeper/pgbouncer:1.24.1-poolkeeper.4"
    keeper_image_pull_policy: str = "IfNotPresent"
    keeper_allowed_images: tuple[str, ...] = ()
    """Images that a PooledDatabase may choose for keepers in other namespaces; a `*` at the end stands for any
    end."""
    keeper_max_cpu: str = "1"
    keeper_max_memory: str = "256Mi"
    """The most that it may choose of these for keepers in other namespaces, as Kubernetes' quantities."""
    log_level: str = "INFO"
    health_port: int = 8080
    health_address: str = "0.0.0.0"  # noqa: S104
    """Every address of the family by which kubelet reaches the pod."""
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

    def amount(name: str, default: str) -> str:
        value = text(name, default)
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?(m|k|[KMGT]i?)?", value):
            raise SettingsError(f"POOLKEEPER_{name} is {value!r}; set it to an amount such as 500m or 256Mi")
        return value

    def listed(name: str) -> tuple[str, ...]:
        items = environment.get(f"POOLKEEPER_{name}", "").split(",")
        return tuple(sorted({item.strip() for item in items if item.strip()}))

    webhook = environment.get("POOLKEEPER_WEBHOOK", "").strip()
    certificates = environment.get("POOLKEEPER_WEBHOOK_CERTIFICATES", "").strip()
    webhook_port = port("WEBHOOK_PORT", "9443")
    client_authority, client_name = text("WEBHOOK_CLIENT_CA", ""), text("WEBHOOK_CLIENT_NAME", "")
    if client_authority:
        _check_client(client_authority, client_name)
    return Settings(
        namespace=text("NAMESPACE"),
        identity=text("POD"),
        lease=text("LEASE", "poolkeeper"),
        watch_namespaces=listed("WATCH_NAMESPACES"),
        reads_namespaces=boolean("NAMESPACE_SELECTORS", "true"),
        assigned_users=boolean("ASSIGNED_USERS", "false"),
        pooler_image=text("POOLER_IMAGE", Settings.pooler_image),
        pooler_image_pull_policy=text("POOLER_IMAGE_PULL_POLICY", "IfNotPresent"),
        keeper_image=text("KEEPER_IMAGE", text("POOLER_IMAGE", Settings.keeper_image)),
        keeper_image_pull_policy=text(
            "KEEPER_IMAGE_PULL_POLICY", text("POOLER_IMAGE_PULL_POLICY", "IfNotPresent")
        ),
        keeper_allowed_images=listed("KEEPER_ALLOWED_IMAGES"),
        keeper_max_cpu=amount("KEEPER_MAX_CPU", Settings.keeper_max_cpu),
        keeper_max_memory=amount("KEEPER_MAX_MEMORY", Settings.keeper_max_memory),
        log_level=text("LOG_LEVEL", "INFO").upper(),
        health_port=port("HEALTH_PORT", "8080"),
        health_address="::" if ":" in text("POD_IP", "") else Settings.health_address,
        webhook=Webhook(webhook, webhook_port, certificates, client_authority, client_name)
        if webhook
        else None,
        dns=dns.read(resolv_conf, text("NAMESPACE"), domain),
    )


def _check_client(authority: str, name: str) -> None:
    if not name:
        raise SettingsError(
            "POOLKEEPER_WEBHOOK_CLIENT_NAME is not set; set it to the common name of the API server's client "
            "certificate, since an authority may sign those of other clients too"
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=authority)
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError(
            f"POOLKEEPER_WEBHOOK_CLIENT_CA holds no certificate ({error}); set it to the authority of the API "
            "server's client certificate, as PEM"
        ) from None
