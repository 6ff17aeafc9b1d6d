"""Which of spec.pooler.parameters the poolers' file may hold now: PgBouncer doesn't start with one it lacks.

An image's version shows only when it runs. So a parameter that some versions lack stays out of the file until a
pooler of the image shows its version; then a RELOAD adds it. It leaves the file before pods of another image
read it, and stays in it when the operator restarts, which forgets what consoles showed. All pods of one image
count as one version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from poolkeeper import names
from poolkeeper.desired.deployment import image
from poolkeeper.engine import pgbouncer_version
from poolkeeper.engine.parameter_table import Parameter
from poolkeeper.observed.poolers import Pod
from poolkeeper.observed.refs import Ref
from poolkeeper.pgbouncer.configuration import INI
from poolkeeper.pgbouncer.ini import LATER_DEFAULTS
from poolkeeper.plan.world import World
from poolkeeper.settings import Settings
from poolkeeper.spec.parameters import newer, release
from poolkeeper.spec.parse import PooledDatabase


@dataclass(frozen=True)
class Supported:
    """The parameters for the file, and the reason for each that is withheld, by name."""

    parameters: Mapping[str, str]
    withheld: Mapping[str, str] = field(default_factory=dict)


def supported(database: PooledDatabase, world: World, settings: Settings) -> Supported:
    """The parameters that the running poolers, and those that start next, can read."""
    asked = database.pooler.parameters
    if database.pooler.image is None:
        return Supported(asked)  # parse() refused what the operator's own image lacks
    pods = [pod for pod in world.pods if not pod.terminating]
    written = world.files.get(Ref("Secret", database.namespace, names.config_name(database.name)), {}).get(
        INI, ""
    )
    offered = {**LATER_DEFAULTS, **asked}
    reasons = {
        parameter.name: reason
        for parameter in newer(offered)
        if (reason := _withheld(parameter, pods, image(database, settings), written, world))
    }
    return Supported(
        {name: value for name, value in offered.items() if name not in reasons},
        {name: reason for name, reason in reasons.items() if name in asked},
    )


def _withheld(parameter: Parameter, pods: list[Pod], wanted: str, written: str, world: World) -> str:
    """Why a parameter must stay out of the file; empty if it need not."""
    needs = f"{parameter.name} needs PgBouncer {release(parameter.since)}"
    if any(pod.image != wanted for pod in pods):
        return f"{needs}, and not every pooler is of image {wanted} yet"
    shows = False
    for pod in sorted(pods, key=lambda pod: pod.name):
        shown = world.shown.get(pod.uid)
        if shown is None or not shown.version:
            continue
        version = pgbouncer_version.parse(shown.version)
        if version is None or version.release[:2] < parameter.since:
            return f"{needs}, and pod {pod.name} runs {shown.version}; remove it, or use another image"
        shows = True
    kept = pods and re.search(rf"^{parameter.name} =", written, re.MULTILINE)
    return "" if shows or kept else f"{needs}, and no pooler has shown its version yet"
