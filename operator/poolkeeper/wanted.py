"""What one PooledDatabase should look like, given what is observed: every object, whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from poolkeeper import consent
from poolkeeper.api import PooledDatabase
from poolkeeper.consent import Consumer
from poolkeeper.desired import deployment, disruption_budget, entries, network_policy, secrets, service
from poolkeeper.desired.pgbouncer_config import Configuration, configuration, kept_files
from poolkeeper.logins import Logins
from poolkeeper.settings import Settings
from poolkeeper.target import Target, TargetError, resolve
from poolkeeper.world import World

Object = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What one PooledDatabase should look like, given the world."""

    resolved: Target | None
    fault: TargetError | None
    target: Target | None
    """The target in use: the resolved one, or the last proved one while the resolved one is rejected."""
    consumers: consent.Consumers
    logins: Logins
    configuration: Configuration | None = None
    poolers: tuple[Object, ...] = ()
    bindings: tuple[Object, ...] = ()


def want(database: PooledDatabase, world: World, settings: Settings) -> Wanted:
    """Everything that should exist for a valid PooledDatabase."""
    resolved, fault = _resolved(database, world)
    target = _in_use(resolved, world)
    granted = consent.consumers(database, world.namespaces, settings)
    wanted_logins = {entries.login_name(consumer) for consumer in granted.granted}
    logins = Logins(
        console=world.logins.console,
        consumers={name: login for name, login in world.logins.consumers.items() if name in wanted_logins},
        upstream=_accepted(resolved, world),
    )
    wanted = Wanted(resolved, fault, target, granted, logins)
    if target is None or logins.console is None:
        return wanted
    try:
        rows = entries.entries(target, granted.granted, database.pooler.mode)
        config = configuration(target, rows, logins, database.pooler.parameters, deployment.CONFIG_DIRECTORY)
    except ValueError as error:
        return replace(wanted, fault=TargetError("InvalidValue", str(error)))
    return replace(
        wanted,
        configuration=config,
        poolers=(
            secrets.config(database, config, kept_files(world.config_files, config.generation)),
            deployment.render(database, settings, logins.console),
            service.render(database),
            disruption_budget.render(database),
            network_policy.render(database, (item.namespace for item in granted.granted), settings),
        ),
        bindings=tuple(
            secret for consumer in granted.granted for secret in _secrets_of(database, consumer, target, logins)
        ),
    )


def _secrets_of(
    database: PooledDatabase, consumer: Consumer, target: Target, logins: Logins
) -> tuple[Object, Object]:
    login = logins.consumers[entries.login_name(consumer)]
    entry = entries.entry_name(target.database, consumer)
    session = entries.session_entry_name(target.database, consumer)
    return (
        secrets.consumer(database, consumer, login, entry, session),
        secrets.binding(database, consumer, login, entry),
    )


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
