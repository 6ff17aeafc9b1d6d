"""``python -m e2e.install``: the images into the cluster, the chart into namespace poolkeeper, and a check.

The second time it does what changed and nothing else: an operator whose image is new is rolled.
"""

from __future__ import annotations

import json
import sys

from e2e.cluster.adapters import Image, choose
from e2e.cluster.paths import ROOT
from e2e.cluster.shell import ClusterError, say
from e2e.images import build
from e2e.kube import helm, kubectl

RELEASE = "poolkeeper"
NAMESPACE = "poolkeeper"
CHART = ROOT / "charts" / "poolkeeper"
_ROLLOUT_SECONDS = 150
_LOG_LINES = 12


def main() -> int:
    """Install. Returns the exit code; errors become one sentence and what the pods say."""
    try:
        references = load_images()
        install(references)
        wait_for_rollout()
        say("running helm test")
        test = helm("-n", NAMESPACE, "test", RELEASE, "--logs", "--timeout", "120s")
        say(_test_result(test))
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def load_images() -> dict[str, str]:
    """Build what is missing, bring it into the cluster. Returns references by name (`operator`, ...)."""
    built = build.ensure()
    cluster = choose()
    problem = cluster.status()
    if problem is not None:
        raise ClusterError(f"the cluster is not ready: {problem}; run `make cluster`")
    cluster.load([Image(one.reference, one.archive) for one in built])
    say("every image is in the cluster")
    return {one.reference.partition("/")[2].partition(":")[0]: one.reference for one in built}


def install(references: dict[str, str], *settings: str) -> None:
    """Install or upgrade the release; ``settings`` are further values as `--set` takes them."""
    _finish_interrupted()
    repository, _, tag = references["operator"].rpartition(":")
    pgbouncer = references["pgbouncer"]
    values = [f"image.repository={repository}", f"image.tag={tag}", f"pooler.image={pgbouncer}"]
    # Its long name is another image to the API server: the tests of keepers choose it.
    values.append(f"keeper.allowedImages={{docker.io/{pgbouncer}}}")
    say(f"installing the chart with {references['operator']}")
    helm(
        *("upgrade", "--install", RELEASE, str(CHART)),
        *("--namespace", NAMESPACE, "--create-namespace", "--history-max", "5"),
        *(word for value in (*values, *settings) for word in ("--set", value)),
    )


def wait_for_rollout() -> None:
    """Wait until the operator's pods are those of the chart and ready. Raises ClusterError with their words."""
    words = ("-n", NAMESPACE, "rollout", "status", f"deployment/{RELEASE}", f"--timeout={_ROLLOUT_SECONDS}s")
    try:
        kubectl(*words, timeout=_ROLLOUT_SECONDS + 15)
    except ClusterError as error:
        raise ClusterError(f"the operator did not start: {error}\n{_diagnosis()}") from None
    say("the operator is ready")


def _finish_interrupted() -> None:
    """Helm refuses to work on a release whose last command was killed half way: put it in order."""
    words = ("-n", NAMESPACE, "list", "--all", "--filter", f"^{RELEASE}$", "-o", "json")
    for release in json.loads(helm(*words)):
        status = release["status"]
        if status == "pending-install":
            say("an earlier installation was interrupted; beginning anew")
            helm("-n", NAMESPACE, "uninstall", RELEASE, "--no-hooks")
        elif status.startswith("pending-"):
            say("an earlier upgrade was interrupted; rolling it back first")
            helm("-n", NAMESPACE, "rollback", RELEASE, "--no-hooks")


def _diagnosis() -> str:
    """What the pods and their Events say, for somebody who has to find out why."""
    selector = f"app.kubernetes.io/instance={RELEASE}"
    questions = {
        "Pods": ("get", "pods", "-l", selector, "-o", "wide"),
        "Events": ("get", "events", "--field-selector=type=Warning", "--sort-by=.lastTimestamp"),
        "Logs": ("logs", "-l", selector, f"--tail={_LOG_LINES}", "--prefix"),
    }
    parts = []
    for title, words in questions.items():
        try:
            lines = kubectl("-n", NAMESPACE, *words).splitlines()[-_LOG_LINES:]
        except ClusterError as error:
            lines = [str(error)]
        parts.append("\n  ".join([f"{title}:", *lines]))
    return "\n".join(parts)


def _test_result(output: str) -> str:
    """The line that the test's pod printed, which is the last one."""
    lines = [line for line in output.splitlines() if line.strip()]
    return f"helm test: {lines[-1]}" if lines else "helm test passed"


if __name__ == "__main__":
    sys.exit(main())
