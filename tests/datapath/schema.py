"""What stands in the database: a schema for each tenant, tables to copy into, functions that SET."""

from __future__ import annotations

from tests.pgbouncer.processes import Postgres

TENANTS = ("t1", "t2", "t3")

_STATEMENTS = (
    *(
        statement
        for schema in ("public", *TENANTS)
        for statement in (
            f"CREATE SCHEMA IF NOT EXISTS {schema}",
            f"CREATE TABLE {schema}.tenant AS SELECT '{schema}'::text AS name",
            f"GRANT USAGE, CREATE ON SCHEMA {schema} TO shop_owner",
            f"GRANT SELECT ON {schema}.tenant TO shop_owner",
        )
    ),
    "CREATE TABLE public.copied (client int, number int, note text)",
    "CREATE TABLE public.guarded (tenant text, note text)",
    "INSERT INTO public.guarded VALUES ('acme', 'of acme'), ('globex', 'of globex')",
    "ALTER TABLE public.guarded ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY by_tenant ON public.guarded USING (tenant = current_setting('app.tenant', true))",
    "CREATE SEQUENCE public.counter",
    "CREATE FUNCTION public.change_work_mem() RETURNS void LANGUAGE plpgsql AS"
    " $$ BEGIN SET work_mem = '5MB'; END $$",
    "CREATE FUNCTION public.own_work_mem() RETURNS text LANGUAGE sql SET work_mem = '6MB' AS"
    " $$ SELECT current_setting('work_mem') $$",
    "CREATE ROLE auditor NOLOGIN",
    "GRANT auditor TO shop_owner",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON public.copied, public.guarded TO shop_owner, auditor",
    "GRANT USAGE ON SEQUENCE public.counter TO shop_owner",
)


def prepare(server: Postgres) -> None:
    """Make all of it in the database `shop`."""
    for statement in _STATEMENTS:
        server.execute(statement, "shop")
