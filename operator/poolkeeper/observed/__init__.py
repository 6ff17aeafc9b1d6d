"""Observations of the cluster, as values. Nothing here knows where they came from."""
