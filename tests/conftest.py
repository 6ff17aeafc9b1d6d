"""For all tests: how long one example of a property takes says something about the machine, not about the code."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("poolkeeper", deadline=None)
settings.load_profile("poolkeeper")
