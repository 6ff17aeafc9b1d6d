"""The configuration of a PgBouncer that somebody sets up by hand, which ours is compared with."""

from __future__ import annotations

LOGIN = "hand"


def configuration(
    database: str, upstream: str, directory: str, port: int = 6432, pool_size: int | None = None
) -> str:
    """pgbouncer.ini with one database, for every client of the userlist. `upstream` is a connection string,
    `pool_size` the most connections to it; None: PgBouncer's default."""
    lines = [
        "[databases]",
        f"{database} = {upstream}",
        "[pgbouncer]",
        "listen_addr = *",
        f"listen_port = {port}",
        "unix_socket_dir =",
        "auth_type = scram-sha-256",
        f"auth_file = {directory}/userlist.txt",
        "pool_mode = transaction",
        "max_client_conn = 1000",
        "server_login_retry = 1",
        "server_tls_sslmode = disable",
        "ignore_startup_parameters = extra_float_digits,options",
    ]
    if pool_size is not None:
        lines.append(f"default_pool_size = {pool_size}")
    return "\n".join(lines) + "\n"


def userlist(password: str) -> str:
    """userlist.txt with the one login."""
    return f'"{LOGIN}" "{password}"\n'
