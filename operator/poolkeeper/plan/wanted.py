"""The wanted state of one PooledDatabase, given the observations: every object, complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from poolkeeper import names
from poolkeeper.budget.division import Caps
from poolkeeper.budget.request import BudgetRequest, order
from poolkeeper.consumers import consent, entries
from poolkeeper.consumers.consent import Consumer
from poolkeeper.credentials import certificates
from poolkeeper.credentials.logins import (
    Authorities,
    Login,
    Logins,
    keeper_app,
    keeper_certificate_name,
    keeper_console,
)
from poolkeeper.desired import autoscaler, deployment, disruption_budget, network_policy, secrets, service
from poolkeeper.dns import Dns
from poolkeeper.keeper import foreign
from poolkeeper.keeper import secret as keeper_secret
from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.observed.namespaces import EQUAL
from poolkeeper.observed.poolers import Pod
from poolkeeper.observed.refs import Key, Ref
from poolkeeper.pgbouncer import keeper_configuration
from poolkeeper.pgbouncer.configuration import Configuration, configuration, kept_files
from poolkeeper.plan import pause, peers
from poolkeeper.plan.status.budget import left_out
from poolkeeper.plan.supported_parameters import supported
from poolkeeper.plan.world import World
from poolkeeper.settings import Settings
from poolkeeper.spec import startup_parameters
from poolkeeper.spec.parse import PooledDatabase
from poolkeeper.spec.types import MANUAL, SCRAM
from poolkeeper.upstream.target import Target, TargetError, resolve, unused_parameters

Object = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """The wanted state of one PooledDatabase, given its World."""

    namespace: str
    dns: Dns
    host: str
    """Name of the pooler Service in URLs."""
    console_name: str
    """A name in every certificate that a pooler may show: also in one from before the host got a domain."""
    resolved: Target | None
    fault: TargetError | None
    target: Target | None
    """The target in use: the resolved one, or the last proved one until the resolved one is proved."""
    consumers: consent.Consumers
    logins: Logins
    configuration: Configuration | None = None
    peers: Mapping[str, int] = field(default_factory=dict)
    """peer_ids of pooler pods, by UID."""
    budget: BudgetRequest | None = None
    pod_lines: Mapping[str, str] = field(default_factory=dict)
    """Each pooler pod's own lines of configuration, by UID."""
    poolers: tuple[Object, ...] = ()
    bindings: tuple[Object, ...] = ()
    """The consumers' Secrets."""
    keepers: Mapping[Consumer, Configuration] = field(default_factory=dict)
    """The configurations that keepers have to show; empty unless spec.keeper is enabled."""
    templates: Mapping[Consumer, KeeperTemplate] = field(default_factory=dict)
    """The templates of the keepers that are injected now, of the same consumers."""
    keeper_restrictions: tuple[tuple[str, str], ...] = ()
    """What the spec asks for and keepers of other namespaces don't get, as (reason, message)."""
    keeper_rollout: str = MANUAL
    withheld: Mapping[str, str] = field(default_factory=dict)
    """Why parameters of the spec are not in the poolers' file, by name."""
    unused_parameters: tuple[str, ...] = ()
    """Parameters of the upstream's URL that poolers have no use for."""
    complete: bool = True
    """Whether every consumer has a login; if not, `consumers` lacks those that have none yet."""

    def console_at(self, ip: str) -> ConsoleAccess:
        """Access to the console of the pooler at this address."""
        assert self.logins.console is not None
        assert self.logins.authorities is not None
        return ConsoleAccess(
            ip,
            names.POOLER_PORT,
            self.logins.console.password,
            self.console_name,
            self.logins.authorities.poolers.certificate,
        )

    def keeper_at(self, consumer: Consumer, ip: str, port: int) -> ConsoleAccess:
        """Access to the console of the consumer's keeper at this address."""
        assert self.logins.authorities is not None
        name, authority = entries.login_name(consumer), self.logins.authorities.keepers
        return ConsoleAccess(
            ip,
            port,
            keeper_console(authority, name).password,
            keeper_certificate_name(name),
            authority.certificate,
        )


def want(database: PooledDatabase, world: World, settings: Settings, now: datetime) -> Wanted:
    """The wanted state for a valid PooledDatabase."""
    resolved, fault = _resolved(database, world)
    target = _in_use(resolved, world)
    agreed = consent.consumers(database, world.namespaces, settings)
    granted = _with_logins(agreed, world)
    wanted_logins = {entries.login_name(consumer) for consumer in granted.granted}
    logins = Logins(
        console=world.logins.console,
        consumers={name: login for name, login in world.logins.consumers.items() if name in wanted_logins},
        upstream=_accepted(resolved, world),
        authorities=world.logins.authorities,
    )
    wanted = Wanted(
        database.namespace,
        settings.dns,
        names.pooler_host(database.namespace, database.name, settings.dns.domain),
        names.short_pooler_host(database.namespace, database.name),
        resolved,
        fault,
        target,
        granted,
        logins,
        unused_parameters=unused_parameters(database.upstream, world.sources),
        complete=len(granted.granted) == len(agreed.granted),
    )
    if target is None or logins.console is None or logins.authorities is None:
        return wanted
    peer_ids = peers.assign(world.pods)
    patience = pause.wait_seconds(world.resource, now) if world.resource is not None else None
    authority = logins.authorities.poolers
    offered = supported(database, world, settings)
    try:
        config = configuration(
            target,
            entries.entries(
                target, granted.granted, database.pooler.mode, granted.terms, database.pooler.replicas
            ),
            logins,
            certificates.issue(authority, wanted.console_name, now, wanted.host),
            {
                **pause.with_patience(offered.parameters, patience),
                **startup_parameters.pooler_settings(database.pooler),
            },
            names.CONFIG_DIRECTORY,
            {peer_ids[pod.uid]: pod.ip for pod in world.pods if pod.uid in peer_ids},
        )
        apps = _apps(database, granted.granted, logins.authorities, world)
        wait = max(keeper_configuration.QUERY_WAIT_SECONDS, patience or 0)
        keepers = _keepers(
            database,
            granted,
            target,
            logins.consumers,
            logins.authorities,
            apps,
            wait,
            settings.dns.domain,
            now,
        )
    except ValueError as error:
        return replace(wanted, fault=TargetError("InvalidValue", str(error)))
    stored = world.files.get(Ref("Secret", database.namespace, names.config_name(database.name)), {})
    own = world.namespaces.get(database.namespace)
    template = keeper_secret.template(database, target.database, settings)
    templates = {
        consumer: foreign.bounded(
            template if granted.has_sessions(consumer) else replace(template, session_database=""),
            database,
            consumer.namespace,
            settings,
        )
        for consumer in keepers
    }
    served = [consumer for consumer in granted.granted if not _withheld(consumer, target, world)]
    return replace(
        wanted,
        configuration=config,
        keepers=keepers,
        templates=templates,
        keeper_restrictions=tuple(
            foreign.restrictions(template, database, (consumer.namespace for consumer in keepers), settings)
        ),
        keeper_rollout=database.keeper.rollout,
        withheld=offered.withheld,
        peers=peer_ids,
        budget=order(
            database,
            granted,
            target,
            config,
            wanted.console_at(""),
            world.whereabouts,
            logins.consumers,
            settings.dns.names(target.host, database.namespace),
            own.budget_weight if own is not None else EQUAL,
        ),
        pod_lines=_pod_lines(peer_ids, world),
        poolers=(
            secrets.config(database, config, kept_files(stored, config.generation)),
            deployment.render(
                database,
                settings,
                logins.console,
                _most_pods(world),
                world.rollout.borrowed if world.rollout is not None else "",
            ),
            service.render(database),
            disruption_budget.render(database),
            *autoscaler.render(database),
            network_policy.render(database, (item.namespace for item in granted.granted), settings),
        ),
        bindings=tuple(
            secret
            for consumer in served
            for secret in _secrets_of(
                database,
                consumer,
                granted.has_sessions(consumer),
                target,
                logins,
                wanted.host,
                authority.certificate,
            )
        )
        + tuple(
            _keeper_secret(
                database,
                consumer,
                templates[consumer],
                keepers[consumer],
                apps.get(consumer),
                world,
            )
            for consumer in served
            if consumer in keepers
        ),
    )


def _with_logins(found: consent.Consumers, world: World) -> consent.Consumers:
    """The consumers whose logins are made. Of many new ones, each plan finds a part more."""
    made = world.logins.consumers
    return replace(found, granted=tuple(item for item in found.granted if entries.login_name(item) in made))


def _most_pods(world: World) -> int | None:
    """How many pods the budget has room for. Until an operator that starts has measured the server, the number
    stays as it was: no further pod could be admitted."""
    if world.budget is not None and world.budget.most_pods is not None:
        return world.budget.most_pods
    return world.rollout.most_pods if world.rollout is not None else None


def allotted(pod: Pod, world: World) -> Caps:
    """The stored caps of a pod; none if it has no table."""
    allotment = world.stored.record.allotments.get(pod.uid) if world.stored is not None else None
    return {} if allotment is None else allotment.caps


def _pod_lines(peer_ids: Mapping[str, int], world: World) -> dict[str, str]:
    """Each pod's own lines. A pod keeps including its table while there is none: if it forgot the table's name,
    it would disconnect every client."""
    allotments = world.stored.record.allotments if world.stored is not None else {}
    lines = {}
    for pod in world.pods:
        if pod.uid in peer_ids:
            included = pod.includes or pod.uid in allotments
            lines[pod.uid] = peers.lines(peer_ids[pod.uid], peers.table_path(pod.uid) if included else None)
    return lines


def _withheld(consumer: Consumer, target: Target, world: World) -> bool:
    """Whether a consumer's Secrets have to wait, since a pooler that serves has no connection for it."""
    if left_out(consumer, target.database, world.budget):
        return True  # their URLs would lead to nothing
    if Ref("Secret", consumer.namespace, consumer.secret_name) in world.children:
        return False
    entry = entries.entry_name(target.database, consumer)
    return any(entry not in allotted(pod, world) for pod in world.pods if pod.ready and not pod.terminating)


def without_spec(key: Key, world: World, settings: Settings) -> Wanted:
    """The known state of what runs while the spec is invalid: enough for the steps at running processes.

    The target is the last proved one, and the consumers are those that have their Secrets.
    """
    known = (
        consent.Consumer(ref.namespace, ref.name)
        for ref, child in world.children.items()
        if child.role == names.ROLE_CONSUMER
    )
    granted = sorted(item for item in known if entries.login_name(item) in world.logins.consumers)
    return Wanted(
        key.namespace,
        settings.dns,
        names.pooler_host(key.namespace, key.name, settings.dns.domain),
        names.short_pooler_host(key.namespace, key.name),
        resolved=None,
        fault=None,
        target=world.logins.upstream,
        consumers=consent.Consumers(granted=tuple(granted), refused=()),
        logins=world.logins,
    )


def _secrets_of(
    database: PooledDatabase,
    consumer: Consumer,
    sessions: bool,
    target: Target,
    logins: Logins,
    host: str,
    authority: str,
) -> tuple[Object, Object]:
    login = logins.consumers[entries.login_name(consumer)]
    entry = entries.entry_name(target.database, consumer)
    session = entries.session_entry_name(target.database, consumer) if sessions else None
    return (
        secrets.consumer(database, consumer, login, entry, session, host),
        secrets.binding(database, consumer, login, entry, session, host, authority),
    )


def _keepers(
    database: PooledDatabase,
    granted: consent.Consumers,
    target: Target,
    logins: Mapping[str, Login],
    authorities: Authorities,
    apps: Mapping[Consumer, Login],
    wait: int,
    domain: str,
    now: datetime,
) -> dict[Consumer, Configuration]:
    return {
        consumer: keeper_configuration.configuration(
            database,
            target.database,
            consumer,
            logins[name],
            keeper_console(authorities.keepers, name),
            certificates.issue(authorities.keepers, keeper_certificate_name(name), now),
            authorities.poolers.certificate,
            apps.get(consumer),
            wait,
            domain,
        )
        for consumer in (granted.granted if database.keeper.enabled else ())
        for name in [entries.login_name(consumer)]
    }


def _apps(
    database: PooledDatabase, consumers: Iterable[Consumer], authorities: Authorities, world: World
) -> dict[Consumer, Login]:
    """The logins of apps at keepers that demand one: at new keepers, or at some that still run."""
    demanding = {
        Consumer(pod.namespace, keeper.secret_name)
        for pod in world.app_pods
        for keeper in pod.keepers
        if keeper.auth == SCRAM
    }
    return {
        consumer: keeper_app(authorities.keepers, entries.login_name(consumer))
        for consumer in consumers
        if database.keeper.auth == SCRAM or consumer in demanding
    }


def _keeper_secret(
    database: PooledDatabase,
    consumer: Consumer,
    template: KeeperTemplate,
    config: Configuration,
    app: Login | None,
    world: World,
) -> Object:
    ref = Ref("Secret", consumer.namespace, names.keeper_name(consumer.secret_name))
    previous = kept_files(world.files.get(ref, {}), config.generation)
    return keeper_secret.render(database, consumer, template, config, previous, app)


def _resolved(database: PooledDatabase, world: World) -> tuple[Target | None, TargetError | None]:
    if world.managed:
        return None, TargetError(
            "NotAllowed",
            f"Secret {min(world.managed)} is made by Poolkeeper itself; "
            "name the Secret that holds the database's own credentials",
        )
    try:
        return resolve(database.upstream, world.sources), None
    except TargetError as fault:
        return None, fault


def _in_use(resolved: Target | None, world: World) -> Target | None:
    """The resolved target, unless it is unproved or rejected and an earlier one was proved."""
    proved = world.logins.upstream
    if resolved is None or proved is None or resolved == proved:
        return resolved or proved
    probe = world.probe
    if probe is None or probe.target != resolved or probe.rejected:
        return proved
    return resolved


def _accepted(resolved: Target | None, world: World) -> Target | None:
    probe = world.probe
    if resolved is not None and probe is not None and probe.reachable and probe.target == resolved:
        return resolved
    return world.logins.upstream
