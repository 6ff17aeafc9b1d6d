"""The certificate of the admission webhook, made by the operator itself.

The operator stores only an authority's key, in a Secret in its own namespace. What the authority issues follows
from the key and the date (credentials/certificates.py), so that every replica has the same certificate and none
has to lead. The API server gets the authority from the webhook configuration's caBundle.
"""

from __future__ import annotations

import base64
import logging
from datetime import datetime
from typing import Any

from poolkeeper.credentials import certificates
from poolkeeper.credentials.certificates import Certificate
from poolkeeper.credentials.mint import authority_key
from poolkeeper.kube.client import Cluster, Conflict, Refused
from poolkeeper.names import GROUP, MANAGED_BY
from poolkeeper.observed.refs import Ref
from poolkeeper.settings import Settings, Webhook

log = logging.getLogger(__name__)

WEBHOOK = f"keepers.{GROUP}"
"""Name of the one webhook in the configuration."""
BUNDLE_MANAGER = "poolkeeper-webhook"
"""Field manager of the caBundle alone: the rest of the configuration is the chart's."""
_KEY = "authority.key"


async def current(cluster: Cluster, settings: Settings, webhook: Webhook, now: datetime) -> Certificate:
    """The certificate to serve now, once the caBundle trusts its authority. A settled system gets no write.

    Raises ClusterError's kinds: Refused if the webhook configuration or a usable key is missing.
    """
    configuration = await cluster.get(Ref("MutatingWebhookConfiguration", "", webhook.name))
    if configuration is None:
        raise Refused(
            "NotFound", f"MutatingWebhookConfiguration {webhook.name} does not exist; install the chart"
        )
    key = await _key(cluster, settings.namespace, configuration["metadata"])
    try:
        authority = certificates.authority(f"{webhook.name}.{settings.namespace}", key)
    except ValueError as error:
        raise Refused(
            "InvalidKey",
            f"Secret {settings.namespace}/{webhook.name} holds no key of an authority ({error}); delete it, "
            "and another one is made",
        ) from None
    await _tell(cluster, configuration, authority.certificate)
    return certificates.issue(authority, f"{webhook.name}.{settings.namespace}.svc", now)


async def _key(cluster: Cluster, namespace: str, configuration: dict[str, Any]) -> str:
    """The stored key; if there is none, a new one is stored first. Of two replicas, one wins."""
    ref = Ref("Secret", namespace, configuration["name"])
    secret = await cluster.get(ref)
    if secret is None:
        try:
            secret = await cluster.create(_secret(ref, configuration, authority_key()))
            log.info("%s: a new certificate authority for the admission of pods", ref)
        except Conflict:
            secret = await cluster.get(ref)
    data = (secret or {}).get("data") or {}
    return base64.b64decode(data.get(_KEY, "")).decode(errors="replace")


def _secret(ref: Ref, configuration: dict[str, Any], key: str) -> dict[str, Any]:
    """The key's Secret, which belongs to the webhook configuration and is deleted with it."""
    owner = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "name": configuration["name"],
        "uid": configuration["uid"],
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "namespace": ref.namespace,
            "name": ref.name,
            "labels": {MANAGED_BY: "poolkeeper", "app.kubernetes.io/name": "poolkeeper"},
            "ownerReferences": [owner],
        },
        "type": "Opaque",
        "data": {_KEY: base64.b64encode(key.encode()).decode()},
    }


async def _tell(cluster: Cluster, configuration: dict[str, Any], authority: str) -> None:
    bundle = base64.b64encode(authority.encode()).decode()
    told = [item["clientConfig"].get("caBundle") for item in configuration.get("webhooks") or ()]
    if told == [bundle]:
        return
    await cluster.apply(
        {
            "apiVersion": configuration["apiVersion"],
            "kind": configuration["kind"],
            "metadata": {"name": configuration["metadata"]["name"], "uid": configuration["metadata"]["uid"]},
            "webhooks": [{"name": WEBHOOK, "clientConfig": {"caBundle": bundle}}],
        },
        manager=BUNDLE_MANAGER,
    )
