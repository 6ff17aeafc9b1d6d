"""Limits how often schema changes make the poolers renew their server connections. Pure.

A token bucket: migrations of many steps are followed step by step, and a program that changes the schema all
the time costs a renewal now and then.
"""

from __future__ import annotations

from dataclasses import dataclass

GAP_SECONDS = 2.0
"""How long to wait at least between two renewals."""
BURST = 20
"""How many renewals may follow each other at that pace."""
REFILL_SECONDS = 10.0
"""How often one more is allowed after that."""


@dataclass(frozen=True)
class Schema:
    """What is known of one database's schema.

    `fingerprint` is the schema that server connections are to be renewed for: the latest one or, if renewals
    are held back, an earlier one. `since` is a time of a monotonic clock.
    """

    fingerprint: str = ""
    since: float = float("-inf")
    spent: float = 0.0
    """Tokens missing from the bucket at `since`."""

    def see(self, fingerprint: str, now: float) -> Schema:
        """The state after the schema was read again."""
        if fingerprint == self.fingerprint:
            return self
        if not self.fingerprint:
            return Schema(fingerprint)
        spent = max(0.0, self.spent - (now - self.since) / REFILL_SECONDS)
        if now - self.since < GAP_SECONDS or spent + 1 > BURST:
            return self
        return Schema(fingerprint, now, spent + 1)
