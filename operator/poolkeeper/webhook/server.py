"""The HTTPS server that the API server asks about app pods (review.py), and the renewal of its certificate.

It uses aiohttp, which kopf and the client library depend on. kopf's own server is unsuitable: it starts only
when kopf has scanned the whole cluster's API, closes its port to load a renewed certificate, and can neither
leave a failure to the webhook's failurePolicy nor choose what a refusal is.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
import tempfile
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from aiohttp import web

from poolkeeper.credentials.certificates import Certificate
from poolkeeper.kube.client import Cluster, ClusterError, Conflict
from poolkeeper.kube.events import Allowance
from poolkeeper.settings import Settings, Webhook
from poolkeeper.webhook import certificate as webhook_certificate
from poolkeeper.webhook import review
from poolkeeper.webhook.request import BODY_LIMIT, NotAReview, decode

log = logging.getLogger(__name__)

PATH = "/pods"
READY_PATH = "/readyz"
CHECK_SECONDS = 30.0
"""How long until a renewed certificate is served, and a caBundle that another client changed is restored."""
RETRY_SECONDS = 2.0
ANSWER_SECONDS = 4.0
"""Maximum time for an answer: less than the configuration's timeout, so that the API server gets the reason."""
REVIEWS_AT_ONCE = 16
"""How many reviews from one address are read and answered at once; further ones wait. It bounds what a client
that is not the API server can take of memory and of the API server's time."""
EVENTS = 20
"""Maximum number of Events for a namespace within EVENTS_SECONDS."""
EVENTS_SECONDS = 600.0
_SHUTDOWN_SECONDS = 5.0
_NO_CERTIFICATE = (
    "the client shows no certificate with the common name {}, which the chart's value webhook.client demands; "
    "name the certificate in the API server's AdmissionConfiguration, or empty webhook.client.caBundle"
)


async def serve(cluster: Cluster, settings: Settings, webhook: Webhook) -> None:
    """Answer until cancelled; the port opens with the first certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if webhook.client_authority:
        context.load_verify_locations(cadata=webhook.client_authority)
        context.verify_mode = ssl.CERT_OPTIONAL  # the kubelet's probes show none
    source = _Provided(webhook) if webhook.certificate_directory else _Own(cluster, settings, webhook)
    await _renew(source, context)
    runner = web.AppRunner(
        application(cluster, webhook, settings.dns.nameservers),
        shutdown_timeout=_SHUTDOWN_SECONDS,
        access_log=None,
        auto_decompress=False,  # the API server sends plain bodies, and a small one can unfold to a huge one
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, port=webhook.port, ssl_context=context).start()
        log.info("pods are admitted on port %d", webhook.port)
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await _renew(source, context)
    finally:
        await runner.cleanup()


def application(
    cluster: review.Access, webhook: Webhook | None = None, nameservers: Collection[str] = ()
) -> web.Application:
    """The server's two paths; `nameservers` are the cluster's."""
    telling: set[asyncio.Task[None]] = set()
    allowance = Allowance(EVENTS, EVENTS_SECONDS)
    peers: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def ready(_: web.Request) -> web.Response:
        return web.Response(text="ready")

    async def pods(request: web.Request) -> web.Response:
        # Anything but an answer means that the webhook failed: its failurePolicy decides.
        if webhook is not None and webhook.client_authority and not _shows(request, webhook.client_name):
            raise web.HTTPForbidden(text=_NO_CERTIFICATE.format(webhook.client_name))
        at_once = peers.setdefault(request.remote or "", asyncio.Semaphore(REVIEWS_AT_ONCE))
        try:
            async with asyncio.timeout(ANSWER_SECONDS), at_once:
                body = decode(await request.read())
                answer = await review.review(body, cluster, nameservers)
            event = review.event(body, answer, datetime.now(UTC))
            # In the background: the answer should not wait for it.
            if event is not None and allowance.admits(event, asyncio.get_running_loop().time()):
                telling.add(task := asyncio.create_task(_tell(cluster, event)))
                task.add_done_callback(telling.discard)
            return web.json_response(answer)
        except NotAReview as error:
            raise web.HTTPBadRequest(text=f"not an admission review of a pod: {error}") from error
        except (ClusterError, TimeoutError) as error:
            text = str(error) or f"no answer from the API server within {ANSWER_SECONDS:g} s"
            log.warning("admission: %s", text)
            raise web.HTTPServiceUnavailable(text=text) from error

    made = web.Application(client_max_size=BODY_LIMIT)
    made.add_routes([web.get(READY_PATH, ready), web.post(PATH, pods)])
    return made


def _shows(request: web.Request, name: str) -> bool:
    """Whether the client has shown a certificate with this common name; TLS has verified its authority."""
    certificate = request.transport.get_extra_info("peercert") if request.transport is not None else None
    subject = (certificate or {}).get("subject") or ()
    return ("commonName", name) in {attribute for part in subject for attribute in part}


async def _tell(cluster: review.Access, event: dict[str, Any]) -> None:
    try:
        await cluster.post(event)
    except Conflict:
        pass  # posted before, for another pod
    except ClusterError as error:
        log.warning("Event %s: %s", event["metadata"]["name"], error.message)


class _Own:
    """The operator's own certificate."""

    def __init__(self, cluster: Cluster, settings: Settings, webhook: Webhook) -> None:
        self._cluster, self._settings, self._webhook = cluster, settings, webhook
        self._served: Certificate | None = None

    async def load(self, context: ssl.SSLContext) -> None:
        """Load the current certificate. Raises ClusterError."""
        now = datetime.now(UTC)
        certificate = await webhook_certificate.current(self._cluster, self._settings, self._webhook, now)
        if certificate != self._served:
            with tempfile.TemporaryDirectory(prefix="poolkeeper-") as directory:  # mode 0700
                files = Path(directory, "tls.crt"), Path(directory, "tls.key")
                files[0].write_text(certificate.certificate)
                files[1].write_text(certificate.key)
                context.load_cert_chain(files[0], files[1])
            self._served = certificate


class _Provided:
    """The files of a mounted Secret, which are kept current from outside."""

    def __init__(self, webhook: Webhook) -> None:
        self._files = [Path(webhook.certificate_directory, name) for name in ("tls.crt", "tls.key")]
        self._served = b""

    async def load(self, context: ssl.SSLContext) -> None:
        """Load the files. Raises OSError; ssl.SSLError, which is one, if the two don't match."""
        digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in self._files)).digest()
        if digest != self._served:
            context.load_cert_chain(self._files[0], self._files[1])
            self._served = digest


async def _renew(source: _Own | _Provided, context: ssl.SSLContext) -> None:
    """Make the context show the current certificate on new connections; retry until it does."""
    while True:
        try:
            return await source.load(context)
        except (ClusterError, OSError) as error:
            log.warning("certificate of the admission webhook: %s; trying again in %g s", error, RETRY_SECONDS)
            await asyncio.sleep(RETRY_SECONDS)
