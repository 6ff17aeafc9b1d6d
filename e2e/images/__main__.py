"""``python -m e2e.images build [NAME ...] | ref NAME``"""

from __future__ import annotations

import argparse
import sys

from e2e.cluster.shell import ClusterError
from e2e.images import build
from e2e.images.catalog import NAMES, recipe


def main(arguments: list[str]) -> int:
    """Run one command. Returns the exit code; errors become one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m e2e.images", description="The project's images.")
    commands = parser.add_subparsers(dest="command", required=True)
    builds = commands.add_parser("build", help="build what is missing and print where the archives are")
    builds.add_argument("name", nargs="*", help=f"{', '.join(NAMES)}; without names: all")
    ref = commands.add_parser("ref", help="print the reference under which an image is loaded")
    ref.add_argument("name", help=", ".join(NAMES))
    options = parser.parse_args(arguments)
    try:
        if options.command == "ref":
            print(recipe(options.name).reference)
        else:
            for one in build.ensure(options.name):
                print(f"{one.reference} {one.archive}")
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
