"""A keeper as a process of this machine, on the files that kubelet mounts in a pod, before a real pooler."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from e2e.cluster.ports import free_port
from poolkeeper.credentials.certificates import issue
from poolkeeper.credentials.logins import Login, keeper_app, keeper_certificate_name, keeper_console
from poolkeeper.keeper.container import listen
from poolkeeper.keeper.template import KeeperTemplate
from poolkeeper.keeper.variables import variables
from poolkeeper.observed.consoles import ConsoleAccess
from poolkeeper.pgbouncer import keeper_configuration
from poolkeeper.pgbouncer.configuration import INI, POD_FILE, Configuration
from poolkeeper.spec.parse import PooledDatabase, parse
from poolkeeper.spec.types import TRUST
from tests import specs
from tests.pgbouncer.processes import USER, running, wait_until_it_listens
from tests.pgbouncer.rootfs import rootfs
from tests.pgbouncer.shop import FULL_NAME, WEB, Shop

# As in a pod: the files at their own path, the pooler Service's name in the pod's DNS.
_ENTER = f"""
set -eu
root=$1 directory=$2
shift 2
mount -t tmpfs tmpfs "$root/etc"
mkdir "$root/etc/poolkeeper"
echo '127.0.0.1 {FULL_NAME}' > "$root/etc/hosts"
echo 'hosts: files' > "$root/etc/nsswitch.conf"
mount --bind "$directory" "$root/etc/poolkeeper"
if [ -d "$root/proc" ]; then mount --rbind /proc "$root/proc"; fi
exec chroot --userspec={USER}:{USER} "$root" "$@"
"""


@dataclass
class Keeper:
    """A PgBouncer on the files of a configuration; `behind` is the port of the pooler, 6432 in a cluster."""

    directory: Path
    port: int
    behind: int
    shop: Shop
    auth: str = TRUST

    def write(self, whole: Configuration, keep: Mapping[str, str] | None = None) -> Configuration:
        ini = whole.files[INI].replace("port='6432'", f"port='{self.behind}'")
        databases = {name: {**row, "port": str(self.behind)} for name, row in whole.databases.items()}
        files = {**(keep or {}), **whole.files, INI: ini, POD_FILE: listen(self.port)}
        for name, text in sorted(files.items(), key=lambda item: item[0] == INI):
            path = self.directory / name
            # As kubelet does, which writes the new files while the old ones are still there.
            if path.exists() and path.read_text() == text:
                continue
            path.with_suffix(".new").write_text(text)
            path.with_suffix(".new").rename(path)
            os.chown(path, USER, USER)
        return replace(whole, databases=databases)

    @property
    def access(self) -> ConsoleAccess:
        login = self.shop.login(WEB).name
        authority = self.shop.authorities.keepers
        password = keeper_console(authority, login).password
        name = keeper_certificate_name(login)
        return ConsoleAccess("127.0.0.1", self.port, password, name, authority.certificate)

    def connect(self, database: str = "shop", **parameters: Any) -> psycopg.Connection[Any]:
        """As an app does: by the URL that it finds in its environment."""
        url = self.environment(database)["DATABASE_URL"]
        return psycopg.connect(url, **{"autocommit": True, "connect_timeout": 5, **parameters})

    def environment(self, database: str = "shop") -> dict[str, str]:
        """What kubelet makes of an app container's variables."""
        template = KeeperTemplate("", "", None, database, f"{database}.session", self.auth)
        made: dict[str, str] = {}
        for name, item in variables("", self.port, template, WEB.secret_name).items():
            text = item.get("value") or app_login(self.shop).password
            made[name] = re.sub(r"\$\((\w+)\)", lambda match: made[match[1]], text)
        return made

    def log(self) -> str:
        return (self.directory / "pgbouncer.log").read_text()


def resource(**spec: Any) -> PooledDatabase:
    return parse(specs.body({**specs.MINIMAL, **spec}))


def app_login(shop: Shop) -> Login:
    return keeper_app(shop.authorities.keepers, shop.login(WEB).name)


def keeper_files(
    shop: Shop,
    database: PooledDatabase | None = None,
    name: str = "shop",
    authority: str | None = None,
    app: Login | None = None,
) -> Configuration:
    login: Login = shop.login(WEB)
    keepers = shop.authorities.keepers
    return keeper_configuration.configuration(
        database or resource(),
        name,
        WEB,
        login,
        keeper_console(keepers, login.name),
        issue(keepers, keeper_certificate_name(login.name), datetime.now(UTC)),
        authority or shop.authorities.poolers.certificate,
        app,
    )


def keeper_command(directory: Path, auth: str = TRUST) -> list[str]:
    """The command line of a keeper that finds the files of `directory` where they are mounted in a pod."""
    enter = ["unshare", "--mount", "sh", "-c", _ENTER, "sh", str(rootfs("pgbouncer")), str(directory)]
    return [*enter, "pgbouncer", keeper_configuration.start_file(auth)]


@contextmanager
def keeper(
    directory: Path, shop: Shop, behind: int, whole: Configuration, auth: str = TRUST
) -> Iterator[Keeper]:
    directory.mkdir()
    made = Keeper(directory, free_port(), behind, shop, auth)
    made.write(whole)
    os.chown(directory, USER, USER)
    with running(keeper_command(directory, auth), directory / "pgbouncer.log", signal.SIGQUIT) as process:
        wait_until_it_listens(process, made.log)
        yield made
