"""``python -m e2e.cluster up | down | status | load [IMAGE ...] | kubeconfig | enter -- COMMAND ...``"""

from __future__ import annotations

import argparse
import os
import sys

from e2e.cluster.adapters import Image, choose
from e2e.cluster.paths import KUBECONFIG
from e2e.cluster.shell import ClusterError, say

_CHOICE = """\
POOLKEEPER_CLUSTER chooses the cluster:
  local     plain processes in namespaces of their own; needs root on Linux (the default without Docker)
  kind      a kind cluster named poolkeeper (the default where a Docker engine answers)
  existing  the cluster of KUBECONFIG; images get there by the command in POOLKEEPER_LOAD_COMMAND, which is
            given the path of each archive, for example: minikube image load
"""


def main(arguments: list[str]) -> int:
    """Run one command. Returns the exit code; errors become one sentence on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m e2e.cluster",
        description="A real cluster for tests.",
        epilog=_CHOICE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="make the cluster, or find it healthy")
    commands.add_parser("down", help="take it away, without a trace")
    commands.add_parser("status", help="say whether it is ready for use (exit code 0) or why not")
    commands.add_parser("kubeconfig", help="print the path of its kubeconfig")
    load = commands.add_parser("load", help="build images where needed and bring them into the cluster")
    load.add_argument("image", nargs="*", help="names such as pgbouncer; without names: all")
    enter = commands.add_parser("enter", help="run a command where pod and Service addresses are reachable")
    enter.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    match options.command:
        case "up":
            choose().up()
        case "down":
            choose().down()
        case "status":
            problem = choose().status()
            print("the cluster is ready" if problem is None else f"the cluster is not ready: {problem}")
            return 0 if problem is None else 1
        case "kubeconfig":
            print(KUBECONFIG)
        case "load":
            _load(options.image)
        case "enter":
            from e2e.cluster.local import exec_in_netns

            words = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
            argv = exec_in_netns(words or ["/bin/sh"])
            os.execvp(argv[0], argv)  # noqa: S606 - the command is the caller's own
    return 0


def _load(names: list[str]) -> None:
    from e2e.images import build

    images = [Image(built.reference, built.archive) for built in build.ensure(names)]
    if not choose().load(images):
        say("every image is in the cluster")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
