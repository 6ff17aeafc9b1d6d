"""psycopg 3 and its pool, as its documentation has it: `with pool.connection()` is a transaction."""

from __future__ import annotations

import os
from typing import Any

from load import POOL_SIZE, Operations, run, think
from psycopg_pool import ConnectionPool

ADD = """INSERT INTO accounts (client, worker, balance) VALUES (%s, %s, 1)
  ON CONFLICT (client, worker) DO UPDATE SET balance = accounts.balance + 1"""
BALANCE = "SELECT balance FROM accounts WHERE client = %s AND worker = %s"

pool = ConnectionPool(os.environ["DATABASE_URL"], min_size=POOL_SIZE, open=True)


def transaction(client: str, worker: int) -> int:
    with pool.connection() as connection:
        connection.execute(ADD, (client, worker))
        think()
        return _balance(connection.execute(BALANCE, (client, worker)))


def prepared(client: str, worker: int) -> int:
    with pool.connection() as connection:
        return _balance(connection.execute(BALANCE, (client, worker), prepare=True))


def single(worker: int) -> None:
    with pool.connection() as connection:
        connection.execute("SELECT %s::int", (worker,))


def _balance(cursor: Any) -> int:
    return int(cursor.fetchone()[0])


if __name__ == "__main__":
    run(Operations(transaction, prepared, single))
