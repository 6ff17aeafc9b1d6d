"""Which Secret a name stands for: no two things that the operator writes or reads may share one.

All names that a PooledDatabase claims come together here, with the shortened ones, which no pattern in the spec
can tell from others. (A name that another PooledDatabase or a user has taken shows at the API server.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from poolkeeper import names
from poolkeeper.settings import Settings
from poolkeeper.spec.parse import PooledDatabase


class Place(NamedTuple):
    """Names one Secret; or a consumer, by the first of its Secrets."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def fixed(database: PooledDatabase, settings: Settings) -> dict[Place, str]:
    """The Secrets that a PooledDatabase has or reads without its consumers, and what each of them is."""
    read = database.upstream.secret_names()
    claimed = {Place(database.namespace, name): "a Secret that spec.upstream reads" for name in read}
    for name in names.own_secrets(database.name):
        claimed[Place(database.namespace, name)] = "a Secret of the poolers themselves"
    if settings.webhook is not None:
        claimed[Place(settings.namespace, settings.webhook.name)] = "the Secret of the operator's webhook"
    return claimed


def conflicts(
    database: PooledDatabase, consumers: Iterable[tuple[str, str]], settings: Settings
) -> dict[Place, str]:
    """The consumers, as (namespace, secretName), that can't have their Secrets, each with the reason and the
    remedy. Of two consumers that claim one name, the first has it."""
    claimed = fixed(database, settings)
    refused = {}
    for consumer in (Place(*item) for item in consumers):
        wanted = [Place(consumer.namespace, name) for name in names.consumer_secrets(consumer.name)]
        taken = next((place for place in wanted if place in claimed), None)
        if taken is None:
            claimed |= dict.fromkeys(wanted, f"a Secret of consumer {consumer}")
        else:
            refused[consumer] = (
                f"Secret {taken} of this consumer would be {claimed[taken]} as well; choose another secretName"
            )
    return refused
