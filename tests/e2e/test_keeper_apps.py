"""What else apps with keepers can rely on: cancels, Jobs with migrations, no passwords, a Next.js app."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from e2e import kube
from e2e.cluster.shell import ClusterError
from e2e.images.catalog import recipe
from e2e.install import CHART, NAMESPACE, RELEASE
from e2e.kube import Object, helm, kubectl
from tests.e2e.clients.programs import PROGRAMS
from tests.e2e.keeper_events import roll_poolers
from tests.e2e.keeper_kit import LABEL, SECRET, Fleet, deployment, make_table
from tests.e2e.kit import Place, images_in_use, restricted_pod, wait_until

CANCELS = 50
POOLERS = 3
REQUESTS_PER_SECOND = 40
JOB_SECONDS = 90
NEXT, NEXT_PORT = "nextjs", 3000

# As migration tools do it: a lock of the session keeps two of them from working at one time.
MIGRATION = """
import os, psycopg
with psycopg.connect(os.environ["DATABASE_SESSION_URL"], autocommit=True) as connection:
    connection.execute("SELECT pg_advisory_lock(4711)")
    with connection.transaction():
        connection.execute("CREATE TABLE orders (id integer PRIMARY KEY, note text NOT NULL)")
    connection.execute("SELECT pg_advisory_unlock(4711)")
"""
WORK = """
import os, psycopg
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    connection.execute("INSERT INTO orders VALUES (1, 'by the job')")
"""


@pytest.fixture(scope="module")
def shop(module_place: Place) -> Place:
    module_place.serve(module_place.spec(replicas=POOLERS, drainSeconds=10))
    make_table(module_place)
    return module_place


@pytest.fixture(scope="module")
def app(shop: Place) -> Iterator[Fleet]:
    """One of the programs, with a keeper."""
    deployed = Fleet(shop.web, "app", 10, {"psycopg-pool": PROGRAMS["psycopg-pool"]})
    deployed.deploy()
    yield deployed
    deployed.remove()


def test_the_label_alone_leads_to_the_keeper(shop: Place, app: Fleet) -> None:
    """The poolers see a connection with TLS come from the app's pod, and the app opens none of that kind."""
    (pod,) = app.pods().values()

    def seen() -> bool:
        with shop.consoles() as consoles:
            rows = [row for console in consoles for row in console.execute("SHOW CLIENTS")]
        return any(row["addr"] == pod["status"]["podIP"] and row["tls"] for row in rows)

    wait_until(seen, 10, "a connection with TLS from the app's pod")


def test_every_cancelled_query_ends_at_once_through_keeper_and_three_poolers(shop: Place, app: Fleet) -> None:
    assert len(shop.pods()) == POOLERS
    words = ("python3", "python/cancel.py", str(CANCELS))
    ends = json.loads(kubectl("-n", app.namespace, "exec", pod_name(app), "--", *words, timeout=120))
    assert ends == {"cancelled": CANCELS}


def test_the_apps_environment_and_files_hold_no_password(shop: Place, app: Fleet) -> None:
    passwords = secret_values(shop)
    environment = kubectl("-n", app.namespace, "exec", pod_name(app), "--", "env")
    values = dict(line.split("=", 1) for line in environment.splitlines())
    url = urlsplit(values["DATABASE_URL"])
    assert (url.hostname, url.password) == ("127.0.0.1", None)
    assert "PGPASSWORD" not in values
    (pod,) = app.pods().values()
    (container,) = pod["spec"]["containers"]
    assert container.get("volumeMounts", []) == [], "the keeper's files are the keeper's"
    for name, password in passwords.items():
        assert password not in environment, f"the app's environment holds {name}"


def test_no_object_but_poolkeepers_secrets_holds_a_password(shop: Place, app: Fleet) -> None:
    passwords = secret_values(shop)
    for namespace in (shop.web, shop.data):
        for kind in ("pods", "deployments", "replicasets", "configmaps", "events", "services", "pooldb"):
            text = kubectl("-n", namespace, "get", kind, "-o", "json", "--show-managed-fields")
            for name, password in passwords.items():
                assert password not in text, f"{kind} in {namespace} hold {name}"
    for pod in app.pods().values():
        logs = kubectl("-n", app.namespace, "logs", pod["metadata"]["name"], "--all-containers")
        assert "keeper" in kubectl(
            "-n", app.namespace, "logs", pod["metadata"]["name"], "-c", "keeper", "--prefix"
        )
        assert not any(password in logs for password in passwords.values()), "its logs hold a password"


def test_a_job_with_a_migration_init_container_completes(shop: Place) -> None:
    """Its init container uses the database before the app does, and the keeper ends when the app has."""
    kube.apply(json.dumps(job(shop.web, "migrated")))
    words = ("wait", "--for=condition=Complete", "job/migrated", f"--timeout={JOB_SECONDS}s")
    kubectl("-n", shop.web, *words, timeout=JOB_SECONDS + 10)
    assert shop.server.run("SELECT note FROM orders", database=shop.database) == [{"note": "by the job"}]
    (pod,) = kube.items("pods", shop.web, "job-name=migrated")
    assert [one["name"] for one in pod["spec"]["initContainers"]] == ["keeper", "migrate"]
    assert pod["status"]["phase"] == "Succeeded"


def test_a_nextjs_app_serves_every_request_through_a_rollout(shop: Place) -> None:
    kube.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": nextjs(shop.web)}))
    kubectl("-n", shop.web, "rollout", "status", f"deployment/{NEXT}", "--timeout=90s", timeout=100)
    target = {"TARGET": f"http://{NEXT}.{shop.web}.svc:{NEXT_PORT}/accounts"}
    programs = {"http": ["node", "node/http.js"]}
    browsers = Fleet(shop.web, "http", REQUESTS_PER_SECOND, programs, keeper=False, env=target)
    browsers.deploy()
    with browsers.during("a rollout behind a Next.js app") as outcome:
        roll_poolers(shop)
    browsers.check_lossless(outcome)
    (pod,) = kube.items("pods", shop.web, f"app={NEXT}")
    assert "keeper" in [one["name"] for one in pod["spec"]["initContainers"]]
    assert [status["restartCount"] for status in pod["status"]["containerStatuses"]] == [0]


def test_apps_whose_keepers_demand_a_password_have_it_by_reference_only(place: Place) -> None:
    place.serve({**place.spec(drainSeconds=10), "keeper": {"auth": "Scram"}})
    make_table(place)
    app = Fleet(place.web, "scram", 10, {name: PROGRAMS[name] for name in ("pg", "psycopg-pool")})
    app.deploy()
    password = place.secret(f"{SECRET}-keeper")["app-password"]
    for namespace in (place.web, place.data):
        for kind in ("pods", "deployments", "replicasets", "configmaps", "events", "pooldb"):
            text = kubectl("-n", namespace, "get", kind, "-o", "json", "--show-managed-fields")
            assert password not in text, f"{kind} in {namespace} hold it"
    pod = str(app.pods()["psycopg-pool"]["metadata"]["name"])
    environment = kubectl("-n", app.namespace, "exec", pod, "-c", "main", "--", "env")
    values = dict(line.split("=", 1) for line in environment.splitlines())
    assert urlsplit(values["DATABASE_URL"]).password == values["PGPASSWORD"] == password
    without = ("env", "-u", "PGPASSWORD", "python3", "-c", "import psycopg; psycopg.connect('')")
    with pytest.raises(ClusterError, match="no password supplied"):
        kubectl("-n", app.namespace, "exec", pod, "-c", "main", "--", *without)

    with app.during("a change of spec.keeper.auth") as outcome:
        place.patch({"keeper": {"auth": "Trust"}})
        place.wait_condition("KeepersCurrent", "False", "AuthOutdated", within=30)
        time.sleep(3)  # of work with keepers that were not asked
    app.check_lossless(outcome)


@pytest.fixture
def restarting() -> Iterator[None]:
    """The chart's right to restart workloads, for one test. The operator itself stays as it is."""
    words = ("-n", NAMESPACE, "upgrade", RELEASE, str(CHART), "--reuse-values", "--set")
    helm(*words, "keeper.restartWorkloads=true")
    yield
    helm(*words, "keeper.restartWorkloads=false")


def test_the_operator_restarts_apps_for_another_image_one_after_the_other(
    place: Place, restarting: None
) -> None:
    place.serve({**place.spec(drainSeconds=10), "keeper": {"rollout": "Workload"}})
    make_table(place)
    app = Fleet(place.web, "rolled", 10, {name: PROGRAMS[name] for name in ("pg", "psycopg-pool")})
    app.deploy()
    before = {program: pod["metadata"]["uid"] for program, pod in app.pods().items()}
    place.wait_condition("KeepersCurrent", "True", "Current", within=30)
    # The same image by its long name: another one as far as the pods' spec goes.
    image = f"docker.io/{images_in_use()['pgbouncer']}"
    place.patch({"keeper": {"image": image}})
    place.wait_condition("KeepersCurrent", "False", "Restarting", within=30)
    place.wait_condition("KeepersCurrent", "True", "Current", within=120)
    for program, pod in app.pods().items():
        assert pod["metadata"]["uid"] != before[program]
        assert pod["spec"]["initContainers"][0]["image"] == image
        deployed = kube.get("deployment", app.namespace, f"{app.name}-{program}")
        assert deployed is not None
        revision = deployed["metadata"]["annotations"]["deployment.kubernetes.io/revision"]
        assert revision == "2", "it was restarted once"
    app.more(20)


def pod_name(fleet: Fleet) -> str:
    (pod,) = fleet.pods().values()
    return str(pod["metadata"]["name"])


def secret_values(place: Place) -> dict[str, str]:
    """Every password of the place, by what it is for."""
    logins = place.secret("shop-pooler-logins", place.data)
    found = {"the upstream's password": place.password, "the consumer's": place.secret()["PGPASSWORD"]}
    for key, value in logins.items():
        for part, text in strings(json.loads(value), key):
            if part.endswith((".password", ".verifier", ".key")):
                found[part] = text.splitlines()[1] if text.startswith("-----BEGIN") else text
    keeper = place.secret(f"{SECRET}-keeper")
    assert any(found["the consumer's"] in text for text in keeper.values()), (
        "the keeper logs in as the consumer"
    )
    assert all(len(password) > 8 for password in found.values())
    return found


def strings(value: object, name: str) -> Iterator[tuple[str, str]]:
    """Every string within a JSON value, with the path to it."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(item, f"{name}.{key}")


def job(namespace: str, name: str) -> Object:
    image = recipe("clients").reference
    pod = restricted_pod(image, ["python3", "-c", WORK])
    migrate = restricted_pod(image, ["python3", "-c", MIGRATION])["containers"][0]
    pod["initContainers"] = [{**migrate, "name": "migrate"}]
    pod["restartPolicy"] = "Never"
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": {LABEL: SECRET}}, "spec": pod}},
    }


def nextjs(namespace: str) -> list[Object]:
    """A Deployment with a Service; the label is all that it says of its database."""
    pod = restricted_pod(
        recipe("nextjs-app").reference,
        [],
        # The image's own would be hidden by that of the pod's name.
        env=[{"name": "HOSTNAME", "value": "0.0.0.0"}],  # noqa: S104
        readinessProbe={"httpGet": {"path": "/", "port": NEXT_PORT}, "periodSeconds": 1},
    )
    labels = {"app": NEXT}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": NEXT},
        "spec": {"selector": labels, "ports": [{"port": NEXT_PORT}]},
    }
    return [service, deployment(namespace, NEXT, {**labels, LABEL: SECRET}, pod)]
