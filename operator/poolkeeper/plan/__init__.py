"""Turns the observations of a PooledDatabase into the next steps. Pure."""
