"""The Secret that a consumer's keepers mount: their configuration, and the template for injection."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from poolkeeper import names
from poolkeeper.consumers.consent import Consumer
from poolkeeper.credentials.logins import Login
from poolkeeper.desired.metadata import Object, metadata
from poolkeeper.keeper.template import KeeperTemplate, dump
from poolkeeper.pgbouncer.configuration import Configuration
from poolkeeper.pgbouncer.keeper_configuration import database_names
from poolkeeper.settings import Settings
from poolkeeper.spec.parse import PooledDatabase


def template(database: PooledDatabase, upstream_database: str, settings: Settings) -> KeeperTemplate:
    """The template of a keeper that is injected now."""
    main, session = database_names(upstream_database)
    return KeeperTemplate(
        image=database.keeper.image or settings.keeper_image,
        image_pull_policy=settings.keeper_image_pull_policy,
        resources=database.keeper.resources,
        database=main,
        session_database=session,
        auth=database.keeper.auth,
        image_pull_secrets=database.keeper.image_pull_secrets,
        assigned_user=settings.assigned_users,
    )


def render(
    database: PooledDatabase,
    consumer: Consumer,
    template: KeeperTemplate,
    configuration: Configuration,
    previous: Mapping[str, str],
    app: Login | None = None,
) -> Object:
    """The Secret: current files and, `previous`, those of the generation before (configuration.kept_files).

    `app` is the apps' login, if keepers demand one: its password is a key that containers refer to.
    """
    name = names.keeper_name(consumer.secret_name)
    meta = metadata(database, names.ROLE_KEEPER, name, consumer.namespace)
    files = {**previous, **configuration.files}
    if app is not None:
        files[names.APP_PASSWORD_KEY] = app.password
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            **meta,
            "annotations": {**meta["annotations"], names.KEEPER_ANNOTATION: dump(template)},
        },
        "type": "Opaque",
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in files.items()},
    }
