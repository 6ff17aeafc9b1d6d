"""What apps get: the transaction and the session endpoint, names in pg_stat_activity, prepared statements."""

from __future__ import annotations

import json

import pytest

from e2e import kube
from e2e.images.catalog import recipe
from e2e.kube import kubectl
from tests.e2e.client import Agent, QueryError, Session
from tests.e2e.kit import Place, restricted_pod

NODE = """
const { Pool } = require('pg');
const pool = new Pool({ connectionString: process.env.DATABASE_URL, max: 4 });
const named = { name: 'double', text: 'SELECT $1::int * 2 AS twice, pg_backend_pid() AS pid' };
async function main() {
  const answers = await Promise.all(
    Array.from({ length: 400 }, (_, i) => pool.query({ ...named, values: [i] }))
  );
  const right = answers.every((answer, i) => answer.rows[0].twice === 2 * i);
  console.log(JSON.stringify({ right, backends: new Set(answers.map((a) => a.rows[0].pid)).size }));
  await pool.end();
}
main();
"""


@pytest.fixture(scope="module")
def shop(module_place: Place) -> Place:
    """On each of 2 poolers 2 connections for transactions, and as many for sessions."""
    limits = {"maxConnections": 8, "sessionConnections": 2}
    consumers = [{"namespace": module_place.web, "limits": limits}]
    module_place.serve({**module_place.spec(), "consumers": consumers})
    return module_place


def test_session_endpoint_keeps_what_belongs_to_a_session(shop: Place, agent: Agent) -> None:
    url = shop.url("DATABASE_SESSION_URL")
    with Session(agent, url) as session, Session(agent, url) as other:
        pids = {session.execute("SELECT pg_backend_pid() AS pid")[0]["pid"] for _ in range(3)}
        assert len(pids) == 1, "a session has one backend for itself"
        session.execute("SET statement_timeout = '1234ms'")
        assert session.execute("SHOW statement_timeout") == [{"statement_timeout": "1234ms"}]
        session.execute("SELECT pg_advisory_lock(42)")
        assert other.execute("SELECT pg_try_advisory_lock(42) AS got") == [{"got": "False"}]
        session.execute("CREATE TEMPORARY TABLE scratch AS SELECT 7 AS seven")
        assert session.execute("SELECT seven FROM scratch") == [{"seven": "7"}]
        session.execute("LISTEN orders")
        other.execute("NOTIFY orders, 'shipped'")
        assert session.notifications(5) == ["shipped"]
    # What one session left behind, the next one does not find.
    with Session(agent, url) as fresh:
        assert fresh.execute("SHOW statement_timeout") == [{"statement_timeout": "0"}]


def test_transaction_endpoint_shares_a_backend_among_clients(shop: Place, agent: Agent) -> None:
    with Session(agent, shop.url()) as one:
        sessions = [Session(agent, shop.url()) for _ in range(8)]
        pids = {session.execute("SELECT pg_backend_pid() AS pid")[0]["pid"] for session in [one, *sessions]}
        for session in sessions:
            session.__exit__()
    assert len(pids) <= 4, "9 clients on 2 poolers with pools of 2 have more than 4 backends"


def test_pg_stat_activity_names_the_consumer_on_both_endpoints(shop: Place, agent: Agent) -> None:
    for key in ("DATABASE_URL", "DATABASE_SESSION_URL"):
        with Session(agent, shop.url(key)) as session:
            session.execute("BEGIN")
            pid = session.execute("SELECT pg_backend_pid() AS pid")[0]["pid"]
            activity = shop.server.run("SELECT pid, usename, datname, application_name FROM pg_stat_activity")
            assert [row for row in activity if row["pid"] == pid] == [
                {
                    "pid": pid,
                    "usename": shop.role,
                    "datname": shop.database,
                    "application_name": f"{shop.web}/database",
                }
            ]
            session.execute("ROLLBACK")


def test_psycopg_prepared_statements_work_in_transaction_mode(shop: Place, agent: Agent) -> None:
    """Clients that outnumber the backends, every one with statements that it prepares at once."""
    sessions = [Session(agent, shop.url(), prepare=0) for _ in range(6)]
    for turn in range(5):
        running = [
            session.start("SELECT %s::int + %s::int AS sum", [index, turn])
            for index, session in enumerate(sessions)
        ]
        sums = [int(answer.result(30)[0]["sum"]) for answer in running]
        assert sums == [index + turn for index in range(6)]
    for session in sessions:
        session.__exit__()


def test_node_postgres_named_statements_work_in_transaction_mode(shop: Place) -> None:
    spec = restricted_pod(
        recipe("demo-app").reference,
        ["node", "-e", NODE],
        workingDir="/app",
        envFrom=[{"secretRef": {"name": "database"}}],
    )
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": shop.web, "name": "node"},
        "spec": {**spec, "restartPolicy": "Never"},
    }
    kube.apply(json.dumps(body))
    phase = "jsonpath={.status.phase}=Succeeded"
    kubectl("-n", shop.web, "wait", f"--for={phase}", "pod/node", "--timeout=30s", timeout=40)
    said = json.loads(kubectl("-n", shop.web, "logs", "node"))
    assert said["right"] is True
    assert 1 <= said["backends"] <= 4


def test_secrets_hold_the_same_login_in_every_form(shop: Place, agent: Agent) -> None:
    plain, binding = shop.secret(), shop.secret("database-binding")
    assert set(plain) == {
        "DATABASE_URL",
        "DATABASE_SESSION_URL",
        "PGHOST",
        "PGPORT",
        "PGUSER",
        "PGPASSWORD",
        "PGDATABASE",
    }
    keywords = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD"}
    by_parts = " ".join(f"{word}={plain[key]}" for word, key in keywords.items())
    urls = (plain["DATABASE_URL"], binding["uri"], binding["session-uri"])
    for dsn in (*urls, f"{by_parts} dbname={plain['PGDATABASE']}"):
        assert agent.query(dsn, "SELECT current_database() AS name") == [{"name": shop.database}]
    assert binding["type"] == "postgresql"
    body = kube.get("secret", shop.web, "database-binding")
    assert body is not None
    assert body["type"] == "servicebinding.io/postgresql"


def test_console_is_closed_to_consumers(shop: Place, agent: Agent) -> None:
    values = shop.secret()
    url = values["DATABASE_URL"].replace(f"/{values['PGDATABASE']}", "/pgbouncer")
    with pytest.raises(QueryError, match=r"authentication|not allowed"):
        agent.query(url, "SHOW VERSION")
