"""The condition ClientSlots: whether each consumer has room for its clients, and which one fills its part.

Pure. Not part of Ready: the other consumers continue as before.
"""

from __future__ import annotations

from poolkeeper.observed.data_path import AtLimit
from poolkeeper.pgbouncer import client_slots
from poolkeeper.pgbouncer.configuration import MAX_CLIENTS
from poolkeeper.pgbouncer.ini import SLOTS_SETTING
from poolkeeper.plan.status.condition import FALSE, TRUE, UNKNOWN, Condition, last_known
from poolkeeper.plan.wanted import Wanted
from poolkeeper.plan.world import World

KIND = "ClientSlots"
CONSUMER_AT_LIMIT, SLOTS_EXHAUSTED = "ConsumerAtLimit", "SlotsExhausted"


def client_slots_condition(wanted: Wanted, world: World) -> Condition:
    """Whether there is a slot for each consumer, and no consumer has filled its part."""
    config = wanted.configuration
    if config is None:
        return last_known(world, KIND) or Condition(
            KIND, UNKNOWN, "NoUpstream", "client slots are divided once the upstream's Secret is complete"
        )
    most, consumers = int(config.settings[MAX_CLIENTS]), len(config.slots)
    if client_slots.exhausted(most, config.slots):
        return Condition(
            KIND,
            FALSE,
            SLOTS_EXHAUSTED,
            f"{consumers} consumers share the {client_slots.divisible(most)} client slots that each pooler pod"
            " has for them, so that some consumers find no slot; raise"
            f" spec.pooler.parameters.max_client_conn from {most} to {client_slots.needed(consumers)} or more",
        )
    if world.budget is None:
        return last_known(world, KIND) or Condition(
            KIND, UNKNOWN, "NotMeasured", "no pooler has shown its clients yet"
        )
    if world.budget.at_limit:
        first, *others = world.budget.at_limit
        more = f"; {len(others)} more are like it" if others else ""
        words = _words(first, most, config.settings.get(SLOTS_SETTING, "0"))
        return Condition(KIND, FALSE, CONSUMER_AT_LIMIT, f"{words}{more}")
    return Condition(
        KIND,
        TRUE,
        "Available",
        f"no consumer fills its part of the {client_slots.divisible(most)} client slots of a pooler pod",
    )


def _words(item: AtLimit, most: int, general: str) -> str:
    """The message. `most` and `general`: the settings for all clients and for those of each login; 0: none."""
    if item.limited:
        remedy = "raise its limits.maxClientConnections"
    elif int(general) == item.bound:
        remedy = f"raise spec.pooler.parameters.{SLOTS_SETTING} (now {general})"
    else:
        remedy = (
            f"raise spec.pooler.parameters.max_client_conn (now {most}), the weight of this consumer or"
            " spec.pooler.replicas"
        )
    return (
        f"consumer {item.consumer} has {item.clients} clients at pod {item.pod}, and a pooler admits"
        f" {item.bound} of it: more are refused with 'client connections exceeded', and other consumers are not"
        f" affected; lower the sizes of its connection pools, or {remedy}"
    )
