"""For all tests: how long an example of a property takes says something of the machine, not of the code."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("poolkeeper", deadline=None)
settings.load_profile("poolkeeper")
