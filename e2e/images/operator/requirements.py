"""Prints the project's requirements from pyproject.toml, one per line: `build` or `run`."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())
wanted = {"build": project["build-system"]["requires"], "run": project["project"]["dependencies"]}
print("\n".join(wanted[sys.argv[1]]))
