"""Which load programs the image `clients` holds, how each is started, and the table that they work on."""

from __future__ import annotations

PROGRAMS = {
    "pg": ["node", "node/pg.js"],
    "postgres-js": ["node", "node/postgres.js"],
    "prisma": ["node", "node/prisma.js"],
    "drizzle": ["node", "node/drizzle.js"],
    "psycopg-pool": ["python3", "python/with_psycopg_pool.py"],
    "sqlalchemy": ["python3", "python/with_sqlalchemy.py"],
}

TABLE = """CREATE TABLE IF NOT EXISTS accounts (
  client text NOT NULL, worker integer NOT NULL, balance bigint NOT NULL, PRIMARY KEY (client, worker))"""
